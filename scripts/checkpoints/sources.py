"""Where a checkpoint comes from: a local transformers folder, the Hub, or random weights."""

import json
from pathlib import Path

import torch
import transformers

from . import tokenizers_of
from .checkpoint import Checkpoint, check_processor, is_dual_encoder, model_class_name
from .errors import Refused

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt", "spiece.model",
)  # fmt: skip
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def looks_like_a_folder(name: str) -> bool:
    """Is this a path, rather than a Hub id such as microsoft/resnet-50?"""
    return Path(name).is_dir() or name.startswith(("/", "./", "../", "~")) or name.count("/") > 1


def from_hub(name: str, revision: str | None = None) -> Checkpoint:
    """Downloads what an export needs of a Hub repository, and opens it."""
    from huggingface_hub import snapshot_download

    texts = ["config.json", *PROCESSOR_FILES, *TOKENIZER_FILES]
    try:
        folder = snapshot_download(name, revision=revision, allow_patterns=[*texts, "model*.safetensors*"])
        if not any((Path(folder) / file).is_file() for file in WEIGHTS):
            folder = snapshot_download(name, revision=revision, allow_patterns=[*texts, "pytorch_model*.bin*"])
    except Exception as error:
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise Refused(
            f"{name} cannot be downloaded: {cause}. Give a local transformers folder instead, "
            "or --random-weights SEED for the same architecture without trained weights"
        ) from error
    return from_folder(Path(folder), name)


def from_folder(folder: Path, name: str | None = None) -> Checkpoint:
    """Opens config.json, the weights, the processor and the tokenizer of a transformers folder."""
    if not folder.is_dir():
        raise Refused(f"{folder}: there is no such folder")
    config = read_json(folder / "config.json")
    class_name = model_class_name(config, str(folder / "config.json"))
    if not any((folder / file).is_file() for file in PROCESSOR_FILES):
        raise Refused(
            f"{folder}: preprocessor_config.json is missing (and processor_config.json too); it says how images "
            "become tensors. Copy it from the checkpoint that this one was trained from"
        )
    if not any((folder / file).is_file() for file in WEIGHTS):
        raise Refused(f"{folder}: model.safetensors is missing (and {', '.join(WEIGHTS[1:])} too)")
    files = read_files(folder, PROCESSOR_FILES)
    for file in files:
        check_processor(read_json(folder / file), str(folder / file))
    if is_dual_encoder(config):
        files.update(tokenizers_of.files_of(folder, config, read_files(folder, TOKENIZER_FILES)))
    model = load_model(class_name, folder)
    return Checkpoint(name or folder.name, model, completed(config, model), files)


def load_model(class_name: str, folder: Path):
    model_class = getattr(transformers, class_name, None)
    if model_class is None:
        raise Refused(f"{folder / 'config.json'}: transformers {transformers.__version__} has no class {class_name}")
    try:
        model, loading = model_class.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True,
            output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    except Exception as error:
        raise Refused(f"{folder}: the weights cannot be loaded: {error}") from error
    for key, found, wanted in sorted(loading["mismatched_keys"]):
        # transformers would go on with random values here too.
        raise Refused(f"{folder}: {key} has shape {list(found)} in the weights, but {list(wanted)} by config.json")
    missing = sorted(loading["missing_keys"])
    if missing:
        # transformers would go on with random values for these.
        raise Refused(f"{folder}: the weights lack {len(missing)} tensor(s) of {class_name}: {', '.join(missing[:5])}")
    return model.eval()


def completed(config: dict, model) -> dict:
    """config.json as it was, with labels where transformers makes them up."""
    if is_dual_encoder(config) or config.get("id2label"):
        return config
    return {**config, "id2label": {str(index): label for index, label in model.config.id2label.items()}}


def read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise Refused(f"{path.parent}: {path.name} is missing; a transformers folder has one") from error
    except ValueError as error:
        raise Refused(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise Refused(f"{path} must hold a JSON object")
    return content


def read_files(folder: Path, names) -> dict:
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}
