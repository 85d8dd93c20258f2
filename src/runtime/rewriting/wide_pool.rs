//! Pooling over a whole picture that a graph says by a window larger than any: EfficientNet's head, as `transformers` has it and
//! exporters write it down, is an `AveragePool` of 1280×1280 over 7×7 values. OpenVINO refuses that or crawls, and ONNX Runtime 1.24
//! divides by the window's size, so that all logits are nearly 0. `GlobalAveragePool` is the same, and every provider knows it.

use std::io::{self, Cursor};
use std::path::Path;

use crate::runtime::onnx::proto::node as proto;
use crate::runtime::onnx::protobuf::{Message, put_bytes};
use crate::runtime::{OnnxFile, RuntimeError};

/// What the node becomes.
const OPERATOR: &[u8] = b"GlobalAveragePool";

/// Of protobuf: the field's value is bytes, and their number comes first.
const BYTES: u8 = 2;

/// The bytes of the graph at `path`, or of what is given in its place, with its wide pools said plainly; what is given if it has none.
/// No feature map is larger than `largest_side`, the longest side of the pictures that the graph is given.
pub(in crate::runtime) fn without_wide_pools(
    path: &Path,
    given: Option<Vec<u8>>,
    largest_side: usize,
) -> Result<Option<Vec<u8>>, RuntimeError> {
    let failed = |error: io::Error| RuntimeError::Graph(format!("{}: {error}", path.display()));
    let mut pools = match &given {
        Some(bytes) => OnnxFile::parse(&mut Cursor::new(bytes), bytes.len() as u64).map_err(failed)?,
        None => OnnxFile::read(path)?,
    }
    .unpadded_pools;
    pools.retain(|pool| pool.window >= largest_side as u64);
    if pools.is_empty() {
        return Ok(given);
    }
    let mut bytes = given.map_or_else(|| std::fs::read(path), Ok).map_err(failed)?;
    for pool in pools {
        let node = usize::try_from(pool.node.start).ok().zip(usize::try_from(pool.node.end).ok());
        let node = node.and_then(|(start, end)| bytes.get_mut(start..end));
        if node.and_then(pool_globally).is_some() {
            tracing::debug!(file = %path.display(), window = pool.window, "a pool over everything is run as such");
        }
    }
    Ok(Some(bytes))
}

/// Rewrites a node within its bytes, so that no length around it changes: what its attributes leave is filled up by a comment.
fn pool_globally(node: &mut [u8]) -> Option<()> {
    let mut new = Vec::with_capacity(node.len());
    let mut before = Message { reader: &mut Cursor::new(&*node), left: node.len() as u64 };
    let copied = before.fields(|message, number, value| match number {
        proto::INPUT | proto::OUTPUT | proto::NAME | proto::DOMAIN => message.copy_field(number, *value, &mut new),
        _ => Ok(false),
    });
    copied.ok()?;
    put_bytes(&mut new, proto::OPERATOR, OPERATOR);
    // The comment's length takes two bytes, whatever it is.
    let comment = node.len().checked_sub(new.len() + 3).filter(|&length| length < 1 << 14)?;
    new.extend([(proto::DOC_STRING << 3) as u8 | BYTES, comment as u8 | 0x80, (comment >> 7) as u8]);
    new.resize(node.len(), b' ');
    node.copy_from_slice(&new);
    Some(())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::runtime::onnx::parts::{node, with_integer, with_integers};
    use crate::runtime::test_graphs::{fixture, value, with_text, write_model};

    fn graph(model: &str) -> PathBuf {
        fixture(model).join("model.onnx")
    }

    #[test]
    fn a_pool_that_is_wider_than_any_picture_is_rewritten_in_its_place() {
        let path = graph("tiny-wide-pool");
        let before = std::fs::read(&path).unwrap();
        let after = without_wide_pools(&path, None, 1280).unwrap().unwrap();
        assert_eq!(after.len(), before.len());
        let rewritten = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(rewritten.path(), &after).unwrap();
        let (read_before, read_after) = (OnnxFile::read(&path).unwrap(), OnnxFile::read(rewritten.path()).unwrap());
        assert_eq!((read_before.unpadded_pools.len(), read_after.unpadded_pools.len()), (1, 0));
        assert_eq!(read_before.parameters, read_after.parameters, "the rest can still be read");
        assert!(after.windows(OPERATOR.len()).any(|window| window == OPERATOR));
    }

    #[test]
    fn padding_that_is_said_not_to_be_set_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let is_rewritten = |padding: &str| {
            let pool = with_text(node("AveragePool", &["x"], &["out"], None), "auto_pad", padding);
            let pool = with_integers(with_integer(pool, "ceil_mode", 1), "kernel_shape", &[1280; 2]);
            write_model(folder.path(), &[pool], &[], &[value("x", &[1, 3, 7, 7])], &[value("out", &[1, 3, 1, 1])], 20);
            without_wide_pools(&folder.path().join("model.onnx"), None, 1280).unwrap().is_some()
        };
        assert!(is_rewritten("NOTSET"));
        assert!(!is_rewritten("SAME_UPPER"));
    }

    #[test]
    fn a_pool_that_may_be_narrower_than_a_picture_is_left_alone() {
        assert_eq!(without_wide_pools(&graph("tiny-wide-pool"), None, 1281).unwrap(), None);
        assert_eq!(without_wide_pools(&graph("tiny-classifier"), None, 1).unwrap(), None);
    }

    #[test]
    fn a_pool_over_a_sequence_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let pool = with_integer(node("AveragePool", &["x"], &["out"], None), "ceil_mode", 1);
        let pool = with_integers(with_integers(pool, "kernel_shape", &[784]), "strides", &[784]);
        write_model(folder.path(), &[pool], &[], &[value("x", &[1, 3, 3136])], &[value("out", &[1, 3, 4])], 20);
        assert_eq!(without_wide_pools(&folder.path().join("model.onnx"), None, 224).unwrap(), None);
    }

    #[test]
    fn a_node_without_room_is_left_alone() {
        let mut node = *b"\x0a\x01x\x12\x01y\x22\x0bAveragePool";
        let before = node;
        assert_eq!((pool_globally(&mut node), node), (None, before));
    }
}
