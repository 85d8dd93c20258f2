//! Ocelli, an image-classification server. This page is the map of its architecture.
//!
//! # The way of one image
//!
//! ```text
//!  body bytes ─▶ admission ─▶ decode ─▶ resize, crop, normalise ─▶ queue ─▶ batch ─▶ session.run ─▶ softmax, top-k ─▶ JSON
//!    tokio        permit         CPU pool                          per graph    worker thread          handler
//! ```
//!
//! 1. [`api`] takes a **permit** before it reads the body. The permit travels with the work, so one number bounds all that
//!    is in flight, also after a client has gone.
//! 2. The body is read under a size and a time limit and taken apart into encoded images and parameters.
//! 3. A thread of the [`cpu_pool`] decodes and preprocesses the image ([`preprocess`]) and puts the tensor into the graph's
//!    queue ([`batching`]). While there are cores to spare, a second one takes a part of the picture.
//! 4. A worker, a thread that owns one session or a share in one, takes a batch when it is due, runs it ([`runtime`]) and sends
//!    each job its own answer. Where it pays, a solo worker with all cores takes lone jobs, and instances what is too few for a batch in smaller ones.
//! 5. The handler turns the answer into scores and labels ([`models`], [`postprocess`]) and writes JSON.
//!
//! # What may be read later
//!
//! None of this changes what is answered; it is there for speed:
//!
//! - **Tuning** (`models::tuning`): child processes measure what the settings leave open about 4,
//!   and the server switches to the best. A run that is due while one of them measures waits for a moment at a gate
//!   ([`batching::RunGate`]). `models::bench` measures the same by hand.
//! - **Graph rewriting** (`runtime::rewriting`, a file for each way, on `runtime::onnx`, which reads and writes the format): graphs become
//!   what the provider's kernels compute faster, or take less memory for.
//! - **The JPEG decoder** (`preprocess::jpeg::sequential`) and the resampling kernels (`preprocess::simd`): to the same bits as the libraries
//!   that take over where these do not apply.
//!
//! Zero-shot is the same twice: the image goes to the vision encoder's queue, prompts whose embedding is not cached
//! ([`text`]) to the text encoder's.
//!
//! # Who may know whom
//!
//! `main → cli → server → api → models → {batching, runtime, preprocess, text, postprocess, cpu_pool}`, one way only. Of these
//! only [`api`] knows axum, only [`runtime`] knows `ort`, and [`batching`] knows neither images nor sessions.
//! [`config`] and [`telemetry`] may be used by all; [`config`] in turn uses the plain values of [`batching`],
//! [`preprocess`] and [`runtime`] that settings are made of.

pub mod api;
pub mod batching;
pub mod cli;
pub mod config;
pub mod cpu_pool;
pub mod models;
mod panics;
pub mod postprocess;
pub mod preprocess;
pub mod runtime;
pub mod server;
pub mod telemetry;
pub mod text;
