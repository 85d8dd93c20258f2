"""The architectures of checkpoints.json with random weights that tell images apart, the same for the same seed."""

import json
import math
from pathlib import Path

import numpy as np
import torch
import transformers

from . import clip_vocabulary, photos, tokenizers_of
from .checkpoint import Checkpoint
from .errors import Refused

FILE = Path(__file__).with_name("checkpoints.json")

#: exp(logit_scale) at which CLIP's training is clamped, and all of OpenAI's checkpoints ended.
CLIP_LOGIT_SCALE = math.log(100)
#: As in google/siglip-so400m-patch14-384. transformers starts both at 0, where neither would be missed if it were lost.
SIGLIP_LOGIT_SCALE, SIGLIP_LOGIT_BIAS = 4.7215, -12.9
#: Of the classifiers here; and how far their logits should spread, as a standard deviation.
LABELS, SPREAD = 1000, 2.5
#: How many pictures give the statistics.
PICTURES = 16


def checkpoint_ids() -> list:
    return [entry["id"] for entry in read_entries()]


def read_entries() -> list:
    return json.loads(FILE.read_text(encoding="utf-8"))["checkpoints"]


def find_entry(name: str) -> dict:
    for entry in read_entries():
        if entry["id"] == name:
            return entry
    raise Refused(f"{name}: random weights can be had for {', '.join(checkpoint_ids())}")


def build(name: str, seed: int) -> Checkpoint:
    """The checkpoint `name` of checkpoints.json, with weights drawn from `seed`."""
    entry = find_entry(name)
    torch.manual_seed(seed)
    config = getattr(transformers, entry["config_class"])(**entry["config"])
    config.architectures = [entry["model_class"]]
    # Eager attention exports to the plain MatMul and Softmax that ONNX Runtime fuses.
    config._attn_implementation = "eager"
    model = getattr(transformers, entry["model_class"])(config)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if parameters != entry["parameters"]:
        raise Refused(f"{name}: {parameters} parameters came out, not {entry['parameters']}; the architecture differs")
    make_usable(model, entry)
    files = {"preprocessor_config.json": json.dumps(entry["preprocessor_config"], indent=2).encode() + b"\n"}
    files.update(tokenizer_files(config.model_type))
    return Checkpoint(name, model.eval(), json.loads(config.to_json_string(use_diff=False)), files)


def make_usable(model, entry: dict) -> None:
    """transformers' own initial values leave some models blind (BatchNorm weights near 0 make every logit the same) and
    give others nearly equal scores for all labels."""
    if entry["model_class"] == "CLIPModel":
        model.logit_scale.data.fill_(CLIP_LOGIT_SCALE)
    elif entry["model_class"] == "SiglipModel":
        model.logit_scale.data.fill_(SIGLIP_LOGIT_SCALE)
        model.logit_bias.data.fill_(SIGLIP_LOGIT_BIAS)
    else:
        pictures = calibration_pictures(entry)
        calibrate_norms(model, pictures)
        spread_logits(model, pictures)


def calibration_pictures(entry: dict) -> torch.Tensor:
    """Pictures with the statistics of photos; with those of white noise, the activations of photos explode."""
    side = entry["input_side"]
    pictures = np.stack([np.asarray(photos.made_up(seed, side, side)) for seed in range(PICTURES)])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div(255).sub(0.45).div(0.226).contiguous()


def calibrate_norms(model, pictures: torch.Tensor) -> None:
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    if not norms:
        return
    model.eval()
    for norm in norms:
        torch.nn.init.ones_(norm.weight)
        norm.momentum = None  # the plain mean over what it sees
        norm.reset_running_stats()
        norm.train()
    with torch.no_grad():
        model(pixel_values=pictures)


def spread_logits(model, pictures: torch.Tensor) -> None:
    """Scales the heads so that logits differ as a trained model's do, whatever the initialiser's scale was."""
    heads = [
        module for module in model.modules() if isinstance(module, torch.nn.Linear) and module.out_features == LABELS
    ]
    for head in heads:
        torch.nn.init.normal_(head.weight, std=0.1)
        torch.nn.init.zeros_(head.bias)
    model.eval()
    with torch.no_grad():
        factor = SPREAD / model(pixel_values=pictures).logits.std(dim=1).mean()
        for head in heads:
            head.weight.mul_(factor)


def tokenizer_files(model_type: str) -> dict:
    if model_type == "clip":
        return clip_vocabulary.tokenizer_files()
    if model_type == "siglip":
        return tokenizers_of.siglip_stand_in()
    return {}
