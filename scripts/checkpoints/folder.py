"""The model folder: written beside its final place, and moved there only when it is whole and right."""

import contextlib
import json
import os
import shutil
from pathlib import Path

from .checkpoint import Checkpoint
from .errors import Refused


@contextlib.contextmanager
def appearing(folder: Path, force: bool):
    """A hidden sibling to write to, renamed to `folder` if the block ends well and removed if it does not."""
    folder = folder.absolute()
    if folder.exists() and not force:
        raise Refused(f"{folder} exists already; --force replaces it")
    if folder.exists() and not folder.is_dir():
        raise Refused(f"{folder} is not a folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    partial.mkdir()
    try:
        yield partial
        put_in_place(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def put_in_place(partial: Path, folder: Path) -> None:
    replaced = folder.with_name(f".{folder.name}.replaced-{os.getpid()}")
    if folder.exists():
        folder.rename(replaced)
    partial.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)


def write_files(checkpoint: Checkpoint, folder: Path) -> None:
    """config.json with what split graphs do not hold, and the processor's and tokenizer's files as they were."""
    config = dict(checkpoint.config)
    if checkpoint.is_dual_encoder:
        # The factor itself, not its logarithm.
        config["logit_scale"] = checkpoint.model.logit_scale.detach().exp().item()
        if hasattr(checkpoint.model, "logit_bias"):
            config["logit_bias"] = checkpoint.model.logit_bias.detach().item()
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    for name, content in checkpoint.files.items():
        (folder / name).write_bytes(content)
