"""Makes an int8 variant of a model folder, and keeps it only if it answers like the plain one."""

import argparse
import re
import signal
import sys
from pathlib import Path

from errors import Refused

EPILOG = """\
The plain graph (model.onnx, or vision_model.onnx of a dual encoder, whose text encoder stays as it is) is quantised
with NNCF, without training, calibrated on the images as the folder's image processor prepares them. They should be such
as the model will see; no more than 300 are taken. On images kept apart from these (crops or copies of the same photo
would flatter it), the result is compared with the plain graph, on ONNX Runtime's CPU provider and, where there is one,
OpenVINO's. Only if it agrees, model_int8.onnx appears, and what was measured in quantization.json. Exit status: 0 made,
1 refused (nothing is left behind), 2 wrong arguments.
"""


def share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError("must be above 0 and below 1")
    return value


def agreement_bound(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError("must be 0 to 1")
    return value


def variant_name(text: str) -> str:
    # The server takes fp16 by itself for precision f16.
    if not re.fullmatch(r"[a-z0-9]+([_-][a-z0-9]+)*", text) or text == "fp16":
        raise argparse.ArgumentTypeError("must be of a-z, 0-9, - and _, and not fp16")
    return text


def parse_arguments(arguments: list):
    parser = argparse.ArgumentParser(prog="scripts/quantize", description=__doc__, epilog=EPILOG)
    parser.add_argument("model_folder", metavar="MODEL_FOLDER", type=Path, help="such as models/resnet-50")
    parser.add_argument(
        "--images", metavar="FOLDER", type=Path, required=True, help="images to calibrate on, in subfolders too"
    )
    held_out = parser.add_mutually_exclusive_group()
    held_out.add_argument("--held-out", metavar="FOLDER", type=Path, help="images to compare on")
    held_out.add_argument(
        "--held-out-share", metavar="SHARE", type=share, default=0.3,
        help="or: how much of --images to keep for comparison [default: 0.3]",
    )  # fmt: skip
    parser.add_argument(
        "--min-agreement", metavar="SHARE", type=agreement_bound, default=0.95,
        help="share of images whose top-1 must stay; for dual encoders, the mean cosine of the embeddings less their "
        "common part [default: 0.95]",
    )  # fmt: skip
    parser.add_argument(
        "--output-variant", metavar="NAME", type=variant_name, default="int8",
        help="what the setting variant will call it [default: int8]",
    )  # fmt: skip
    parser.add_argument(
        "--force", action="store_true", help="replace the variant if it exists; compare even on fewer than 10 images"
    )
    return parser.parse_args(arguments)


def main(arguments: list) -> int:
    options = parse_arguments(arguments)
    # A terminated run cleans up as a failed one does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # Here, so that --help and wrong arguments need nothing installed.
    import quantization

    try:
        quantization.run(options)
    except KeyboardInterrupt:
        return 130
    except (Refused, OSError) as error:
        print(f"scripts/quantize: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
