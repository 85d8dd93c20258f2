"""What transformers answers: its pipelines, on the bytes that the server gets too."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers

from . import inputs
from .checkpoint import Checkpoint

LABELS = (
    "a cat",
    "a dog",
    "a cup of coffee",
    "a rocket",
    "a motorcycle",
    "flowers",
    "two people",
    "an Ünïcode label, no. 7",
)

#: hypothesis_template of each question: labels as they are, the pipeline's default, and an ensemble.
QUESTIONS = (
    ("{}",),
    ("This is a photo of {}.",),
    ("a photo of {}.", "a drawing of {}", "itap of my {}!", "a close-up of {}"),
)


@dataclass
class Answer:
    """For one photo: pixel_values [3, height, width], and a row per question (a classifier has one) of each label's
    value, which is the logit, or for zero-shot the score's logarithm, and score."""

    pixels: np.ndarray
    values: np.ndarray
    scores: np.ndarray


class ClassifierReference:
    """The image-classification pipeline."""

    def __init__(self, checkpoint: Checkpoint, folder: Path):
        self.model = checkpoint.model
        self.processor = inputs.image_processor(folder)
        self.pipeline = transformers.pipeline("image-classification", model=self.model, image_processor=self.processor)

    def answer(self, content: bytes) -> Answer:
        prepared = self.pipeline.preprocess(inputs.open_image(content))
        return self.answer_to(prepared["pixel_values"], self.pipeline._forward(prepared)["logits"])

    def answer_pixels(self, pixels: np.ndarray) -> Answer:
        """The model's answer to pixels that somebody else made."""
        pixel_values = torch.from_numpy(pixels)[None]
        return self.answer_to(pixel_values, self.model(pixel_values=pixel_values).logits)

    def answer_to(self, pixel_values: torch.Tensor, logits: torch.Tensor) -> Answer:
        return Answer(pixel_values[0].numpy(), logits.numpy(), logits.double().softmax(dim=-1).numpy())


class ZeroShotReference:
    """The zero-shot-image-classification pipeline; ensembles, which it does not know, as in the CLIP paper."""

    def __init__(self, checkpoint: Checkpoint, folder: Path):
        self.model, self.model_type = checkpoint.model, checkpoint.config["model_type"]
        self.processor = inputs.image_processor(folder)
        self.tokenizer = inputs.tokenizer(folder, self.model_type)
        self.pipeline = transformers.pipeline(
            "zero-shot-image-classification", model=self.model, image_processor=self.processor, tokenizer=self.tokenizer
        )
        self.embeddings = {templates: self.label_embeddings(templates) for templates in QUESTIONS}

    def label_embeddings(self, templates: tuple) -> torch.Tensor:
        """The mean of the normalised embeddings of a label's prompts, normalised again."""
        rows = []
        for label in LABELS:
            prompts = [template.format(label) for template in templates]
            ids = inputs.token_ids(self.tokenizer, self.model_type, prompts)
            embeddings = normalized(self.model.get_text_features(input_ids=ids).pooler_output)
            rows.append(normalized(embeddings.mean(dim=0)))
        return torch.stack(rows)

    def answer(self, content: bytes) -> Answer:
        pixel_values = inputs.pixels(self.processor, [content])
        image = self.image_embedding(pixel_values)
        return self.answer_to(pixel_values, [self.pipeline_logits(content, image, question) for question in QUESTIONS])

    def pipeline_logits(self, content: bytes, image: torch.Tensor, templates: tuple) -> torch.Tensor:
        if len(templates) > 1:
            return self.logits(image, templates)
        prepared = self.pipeline.preprocess(inputs.open_image(content), list(LABELS), templates[0])
        return self.pipeline._forward(prepared)["logits"][0]

    def answer_pixels(self, pixels: np.ndarray) -> Answer:
        """The model's answer to pixels that somebody else made."""
        pixel_values = torch.from_numpy(pixels)[None]
        image = self.image_embedding(pixel_values)
        return self.answer_to(pixel_values, [self.logits(image, question) for question in QUESTIONS])

    def image_embedding(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return normalized(self.model.get_image_features(pixel_values=pixel_values).pooler_output)

    def logits(self, image: torch.Tensor, templates: tuple) -> torch.Tensor:
        logits = self.model.logit_scale.exp() * image @ self.embeddings[templates].T
        return (logits + getattr(self.model, "logit_bias", 0.0))[0]

    def answer_to(self, pixel_values: torch.Tensor, rows: list) -> Answer:
        logits = torch.stack(rows).double()
        is_siglip = self.model_type == "siglip"
        values = torch.nn.functional.logsigmoid(logits) if is_siglip else logits.log_softmax(dim=-1)
        return Answer(pixel_values[0].numpy(), values.numpy(), values.exp().numpy())


def normalized(embeddings: torch.Tensor) -> torch.Tensor:
    return embeddings / embeddings.norm(dim=-1, keepdim=True)
