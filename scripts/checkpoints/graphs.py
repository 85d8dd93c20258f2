"""From torch modules to ONNX graphs: traced, tidied, checked, and run at two batch sizes."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

from .checkpoint import Checkpoint
from .errors import Refused

OPSET = 17
#: A protobuf holds 2 GiB at most; what is bigger keeps its weights beside the graph.
LARGEST_PROTOBUF = 2**31 - 2**24
BATCHES = (1, 3)


@dataclass
class Tower:
    """One graph: the module to trace, and the names that go over its edge."""

    file: str
    module: torch.nn.Module
    input: str
    sample: torch.Tensor
    #: Dynamic axes of the input.
    axes: dict
    output: str


class Logits(torch.nn.Module):
    """pixel_values → logits."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return self.model(pixel_values=pixel_values).logits


class ImageEmbedding(torch.nn.Module):
    """pixel_values → image_embeds, projected but not normalised."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return self.model.get_image_features(pixel_values=pixel_values).pooler_output


class TextEmbedding(torch.nn.Module):
    """input_ids → text_embeds, projected but not normalised. Neither family needs a mask: CLIP's attention is causal
    and pools at the end token, SigLIP's texts are padded to one length and the padding is attended to."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids):
        return self.model.get_text_features(input_ids=input_ids).pooler_output


def towers(checkpoint: Checkpoint, pixel_values: torch.Tensor, input_ids: torch.Tensor = None) -> list:
    """The graphs that the checkpoint's folder needs. Samples are real inputs, so height and width are theirs."""
    batch = {0: "batch_size"}
    image = {"input": "pixel_values", "sample": pixel_values, "axes": batch}
    if not checkpoint.is_dual_encoder:
        return [Tower("model.onnx", Logits(checkpoint.model), **image, output="logits")]
    # SigLIP pools the last position, so its texts have one length only.
    text_axes = batch if checkpoint.config["model_type"] == "siglip" else {**batch, 1: "sequence_length"}
    return [
        Tower("vision_model.onnx", ImageEmbedding(checkpoint.model), **image, output="image_embeds"),
        Tower("text_model.onnx", TextEmbedding(checkpoint.model), "input_ids", input_ids, text_axes, "text_embeds"),
    ]


def export(tower: Tower, folder: Path, precision: str, external_data: bool) -> Path:
    """Writes the tower's graph into the folder, and proves that it loads and that its batch axis is free."""
    file = folder / tower.file
    trace(tower, file)
    model = onnx.load(file)
    remove_traces(folder, file)
    pool_globally(model)
    if precision == "f16":
        model = to_f16(model)
    save(model, file, external_data)
    onnx.checker.check_model(str(file), full_check=True)
    prove_batches(tower, file)
    return file


def trace(tower: Tower, file: Path) -> None:
    # The exporter ends by putting back the mode it found, for all that is inside the module.
    tower.module.eval()
    with warnings.catch_warnings(), torch.no_grad():
        # The tracer warns about every shape it takes for constant; whether one was wrong is measured afterwards.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            tower.module, (tower.sample,), str(file), dynamo=False, opset_version=OPSET, do_constant_folding=True,
            input_names=[tower.input], output_names=[tower.output],
            dynamic_axes={tower.input: tower.axes, tower.output: {0: "batch_size"}},
        )  # fmt: skip


def remove_traces(folder: Path, file: Path) -> None:
    """Above 2 GB torch writes a file per tensor; all of them have been read."""
    model = onnx.load(file, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                (folder / entry.value).unlink(missing_ok=True)
    file.unlink()


def pool_globally(model) -> None:
    """AveragePool over everything → GlobalAveragePool.

    EfficientNet's head pools with a kernel of hidden_dim×hidden_dim, far beyond its 7×7 values. OpenVINO refuses or
    crawls there, and ONNX Runtime 1.24 divides by the kernel's size, which makes every logit nearly 0."""
    sides = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim][2:]
    for node in model.graph.node:
        if node.op_type != "AveragePool":
            continue
        attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        # What is as large as the image is larger than anything made of it.
        if min(attributes["kernel_shape"]) >= max(sides) and not any(attributes.get("pads", [])):
            node.op_type = "GlobalAveragePool"
            del node.attribute[:]


def to_f16(model):
    """Weights and arithmetic in float16; inputs and outputs stay float32, as in the Hub's _fp16 graphs."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    with warnings.catch_warnings():
        # It reports every weight that is rounded to zero.
        warnings.simplefilter("ignore")
        converted = convert_float_to_float16(model, keep_io_types=True, disable_shape_infer=True)
    # The casts at the edges were put last, where the standard wants nodes in the order of their work.
    OnnxModel(converted).topological_sort()
    return converted


def save(model, file: Path, external_data: bool) -> None:
    if not external_data and model.ByteSize() < LARGEST_PROTOBUF:
        onnx.save_model(model, file)
        return
    onnx.save_model(
        model, file, save_as_external_data=True, all_tensors_to_one_file=True, location=f"{file.name}_data",
        size_threshold=1024,
    )  # fmt: skip


def session(file: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise Refused(f"{file.name} does not load in ONNX Runtime: {error}") from error


def prove_batches(tower: Tower, file: Path) -> None:
    """A batch axis that is dynamic by name only fails here, or gives other rows than a batch of one does."""
    run = session(file)
    sample = tower.sample[:1].numpy()
    rows = {}
    for size in BATCHES:
        (output,) = run.run([tower.output], {tower.input: np.repeat(sample, size, axis=0)})
        if output.ndim != 2 or output.shape[0] != size:
            raise Refused(f"{file.name}: {tower.output} has shape {list(output.shape)} for a batch of {size}")
        rows[size] = output
    single, several = rows[BATCHES[0]], rows[BATCHES[1]]
    difference = float(np.abs(several - single).max())
    if difference > 1e-3 * max(1.0, float(np.abs(single).max())):
        raise Refused(
            f"{file.name}: a batch of {BATCHES[1]} gives other answers than a batch of 1 ({difference:.2g} apart)"
        )
