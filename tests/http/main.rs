//! The whole server over HTTP: a real listener on port 0, real sessions on tiny models, real clients.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests stop at the first surprise")]
#![allow(missing_docs, reason = "tests are named by what they show")]

mod bad_input;
mod classify;
mod command_line;
mod default_models;
mod documentation;
mod families;
mod harness;
mod health;
mod models;
mod overload;
mod partitioned;
mod shutdown;
mod telemetry;
mod zero_shot;
