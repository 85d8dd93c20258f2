"""The model folder: which graph is to be quantised, and putting the result beside it, whole or not at all."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import processor as processors
from errors import Refused

RECORD = "quantization.json"
PARTIAL = ".quantizing-"


@dataclass
class ModelFolder:
    """A folder in the layout that the server loads."""

    path: Path
    config: dict
    processor: processors.Processor
    #: The plain graph of the classifier or of the image encoder.
    graph: Path
    is_dual_encoder: bool

    def result(self, variant: str) -> Path:
        """The variant's file, where the server looks for it."""
        return self.graph.with_name(f"{self.graph.stem}_{variant}.onnx")


def open_folder(path: Path) -> ModelFolder:
    if not path.is_dir():
        raise Refused(f"{path}: there is no such model folder")
    config = read_json(path, "config.json")
    if config is None:
        raise Refused(f"{path} holds no config.json; is it a model folder?")
    graph, is_dual_encoder = find_graph(path, config)
    return ModelFolder(path, config, read_processor(path, config), graph, is_dual_encoder)


def find_graph(path: Path, config: dict) -> tuple:
    """The plain graph that sees images, at the folder's top or in onnx/, and whether it is a dual encoder's."""

    def plain(stem: str):
        candidates = (folder / f"{stem}.onnx" for folder in (path, path / "onnx"))
        return next((file for file in candidates if file.is_file()), None)

    vision, text, single = plain("vision_model"), plain("text_model"), plain("model")
    if vision is not None and text is not None:
        return vision, True
    if vision is not None or text is not None:
        there, missing = ("vision", "text") if vision is not None else ("text", "vision")
        raise Refused(f"{path}: {there}_model.onnx is there, but {missing}_model.onnx is missing")
    if single is None:
        raise Refused(
            f"{path}: model.onnx is missing, or vision_model.onnx and text_model.onnx; int8 is made of the plain graph"
        )
    architecture = (config.get("architectures") or [""])[0]
    if "text_config" in config and "ForImageClassification" not in architecture:
        raise Refused(
            f"{path}: {single.name} holds both encoders in one graph, and only the image encoder is worth quantising; "
            "scripts/export writes them as two graphs"
        )
    return single, False


def read_processor(path: Path, config: dict) -> processors.Processor:
    for folder in ("", "onnx/"):
        combined, plain = f"{folder}processor_config.json", f"{folder}preprocessor_config.json"
        settings = (read_json(path, combined) or {}).get("image_processor")
        file = combined
        if settings is None:
            settings, file = read_json(path, plain), plain
        if settings is not None:
            return processors.from_settings(settings, config.get("model_type"), file)
    raise Refused(f"{path}: preprocessor_config.json is missing; it says how images become tensors")


def read_json(folder: Path, name: str):
    """A JSON object, or None if there is no such file."""
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise Refused(f"{folder / name} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise Refused(f"{folder / name} must hold a JSON object")
    return content


@contextlib.contextmanager
def working_folder(model: ModelFolder):
    """A hidden folder beside the graph for what is being made, removed at the end. One run per model folder."""
    lock = os.open(model.path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(f"{model.path}: another scripts/quantize works on it; wait until that has ended") from None
        for left in model.graph.parent.glob(f"{PARTIAL}*"):
            # Of a run that was killed; the lock is ours.
            shutil.rmtree(left, ignore_errors=True)
        working = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=model.graph.parent))
        try:
            yield working
        finally:
            shutil.rmtree(working, ignore_errors=True)
    finally:
        os.close(lock)


def publish(model: ModelFolder, made: Path, variant: str, record: dict) -> Path:
    """Puts the graph in place, and then the record, in which other variants' entries stay."""
    result = model.result(variant)
    content = read_json(model.path, RECORD) or {}
    variants = content.get("variants")
    content["variants"] = {**(variants if isinstance(variants, dict) else {}), variant: record}
    partial = made.with_name(RECORD)
    partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    made.chmod(0o666 & ~current_umask())
    made.replace(result)
    try:
        partial.replace(model.path / RECORD)
    except BaseException:
        # A graph that nothing vouches for must not stay.
        result.unlink()
        raise
    return result


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def described(file: Path, folder: Path) -> dict:
    """Name, size and hash of a file, for the record."""
    digest = hashlib.sha256()
    with file.open("rb") as reader:
        while block := reader.read(1 << 20):
            digest.update(block)
    return {"file": file.relative_to(folder).as_posix(), "bytes": file.stat().st_size, "sha256": digest.hexdigest()}
