//! Pictures that a graph is given as bytes, a quarter of what they fill as floats: a GPU is done with a small graph sooner than a core has
//! written its floats and copied them there. What becomes of each byte is looked up in the table that preprocessing on the CPU has, so
//! the values are the same, bit by bit.

use std::io;
use std::path::Path;

use super::weights_in_file::Slim;
use crate::runtime::onnx::file::Dimension;
use crate::runtime::onnx::graph::{Graph, Model};
use crate::runtime::onnx::parts::{floats, half_floats, integers, node, value_info, with_integers};
use crate::runtime::onnx::protobuf::put_bytes;
use crate::runtime::{PixelTable, RuntimeError, onnx::proto};

/// The input of such a graph: RGB8, `[batch, height, width, 3]`.
pub const BYTE_PIXELS: &str = "byte_pixels";

/// The first version of ONNX whose `Add` broadcasts as here.
const ADD_BROADCASTS: u64 = 7;

/// The graph, which is that of the file `path`, with its pictures as bytes, of which `table` tells what they become; as it is if it has
/// not one input that may be pictures.
///
/// # Errors
/// [`RuntimeError::Graph`]: it is no whole ONNX model.
pub(super) fn with_byte_pixels(slim: Slim, path: &Path, table: &PixelTable) -> Result<Slim, RuntimeError> {
    slim.rewritten(path, |model| {
        let model = Model::read(model)?;
        let Some(pictures) = model.graph.pictures().filter(|_| model.opset >= ADD_BROADCASTS) else { return Ok(None) };
        let graph = model.graph.with_bytes_for(&pictures, table)?;
        Ok(Some(model.with_graph(&graph)))
    })
}

/// An input of floats, `[batch, 3, height, width]`.
pub(super) struct Pictures {
    pub(super) name: String,
    pub(super) element_type: u64,
    pub(super) batch: Dimension,
    height: Dimension,
    width: Dimension,
}

impl Graph {
    /// Its only input that may be pictures.
    pub(super) fn pictures(&self) -> Option<Pictures> {
        let mut found = self.inputs.iter().filter_map(|(name, input)| {
            let [batch, channels, height, width] = &input.dimensions[..] else { return None };
            let is_float = [proto::tensor::FLOAT, proto::tensor::FLOAT16].contains(&input.element_type);
            let may_be_colors = !matches!(channels, Dimension::Fixed(number) if *number != 3);
            let is_given = self.initializer(name).is_none();
            (is_float && may_be_colors && is_given).then(|| Pictures {
                name: name.clone(),
                element_type: input.element_type,
                batch: batch.clone(),
                height: height.clone(),
                width: width.clone(),
            })
        });
        let only = found.next()?;
        found.next().is_none().then_some(only)
    }

    fn with_bytes_for(&self, pictures: &Pictures, table: &PixelTable) -> io::Result<Vec<u8>> {
        let Pictures { name, element_type, batch, height, width } = pictures;
        let mut graph = self.without_input(name)?;
        let shape = [batch.clone(), height.clone(), width.clone(), Dimension::Fixed(3)];
        put_bytes(&mut graph, proto::graph::INPUT, &value_info(BYTE_PIXELS, proto::tensor::UINT8, &shape));

        let of = |what: &str| format!("{BYTE_PIXELS}/{what}");
        let [planes, numbers, starts, places, all] = ["planes", "numbers", "starts", "places", "table"].map(of);
        let (length, channels) = (table[0].len() as u64, table.len() as u64);
        // One channel after the other.
        let values = table.iter().flatten().copied();
        let values = if *element_type == proto::tensor::FLOAT16 {
            half_floats(&all, &[length * channels], values)
        } else {
            floats(&all, &[length * channels], values)
        };
        put_bytes(&mut graph, proto::graph::INITIALIZER, &values);
        let each = (0..channels).map(|channel| (channel * length) as i32);
        put_bytes(&mut graph, proto::graph::INITIALIZER, &integers(&starts, &[channels, 1, 1], each));
        let to_planes = with_integers(node("Transpose", &[BYTE_PIXELS], &[&planes], None), "perm", &[0, 3, 1, 2]);
        let nodes = [
            to_planes,
            node("Cast", &[&planes], &[&numbers], Some(("to", proto::tensor::INT32))),
            node("Add", &[&numbers, &starts], &[&places], None),
            node("Gather", &[&all, &places], &[name], Some(("axis", 0))),
        ];
        for node in &nodes {
            put_bytes(&mut graph, proto::graph::NODE, node);
        }
        for tensor in &self.initializers {
            put_bytes(&mut graph, proto::graph::INITIALIZER, &tensor.bytes);
        }
        for node in &self.nodes {
            put_bytes(&mut graph, proto::graph::NODE, &node.bytes);
        }
        Ok(graph)
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use ndarray::{ArrayD, IxDyn};
    use ort::value::TensorElementType;

    use super::*;
    use crate::runtime::test_graphs::fixture;
    use crate::runtime::{Graph as OpenGraph, Runtime, SessionOptions, Tensor};

    const SIDE: usize = 8;

    /// Another value for each byte of each channel.
    fn table() -> Arc<PixelTable> {
        let value = |channel: usize, byte: usize| (byte as f32 - 100.0) / (50.0 + channel as f32);
        Arc::new(std::array::from_fn(|channel| std::array::from_fn(|byte| value(channel, byte))))
    }

    fn open(file: &str, pixel_table: Option<Arc<PixelTable>>) -> OpenGraph {
        let options = SessionOptions { pixel_table, ..SessionOptions::reference(SIDE, 2, PathBuf::new()) };
        OpenGraph::open(&Runtime::load(None).unwrap(), &fixture(file), &options).unwrap()
    }

    #[test]
    fn answers_to_bytes_are_those_to_the_floats_that_they_become() {
        let cases = [
            ("tiny-classifier/model.onnx", 2, "logits"),
            ("tiny-external/model.onnx", 2, "logits"),
            ("tiny-fp16/model.onnx", 2, "logits"),
            ("tiny-fixed-batch/model.onnx", 1, "logits"),
            ("tiny-combined-clip/model.onnx", 2, "image_embeds"),
        ];
        let table = table();
        for (file, batch, output) in cases {
            let byte = |index: usize| (index * 151 % 256) as u8;
            let mut next = 0..;
            let bytes = ArrayD::from_shape_simple_fn(IxDyn(&[batch, SIDE, SIDE, 3]), || byte(next.next().unwrap()));
            let floats = ArrayD::from_shape_fn(IxDyn(&[batch, 3, SIDE, SIDE]), |at| {
                table[at[1]][usize::from(bytes[[at[0], at[2], at[3], at[1]]])]
            });
            let answer = |graph: OpenGraph, name: &str, pixels: Tensor<'_>| {
                let mut inputs = vec![(name, pixels)];
                if graph.inputs().len() > 1 {
                    let text = || Tensor::I64(ArrayD::ones(IxDyn(&[1, 2])).into());
                    inputs.extend(["input_ids", "attention_mask"].map(|input| (input, text())));
                }
                graph.run(&inputs, output).unwrap()
            };
            let before = answer(open(file, None), "pixel_values", Tensor::F32(floats.into()));
            let graph = open(file, Some(Arc::clone(&table)));
            let input = graph.inputs().iter().find(|input| input.name == BYTE_PIXELS).unwrap();
            assert_eq!((input.element_type, input.shape[3]), (TensorElementType::Uint8, Some(3)), "{file}");
            assert_eq!(answer(graph, BYTE_PIXELS, Tensor::U8(bytes.into())), before, "{file}");
            assert!(before.iter().any(|value| *value != before[[0, 0]]), "{file}");
        }
    }

    #[test]
    fn dimensions_keep_their_names() {
        let sizes = [("batch", 2), ("height", SIDE), ("width", SIDE)];
        let options = SessionOptions {
            dimensions: sizes.map(|(name, size)| (name.to_owned(), size)).to_vec(),
            pixel_table: Some(table()),
            ..SessionOptions::reference(SIDE, 2, PathBuf::new())
        };
        let file = fixture("tiny-classifier/model.onnx");
        let graph = OpenGraph::open(&Runtime::load(None).unwrap(), &file, &options).unwrap();
        assert_eq!(graph.inputs()[0].shape, [Some(2), Some(SIDE), Some(SIDE), Some(3)]);
    }

    #[test]
    fn a_graph_without_pictures_is_left_alone() {
        let text = open("tiny-clip/text_model.onnx", Some(table()));
        let names: Vec<_> = text.inputs().iter().map(|input| input.name.as_str()).collect();
        assert_eq!(names, ["input_ids", "attention_mask"]);
    }
}
