//! The command line: `serve`, `classify`, `models`, `bench`, `openapi`.

mod bench;
mod classify;
mod models;
mod serve;

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};

use crate::config::{Config, LogFormat, Sources, arguments};
use crate::runtime::set_up_allocator;
use crate::telemetry::start_logging;

/// Exit code for mistakes in arguments or configuration; faults at run time give 1.
const USAGE: u8 = 2;

/// Why a command ended with an error.
enum Failure {
    /// Mistakes of configuration, a line each.
    Config(Vec<String>),
    /// Anything else.
    Runtime(String),
}

impl<E: std::fmt::Display> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Runtime(error.to_string())
    }
}

fn command() -> Command {
    let config = Arg::new("config")
        .long("config")
        .env("OCELLI_CONFIG")
        .value_name("FILE")
        .help("TOML file with any of the settings below, and tables [models.NAME] for single models.")
        .global(true);
    Command::new("ocelli")
        .version(env!("CARGO_PKG_VERSION"))
        .about("An image-classification server: Hugging Face checkpoints behind HTTP.")
        .after_help("Every setting can be a flag, a variable or a key in the file; flags win over variables, variables over the file.")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(serve::command())
        .subcommand(classify::command())
        .subcommand(models::command())
        .subcommand(bench::command())
        .subcommand(Command::new("measure").hide(true).about("Measures a plan for the server that started this process."))
        .subcommand(Command::new("openapi").about("Prints the OpenAPI document of the HTTP interface, as YAML."))
        .arg(config)
        .args(arguments())
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    set_up_allocator();
    let matches = command().get_matches();
    let outcome = match matches.subcommand() {
        Some(("openapi", _)) => print_openapi(),
        Some(("measure", _)) => measure(),
        Some((name, matches)) => read_config(matches).and_then(|config| {
            // Only the server's log is read by machines unless a terminal says otherwise.
            let json = match config.log_format {
                LogFormat::Auto => name == "serve" && !std::io::stderr().is_terminal(),
                format => format == LogFormat::Json,
            };
            let level = if name == "serve" { config.log_level.as_str() } else { quiet(&config.log_level) };
            let _writes_the_rest = start_logging(level, json);
            match name {
                "serve" => serve::run(config, matches, json),
                "classify" => classify::run(&config, matches),
                "bench" => bench::run(&config, matches),
                _ => models::run(&config),
            }
        }),
        None => Ok(()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Config(mistakes)) => {
            report(&format!("the configuration has {} mistake(s):\n  {}", mistakes.len(), mistakes.join("\n  ")));
            ExitCode::from(USAGE)
        }
        Err(Failure::Runtime(cause)) => {
            report(&cause);
            ExitCode::FAILURE
        }
    }
}

/// One-off commands answer on standard output; their log matters only when something is wrong.
fn quiet(level: &str) -> &str {
    if level == "info" { "warn" } else { level }
}

fn read_config(matches: &ArgMatches) -> Result<Config, Failure> {
    let file = matches.get_one::<String>("config").map(Path::new);
    let mut mistakes = Vec::new();
    let sources = Sources::read(matches, file, &mut mistakes);
    Config::check(&sources, mistakes).map_err(Failure::Config)
}

/// A process of the server's own, which talks with it by standard input and output.
fn measure() -> Result<(), Failure> {
    Ok(crate::models::measure_for_server(std::io::stdin().lock(), std::io::stdout().lock())?)
}

fn print_openapi() -> Result<(), Failure> {
    print(&crate::api::openapi_document().to_yaml()?);
    Ok(())
}

/// Writes to standard output. A reader that has closed it (`| head`) is no fault.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn report(error: &str) {
    let _ = writeln!(std::io::stderr(), "ocelli: {error}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn settings_may_stand_after_the_subcommand() {
        let matches = command().get_matches_from(["ocelli", "serve", "--max-images", "3"]);
        let (_, serve) = matches.subcommand().unwrap();
        let Ok(config) = read_config(serve) else { panic!("a valid flag was refused") };
        assert_eq!(config.limits.max_images, 3);
    }

    #[test]
    fn the_committed_openapi_document_is_what_the_code_says() {
        let committed = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.yaml")).unwrap();
        let current = crate::api::openapi_document().to_yaml().unwrap();
        assert!(committed == current, "openapi.yaml has drifted; run: cargo run -- openapi > openapi.yaml");
    }
}
