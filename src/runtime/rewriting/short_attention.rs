//! Attention over a few tokens, of several pictures by one thread. OpenVINO's kernel for attention as a whole keeps scores in a core's
//! cache, which pays where they are many. A few fit there anyway, and products, `Softmax` and sums by kernels of their own are faster:
//! sessions of CLIP B/32, of 50 tokens, did 1.03 and 1.05 times as many images a second with batches of four and eight on two cores of a
//! Xeon with AMX, a server 1.04 times as many requests with 32 connections. With one picture it takes as long, and by two threads longer
//! (0.96 times as many with one picture, 0.98 with several). Of 196 and 198 tokens (SigLIP and DeiT) it did 0.99 times as many, of 197
//! (ViT-B/16), an odd number, in which products are slow, 0.84.

use std::io;
use std::path::Path;

use super::weights_in_file::Slim;
use crate::runtime::RuntimeError;
use crate::runtime::onnx::graph::Model;

/// Tokens at most that are a few.
const FEW_TOKENS: u64 = 64;

/// Pictures at least.
const SEVERAL: u64 = 4;

/// The graph, which is that of the file `path`, with whether its kernels may be fused. `open` are the sizes of dimensions that its inputs leave
/// open under a name.
///
/// # Errors
/// [`RuntimeError::Graph`]: it is no whole ONNX model.
pub(super) fn with_short_attention(slim: Slim, path: &Path, open: &[(String, usize)]) -> Result<Slim, RuntimeError> {
    let mut is_short = false;
    let slim = slim.rewritten(path, |model| {
        is_short = has_short_attention(model, open)?;
        Ok(None)
    })?;
    if is_short {
        tracing::debug!("attention is over a few tokens, so kernels stay apart");
    }
    Ok(Slim { fuses_kernels: !is_short, ..slim })
}

/// Is there attention, and all of it, as far as shapes are known, over a few tokens, an even number, of several pictures?
fn has_short_attention(model: &[u8], open: &[(String, usize)]) -> io::Result<bool> {
    let graph = Model::read(model)?.graph;
    let shapes = graph.shapes(open)?;
    let softmaxes = graph.nodes.iter().filter(|node| node.operator == "Softmax");
    let scores: Vec<[u64; 4]> = softmaxes.filter_map(|node| shapes.numbers(node.inputs.first()?)).collect();
    let is_short =
        |&[pictures, _, _, tokens]: &[u64; 4]| pictures >= SEVERAL && tokens <= FEW_TOKENS && tokens.is_multiple_of(2);
    Ok(!scores.is_empty() && scores.iter().all(is_short))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::onnx::parts::node;
    use crate::runtime::test_graphs::{value, write_model};

    fn fuses(input: &[u64], operator: &str) -> bool {
        let folder = tempfile::tempdir().unwrap();
        let nodes = [node("Relu", &["x"], &["scores"], None), node(operator, &["scores"], &["out"], None)];
        let slim = write_model(folder.path(), &nodes, &[], &[value("x", input)], &[value("out", input)], 17);
        with_short_attention(slim, folder.path(), &[]).unwrap().fuses_kernels
    }

    #[test]
    fn kernels_are_apart_where_attention_is_over_a_few_tokens_of_several_pictures() {
        assert!(!fuses(&[8, 12, 50, 50], "Softmax"), "CLIP B/32");
        assert!(!fuses(&[4, 12, 1, 50], "Softmax"), "of the one token that is read");
        assert!(fuses(&[1, 12, 50, 50], "Softmax"), "one picture");
        assert!(fuses(&[8, 12, 49, 49], "Softmax"), "an odd number");
        assert!(fuses(&[8, 12, 196, 196], "Softmax"), "many");
        assert!(fuses(&[8, 10], "Softmax"), "a classifier's head");
        assert!(fuses(&[8, 12, 50, 50], "Sigmoid"), "no attention");
    }
}
