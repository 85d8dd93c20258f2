"""ONNX Runtime against PyTorch, on photos that go through the new folder's own files."""

from pathlib import Path

import numpy as np
import torch

from . import graphs
from .checkpoint import Checkpoint
from .errors import Refused

PROMPTS = ("a photo of a cat", "a photo of a dog", "a cup of coffee on a table", "a rocket", "grüne Wiese", "2")

#: Largest difference as a share of the largest value: f32 rounds differently from kernel to kernel; f16 has 11 bits.
SHARE = {"f32": 1e-4, "f16": 2e-2}


def compare(
    checkpoint: Checkpoint, folder: Path, pixel_values: torch.Tensor, input_ids, unpadded: list, precision: str
) -> list:
    """Lines about each output's largest difference; `unpadded` has each prompt at its own length, which the graph was not traced with.

    Raises Refused if one is past both 1e-4 and its share of the largest value."""
    images = run(folder, "vision_model.onnx" if checkpoint.is_dual_encoder else "model.onnx", pixel_values)
    if not checkpoint.is_dual_encoder:
        with torch.no_grad():
            expected = checkpoint.model(pixel_values=pixel_values).logits.numpy()
        check_labels(checkpoint, expected.shape[1])
        return [judge("logits", images, expected, precision)]
    texts = run(folder, "text_model.onnx", input_ids)
    texts_unpadded = np.concatenate([run(folder, "text_model.onnx", ids) for ids in unpadded])
    with torch.no_grad():
        embed = checkpoint.model.get_text_features
        expected_unpadded = np.concatenate([embed(input_ids=ids).pooler_output.numpy() for ids in unpadded])
        image_embeds = checkpoint.model.get_image_features(pixel_values=pixel_values).pooler_output.numpy()
        text_embeds = embed(input_ids=input_ids).pooler_output.numpy()
        whole = checkpoint.model(pixel_values=pixel_values, input_ids=input_ids).logits_per_image.numpy()
    return [
        judge("image_embeds", images, image_embeds, precision),
        judge("text_embeds", texts, text_embeds, precision),
        judge("text_embeds of unpadded prompts", texts_unpadded, expected_unpadded, precision),
        judge("logits_per_image", scaled_cosines(images, texts, checkpoint.model), whole, precision),
    ]


def run(folder: Path, file: str, inputs: torch.Tensor) -> np.ndarray:
    session = graphs.session(folder / file)
    name = session.get_inputs()[0].name
    rows = [session.run(None, {name: row[None]})[0] for row in inputs.numpy()]
    return np.concatenate(rows)


def scaled_cosines(images: np.ndarray, texts: np.ndarray, model) -> np.ndarray:
    """What the server computes from split towers."""
    images = images / np.linalg.norm(images, axis=1, keepdims=True)
    texts = texts / np.linalg.norm(texts, axis=1, keepdims=True)
    bias = model.logit_bias.item() if hasattr(model, "logit_bias") else 0.0
    return model.logit_scale.exp().item() * images @ texts.T + bias


def check_labels(checkpoint: Checkpoint, width: int) -> None:
    labels = len(checkpoint.config.get("id2label") or {})
    if labels != width:
        raise Refused(
            f"{checkpoint.name}: the model gives {width} logits, but id2label in config.json has {labels} labels"
        )


def judge(name: str, found: np.ndarray, expected: np.ndarray, precision: str) -> str:
    difference, largest = float(np.abs(found - expected).max()), float(np.abs(expected).max())
    limit = max(1e-4, SHARE[precision] * largest)
    sizes = f"over {len(expected)} inputs; values up to {largest:.3g}, limit {limit:.2g}"
    line = f"{name}: {difference:.2g} apart at most, {sizes}"
    # Not `>`, which NaN would pass.
    if not difference <= limit:
        raise Refused(f"ONNX Runtime and PyTorch disagree: {line}")
    return line
