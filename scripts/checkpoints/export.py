"""Exports a checkpoint of transformers to a model folder of ONNX graphs, and compares the two."""

import argparse
import logging
import signal
import sys
from pathlib import Path

import torch
import transformers

from . import comparison, folder, graphs, inputs, photos, random_weights, sources
from .checkpoint import Checkpoint
from .errors import Refused

HELP = """\
The folder holds model.onnx, or for CLIP and SigLIP vision_model.onnx and text_model.onnx, with config.json, the image
processor's file and the tokenizer. It appears only when the graphs are checked and ONNX Runtime's answers equal
PyTorch's on photos. Families: beit, clip, convnext, deit, dinov2, efficientnet, resnet, siglip, swin, vit.
"""


def parse_arguments(arguments: list):
    parser = argparse.ArgumentParser(prog="scripts/export", description=__doc__, epilog=HELP)
    parser.add_argument(
        "checkpoint", metavar="ID_OR_FOLDER", help="a Hub id (microsoft/resnet-50) or a transformers folder"
    )
    parser.add_argument(
        "out", metavar="OUT_FOLDER", type=Path, help="the model folder to make, such as models/resnet-50"
    )
    parser.add_argument("--random-weights", metavar="SEED", type=int, help="the same architecture, without the Hub")
    parser.add_argument("--precision", choices=("f32", "f16"), default="f32", help="of the weights; edges stay f32")
    parser.add_argument("--photos", metavar="FOLDER", help="photos to compare on [default: .setup/photos]")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub")
    parser.add_argument("--external-data", action="store_true", help="weights in files of their own, as above 2 GB")
    parser.add_argument("--force", action="store_true", help="replace OUT_FOLDER if it exists")
    options = parser.parse_args(arguments)
    if options.random_weights is not None and options.random_weights < 0:
        parser.error("--random-weights: the seed must be 0 or above")
    return options


def open_checkpoint(options) -> Checkpoint:
    name = options.checkpoint
    if options.random_weights is not None:
        return random_weights.build(name, options.random_weights)
    if sources.looks_like_a_folder(name):
        return sources.from_folder(Path(name).expanduser())
    return sources.from_hub(name, options.revision)


def export(checkpoint: Checkpoint, out: Path, images: list, precision="f32", external_data=False, force=False) -> list:
    """Makes the folder `out`. Returns lines about how close its answers are to the model's."""
    with folder.appearing(out, force) as partial:
        folder.write_files(checkpoint, partial)
        pixel_values = inputs.pixels(inputs.image_processor(partial), images)
        input_ids, unpadded = None, []
        if checkpoint.is_dual_encoder:
            model_type = checkpoint.config["model_type"]
            tokenizer = inputs.tokenizer(partial, model_type)
            input_ids = inputs.token_ids(tokenizer, model_type, list(comparison.PROMPTS))
            unpadded = [inputs.token_ids(tokenizer, model_type, [prompt]) for prompt in comparison.PROMPTS]
        for tower in graphs.towers(checkpoint, pixel_values[:2], None if input_ids is None else input_ids[:2]):
            graphs.export(tower, partial, precision, external_data)
        return comparison.compare(checkpoint, partial, pixel_values, input_ids, unpadded, precision)


def main(arguments: list) -> int:
    options = parse_arguments(arguments)
    # A terminated export cleans up as a failed one does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    quiet()
    try:
        if options.out.exists() and not options.force:
            raise Refused(f"{options.out} exists already; --force replaces it")
        images, where = photos.for_comparison(options.photos)
        checkpoint = open_checkpoint(options)
        lines = export(checkpoint, options.out, images, options.precision, options.external_data, options.force)
    except Refused as refused:
        print(f"scripts/export: {refused}", file=sys.stderr)
        return 1
    print(f"{options.out}: {checkpoint.name}, {type(checkpoint.model).__name__}, {options.precision}")
    print(f"ONNX Runtime against PyTorch on {len(images)} {where}:")
    for line in lines:
        print(f"  {line}")
    return 0


def quiet() -> None:
    """Progress bars and advice of the libraries; what goes wrong is raised."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    torch.set_grad_enabled(False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
