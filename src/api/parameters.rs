//! Parameters of a request, from the query, a form or JSON: each is taken by its name, and what is left over is an error.

use serde_json::Value;

use super::error::ApiError;

/// A parameter's value as it came.
#[derive(Debug, Clone, PartialEq)]
pub enum Raw {
    /// From the query or a form.
    Text(String),
    /// From JSON.
    Json(Value),
}

/// All parameters of a request, in the order they came.
#[derive(Debug, Default)]
pub struct Parameters(Vec<(String, Raw)>);

impl Parameters {
    /// The parameters of a URL's query.
    pub fn from_query(query: Option<&str>) -> Self {
        let pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
        Self(pairs.map(|(key, value)| (key.into_owned(), Raw::Text(value.into_owned()))).collect())
    }

    /// Adds a parameter.
    pub fn push(&mut self, key: String, value: Raw) {
        self.0.push((key, value));
    }

    /// Takes the text called `key`.
    ///
    /// # Errors
    /// It was given twice, or is no text.
    pub fn text(&mut self, key: &str) -> Result<Option<String>, ApiError> {
        match self.one(key)? {
            None => Ok(None),
            Some(Raw::Text(text) | Raw::Json(Value::String(text))) => Ok(Some(text)),
            Some(Raw::Json(other)) => Err(wrong_type(key, "a text", &other)),
        }
    }

    /// Takes the whole number called `key`.
    ///
    /// # Errors
    /// It was given twice, or is no whole number.
    pub fn integer(&mut self, key: &str) -> Result<Option<i64>, ApiError> {
        match self.one(key)? {
            None => Ok(None),
            Some(Raw::Text(text)) => match text.trim().parse() {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(wrong_type(key, "a whole number", &Value::String(text))),
            },
            Some(Raw::Json(value)) => match value.as_i64() {
                Some(number) => Ok(Some(number)),
                None => Err(wrong_type(key, "a whole number", &value)),
            },
        }
    }

    /// Takes every text called `key`: repeated in a query or form, a list or a single text in JSON.
    ///
    /// # Errors
    /// Something in it is no text.
    pub fn texts(&mut self, key: &str) -> Result<Vec<String>, ApiError> {
        let mut texts = Vec::new();
        for raw in self.all(key) {
            let values = match raw {
                Raw::Text(text) => vec![Value::String(text)],
                Raw::Json(Value::Array(values)) => values,
                Raw::Json(value) => vec![value],
            };
            for value in values {
                match value {
                    Value::String(text) => texts.push(text),
                    other => return Err(wrong_type(key, "a text or a list of texts", &other)),
                }
            }
        }
        Ok(texts)
    }

    /// Takes the number of labels that an answer should have: `default` if there is none.
    ///
    /// # Errors
    /// It is no whole number, or below 1.
    pub fn top_k(&mut self, default: usize) -> Result<usize, ApiError> {
        match self.integer("top_k")? {
            None => Ok(default),
            Some(number) if number >= 1 => Ok(usize::try_from(number).unwrap_or(usize::MAX)),
            Some(number) => Err(ApiError::bad_request(format!("top_k must be at least 1, not {number}"))),
        }
    }

    /// Ends the taking.
    ///
    /// # Errors
    /// A parameter is left that nobody took; `known` lists those there are.
    pub fn finish(self, known: &str) -> Result<(), ApiError> {
        match self.0.first() {
            None => Ok(()),
            Some((key, _)) => {
                let key: String = key.chars().take(60).collect();
                Err(ApiError::bad_request(format!("there is no parameter '{key}'; there are: {known}")))
            }
        }
    }

    fn all(&mut self, key: &str) -> Vec<Raw> {
        let (taken, left) = std::mem::take(&mut self.0).into_iter().partition(|(name, _)| name == key);
        self.0 = left;
        let taken: Vec<(String, Raw)> = taken;
        taken.into_iter().map(|(_, raw)| raw).filter(|raw| *raw != Raw::Json(Value::Null)).collect()
    }

    fn one(&mut self, key: &str) -> Result<Option<Raw>, ApiError> {
        let mut values = self.all(key);
        match values.len() {
            0 | 1 => Ok(values.pop()),
            count => Err(ApiError::bad_request(format!("{key} is given {count} times"))),
        }
    }
}

fn wrong_type(key: &str, wanted: &str, value: &Value) -> ApiError {
    let shown: String = value.to_string().chars().take(60).collect();
    ApiError::bad_request(format!("{key} must be {wanted}, not {shown}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(error: &ApiError) -> String {
        format!("{error:?}")
    }

    #[test]
    fn a_query_is_decoded_and_repeated_keys_make_a_list() {
        let mut parameters = Parameters::from_query(Some("labels=a+cat&labels=a%2Cdog&top_k=3"));
        assert_eq!(parameters.texts("labels").unwrap(), ["a cat", "a,dog"]);
        assert_eq!(parameters.top_k(5).unwrap(), 3);
        parameters.finish("").unwrap();
    }

    #[test]
    fn what_is_given_twice_is_refused() {
        let mut parameters = Parameters::from_query(Some("model=a"));
        parameters.push("model".to_owned(), Raw::Json(Value::from("b")));
        assert!(message(&parameters.text("model").unwrap_err()).contains("model is given 2 times"));
    }

    #[test]
    fn wrong_types_are_named() {
        for (value, expected) in [
            (Raw::Text("five".to_owned()), "top_k must be a whole number, not \\\"five\\\""),
            (Raw::Json(Value::from("5")), "top_k must be a whole number"),
            (Raw::Json(Value::from(5.5)), "not 5.5"),
            (Raw::Json(Value::from(0)), "top_k must be at least 1, not 0"),
            (Raw::Text("-3".to_owned()), "not -3"),
            (Raw::Text("99999999999999999999".to_owned()), "must be a whole number"),
        ] {
            let mut parameters = Parameters::default();
            parameters.push("top_k".to_owned(), value);
            let error = message(&parameters.top_k(5).unwrap_err());
            assert!(error.contains(expected), "'{expected}' is not in '{error}'");
        }
    }

    #[test]
    fn null_is_as_good_as_absent() {
        let mut parameters = Parameters::default();
        parameters.push("top_k".to_owned(), Raw::Json(Value::Null));
        assert_eq!(parameters.top_k(5).unwrap(), 5);
    }

    #[test]
    fn unknown_parameters_are_named() {
        let parameters = Parameters::from_query(Some("topk=3"));
        assert!(message(&parameters.finish("model, top_k").unwrap_err()).contains("'topk'; there are: model, top_k"));
    }
}
