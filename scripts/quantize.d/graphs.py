"""ONNX graphs: reading and checking the plain one, quantising it, and running both."""

import contextlib
import importlib.metadata
import json
import logging
import os
import platform
import sys
from pathlib import Path
from unittest import mock

import nncf
import onnx
import onnx.version_converter
import onnxruntime
from errors import Refused
from onnx import TensorProto

FULL = TensorProto.FLOAT
HALF_TYPES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
QUANTIZED = {
    "ConvInteger", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "MatMulNBits", "QLinearConv",
    "QLinearMatMul", "QuantizeLinear",
}  # fmt: skip
ATTENTION = {"Attention", "MultiHeadAttention"}
#: Weights with a scale per channel need it.
OPSET = 13
#: What protobuf can hold.
LARGEST = 2**31
#: What the graph's answer may be called, in the server's order; a graph's only output may have any name.
OUTPUTS = {False: ("logits",), True: ("image_embeds", "pooler_output")}
CPU, OPENVINO = "CPUExecutionProvider", "OpenVINOExecutionProvider"


class Graph:
    """The plain graph, found fit for quantisation, and the names of its input and its answer."""

    def __init__(self, file: Path, is_dual_encoder: bool, size: tuple):
        self.model, self.external_files = load(file)
        check_types(self.model, file.name)
        self.input = input_name(self.model, file.name, [3, *size])
        self.output = output_name(self.model, file.name, OUTPUTS[is_dual_encoder])


def load(file: Path) -> tuple:
    """The model with its weights, and the files beside it that these were in."""
    try:
        model = onnx.load(file, load_external_data=False)
    except Exception as error:
        raise Refused(f"{file} is no whole ONNX file; fetch or export it again ({first_line(error)})") from error
    external = external_files(file, model)
    size = file.stat().st_size + sum(path.stat().st_size for path in external)
    if size >= LARGEST:
        raise Refused(
            f"{file.name} has {size / 2**30:.1f} GiB with its external data; from 2 GiB on it cannot be quantised"
        )
    try:
        onnx.load_external_data_for_model(model, str(file.parent))
    except Exception as error:
        raise Refused(f"{file.name}: its external data cannot be read: {first_line(error)}") from error
    return model, external


def external_files(file: Path, model) -> list:
    names = {
        entry.value
        for tensor in model.graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    files = [file.parent / name for name in sorted(names)]
    for external in files:
        if not external.is_file():
            raise Refused(f"{file.name}: its external data {external.name} is missing; it belongs beside the graph")
    return files


def check_types(model, name: str) -> None:
    types = {tensor.data_type for tensor in model.graph.initializer}
    types |= {value.type.tensor_type.elem_type for value in model.graph.input}
    if types.intersection(HALF_TYPES):
        raise Refused(f"{name} is in half precision (float16 or bfloat16); int8 is made of the f32 graph")
    quantized = sorted(QUANTIZED.intersection(node.op_type for node in model.graph.node))
    if quantized:
        raise Refused(f"{name} is quantised already (it has {quantized[0]} nodes); int8 is made of the f32 graph")


def input_name(model, name: str, shape: list) -> str:
    """The graph's only input, if it takes images of `shape` in batches of any size."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs)
        raise Refused(f"{name} must have one input, pixel_values; it has: {names}")
    tensor = inputs[0].type.tensor_type
    if tensor.elem_type != FULL or len(tensor.shape.dim) != 4:
        raise Refused(f"{name}: its input {inputs[0].name} must be float [batch, 3, height, width]")
    # 0 where a dimension is left open.
    batch, *sides = (dim.dim_value for dim in tensor.shape.dim)
    if batch:
        raise Refused(f"{name} takes batches of {batch} only; export it again with an open batch (dynamic axes)")
    if any(side not in (0, wanted) for side, wanted in zip(sides, shape)):
        raise Refused(f"{name} takes {sides}, but the image processor makes {shape}")
    return inputs[0].name


def output_name(model, name: str, wanted: tuple) -> str:
    names = [value.name for value in model.graph.output]
    for output in wanted:
        if output in names:
            return output
    if len(names) == 1:
        return names[0]
    raise Refused(f"{name} must have the output {' or '.join(wanted)}; it has: {', '.join(names)}")


def quantize(graph: Graph, processor, pixels: list) -> tuple:
    """The int8 graph, as QuantizeLinear and DequantizeLinear around what is quantised, and how it was made.

    Weights are symmetric with a scale per channel, which providers fuse into int8 kernels. Activations are symmetric
    too, but for transformers, whose are lopsided."""
    model = with_opset(graph.model)
    transformer = is_transformer(model)
    nncf.set_log_level(logging.ERROR)
    # Its progress bars are no result.
    with contextlib.redirect_stdout(sys.stderr), sessions_of_nncf():
        quantized = nncf.quantize(
            model,
            nncf.Dataset(pixels, lambda image: {graph.input: processor.tensor(image)}),
            preset=nncf.QuantizationPreset.MIXED if transformer else nncf.QuantizationPreset.PERFORMANCE,
            model_type=nncf.ModelType.TRANSFORMER if transformer else None,
            subset_size=len(pixels),
            # Slower to make, no slower to run, and closer: EfficientNet-Lite0 was 0.12 off in its logits, not 0.18.
            fast_bias_correction=False,
        )
    method = {
        "format": "QDQ",
        "weights": "int8, symmetric, per channel",
        "activations": "8 bits, asymmetric, with SmoothQuant" if transformer else "8 bits, symmetric",
    }
    return quantized, method


@contextlib.contextmanager
def sessions_of_nncf():
    """NNCF makes its own sessions, and cannot be told how. These too get as many threads as there are cores for them.
    They go without the last level of optimisation: where a convolution is summed with another one, it loses outputs
    that NNCF needs, and the session cannot be made (ONNX Runtime 1.24 and 1.32)."""
    make_options = onnxruntime.SessionOptions

    def options():
        made = make_options()
        made.intra_op_num_threads = usable_cores()
        made.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        return made

    with mock.patch.object(onnxruntime, "SessionOptions", options):
        yield


def with_opset(model):
    """The model, of an operator set that has scales per channel, and with that set's entry first, where NNCF looks."""
    if default_opset(model).version < OPSET:
        try:
            model = onnx.version_converter.convert_version(model, OPSET)
        except Exception as error:
            raise Refused(
                f"the graph is of operator set {default_opset(model).version}, and ONNX cannot turn it into {OPSET}; "
                f"export it again with {OPSET} or newer ({first_line(error)})"
            ) from error
    default = default_opset(model)
    others = [(entry.domain, entry.version) for entry in model.opset_import if entry != default]
    entries = [onnx.helper.make_opsetid(*entry) for entry in ((default.domain, default.version), *others)]
    del model.opset_import[:]
    model.opset_import.extend(entries)
    return model


def default_opset(model):
    return next(entry for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def is_transformer(model) -> bool:
    """It has attention: a softmax in its midst, or one node for the whole of it."""
    outputs = {value.name for value in model.graph.output}
    return any(
        node.op_type in ATTENTION or (node.op_type == "Softmax" and not outputs.intersection(node.output))
        for node in model.graph.node
    )


def session(file: Path, provider: str):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = usable_cores()
    settings = {}
    if provider == OPENVINO:
        # Its default is bf16 where the processor has it, which is a loss of its own and not int8's.
        hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": str(usable_cores())}
        settings = {"device_type": "CPU", "load_config": json.dumps({"CPU": hints})}
    try:
        made = onnxruntime.InferenceSession(file, options, providers=[(provider, settings)])
    except Exception as error:
        raise Refused(f"ONNX Runtime cannot load {file.name} with {provider}: {first_line(error)}") from error
    # A provider that fails is replaced by the plain one in silence.
    if provider not in made.get_providers():
        raise Refused(f"ONNX Runtime cannot load {file.name} with {provider}")
    return made


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def providers() -> list:
    """Those of the server that this ONNX Runtime has; the plain one is first."""
    return [CPU, *(provider for provider in (OPENVINO,) if provider in onnxruntime.get_available_providers())]


def versions() -> dict:
    packages = ("nncf", "onnx", "onnxruntime-openvino", "onnxruntime", "numpy", "pillow")
    found = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
