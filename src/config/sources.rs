//! Settings as typed: what flags, variables and the file say, before any of it is checked.

use std::collections::BTreeMap;
use std::path::Path;

use clap::parser::ValueSource;

use super::keys::{KEYS, find};

/// A value as typed and the place it was typed at.
#[derive(Debug, Clone)]
pub struct Typed {
    /// The value, as text.
    pub text: String,
    /// `--device`, `OCELLI_DEVICE` or the file's name.
    pub origin: String,
}

/// Values by key.
pub type Table = BTreeMap<&'static str, Typed>;

/// Everything that was typed, by the strength of its source.
#[derive(Debug, Default)]
pub struct Sources {
    /// Flags, and variables where there is no flag.
    pub command_line: Table,
    /// The file's top level.
    pub file: Table,
    /// The file's `[models.NAME]` tables.
    pub models: BTreeMap<String, Table>,
}

/// The command-line arguments that [`KEYS`] describes.
pub fn arguments() -> Vec<clap::Arg> {
    KEYS.iter()
        .map(|key| {
            let help = match key.default {
                "" => key.help.to_owned(),
                default => format!("{} [default: {default}]", key.help),
            };
            clap::Arg::new(key.name)
                .long(key.flag())
                .env(key.variable())
                .value_name(key.value)
                .help(help)
                .global(true)
                .allow_hyphen_values(true)
                .hide_env_values(true)
                .num_args(1)
        })
        .collect()
}

impl Sources {
    /// Collects what was typed. Mistakes of form (unknown keys, values of a wrong type) go to `mistakes`.
    pub fn read(matches: &clap::ArgMatches, file: Option<&Path>, mistakes: &mut Vec<String>) -> Self {
        let mut sources = Self::default();
        for key in KEYS {
            if let Some(text) = matches.get_one::<String>(key.name) {
                let origin = match matches.value_source(key.name) {
                    Some(ValueSource::EnvVariable) => key.variable(),
                    _ => format!("--{}", key.flag()),
                };
                let text = text.clone();
                sources.command_line.insert(key.name, Typed { text, origin });
            }
        }
        if let Some(path) = file {
            match std::fs::read_to_string(path) {
                Ok(text) => sources.read_file(&text, &path.display().to_string(), mistakes),
                Err(error) => mistakes.push(format!("config: {}: {error}", path.display())),
            }
        }
        sources
    }

    fn read_file(&mut self, text: &str, name: &str, mistakes: &mut Vec<String>) {
        let table = match text.parse::<toml::Table>() {
            Ok(table) => table,
            Err(error) => {
                let line = error.span().map_or(1, |span| text[..span.start].lines().count().max(1));
                mistakes.push(format!("config: {name}, line {line}: {}", error.message()));
                return;
            }
        };
        for (key, value) in table {
            match (key.as_str(), value) {
                ("models", toml::Value::Table(models)) => {
                    for (model, value) in models {
                        let path = format!("models.{model}");
                        let toml::Value::Table(values) = value else {
                            mistakes.push(format!("{path}: must be a table, [{path}] (in {name})"));
                            continue;
                        };
                        let mut typed = Table::new();
                        for (key, value) in values {
                            read_value(&mut typed, Some(&path), &key, &value, name, mistakes);
                        }
                        self.models.insert(model, typed);
                    }
                }
                (key, value) => read_value(&mut self.file, None, key, &value, name, mistakes),
            }
        }
    }
}

fn read_value(
    table: &mut Table,
    model: Option<&str>,
    key: &str,
    value: &toml::Value,
    file: &str,
    mistakes: &mut Vec<String>,
) {
    let path = model.map_or_else(|| key.to_owned(), |model| format!("{model}.{key}"));
    let Some(known) = find(key) else {
        mistakes.push(format!("{path}: there is no such key (in {file})"));
        return;
    };
    if model.is_some() && !known.per_model {
        mistakes.push(format!("{path}: '{key}' belongs at the file's top level, not to a model (in {file})"));
        return;
    }
    let text = match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Integer(number) => number.to_string(),
        toml::Value::Float(number) => number.to_string(),
        toml::Value::Boolean(truth) => truth.to_string(),
        other => {
            mistakes.push(format!(
                "{path}: must be a text, a number or true or false, not a {} (in {file})",
                other.type_str()
            ));
            return;
        }
    };
    let origin = file.to_owned();
    table.insert(known.name, Typed { text, origin });
}
