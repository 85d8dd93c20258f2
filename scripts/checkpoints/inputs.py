"""A folder's own files at work: transformers' image processor and tokenizer, as its pipelines use them."""

import io
from pathlib import Path

import torch
import transformers
from PIL import Image
from transformers.image_utils import load_image

from .errors import Refused

SIGLIP_TEXT = {"padding": "max_length", "max_length": 64, "truncation": True}
CLIP_TEXT = {"padding": True}


def image_processor(folder: Path):
    """The torchvision-backed processor, which is transformers' default and the reference."""
    try:
        return transformers.AutoImageProcessor.from_pretrained(folder, backend="torchvision", local_files_only=True)
    except Exception as error:
        cause = str(error)[:200]
        raise Refused(f"preprocessor_config.json: transformers cannot use it: {cause}") from error


def tokenizer(folder: Path, model_type: str):
    if model_type == "clip":
        return transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    if (folder / "spiece.model").is_file():
        return transformers.SiglipTokenizer.from_pretrained(folder, local_files_only=True)
    return transformers.PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def pixels(processor, images: list) -> torch.Tensor:
    """Images, as bytes, one after the other, because a batch of different sizes takes another path through resizing."""
    tensors = [processor(images=load_image(open_image(image)), return_tensors="pt").pixel_values for image in images]
    return torch.cat(tensors)


def open_image(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def token_ids(text_tokenizer, model_type: str, prompts: list) -> torch.Tensor:
    options = SIGLIP_TEXT if model_type == "siglip" else CLIP_TEXT
    return text_tokenizer(prompts, return_tensors="pt", **options).input_ids
