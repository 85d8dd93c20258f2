"""A model folder that lets the server's pixels be seen: its "logits" are the values of pixel_values, in a row."""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def write(folder: Path, model_folder: Path, shape: tuple) -> None:
    """A probe for `pixel_values` of `shape` [3, height, width], with the image processor of `model_folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    processor = (model_folder / "preprocessor_config.json").read_bytes()
    (folder / "preprocessor_config.json").write_bytes(processor)
    # ViT's file names no class; then model_type does.
    model_type = json.loads((model_folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    named = {"image_processor_type", "feature_extractor_type"} & json.loads(processor).keys()
    config = {"architectures": ["PixelProbe"], **({} if named else {"model_type": model_type})}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    onnx.save_model(graph(shape), folder / "model.onnx")


def graph(shape: tuple):
    count = int(np.prod(shape))
    node = helper.make_node("Reshape", ["pixel_values", "flat"], ["logits"])
    flat = numpy_helper.from_array(np.array([-1, count], np.int64), "flat")
    pixels = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch_size", *shape])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch_size", count])
    probe = helper.make_graph([node], "pixel_probe", [pixels], [logits], [flat])
    # Versions that older ONNX Runtimes read too.
    return helper.make_model(probe, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
