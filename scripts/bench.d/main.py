"""Reads the options of scripts/bench and runs what they ask for; not meant to be run by hand."""

import argparse
import fcntl
import json
import shlex
import signal
import sys
from pathlib import Path

import tools
from tools import ROOT, WORK, BenchError, say

from wheels import SetupError  # tools has put its folder on the path.


def main():
    options = read_options()
    with only_one():
        tools.prepare(own_models=options.models_dir != ROOT / "models")
        options.models = find_models(options)
        import photos
        from server import raise_file_limit

        usual, sizes = photos.make_photos()
        raise_file_limit()
        for page in measure(options, usual, sizes):
            say(f"written: {page}")


def measure(options, usual, sizes):
    if options.grid:
        import grid

        yield grid.write(options, usual)
    if options.scaling:
        import scaling

        yield scaling.write(options, usual, sizes)
    if options.decode:
        import decode

        yield decode.write(options, sizes)
    if not (options.grid or options.scaling or options.decode):
        import report
        import suite

        results = suite.measure_models(options, usual, sizes)
        (WORK / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
        yield report.write(results, options)


def read_options():
    # scripts/bench prints the help.
    parser = argparse.ArgumentParser(prog="scripts/bench", add_help=False)
    parser.add_argument("--grid", action="store_true")
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--decode", action="store_true")
    parser.add_argument("--models-dir", type=Path, default=ROOT / "models")
    parser.add_argument("--model", dest="models", action="append")
    parser.add_argument("--seconds", type=at_least(0.2))
    parser.add_argument("--rounds", type=lambda text: int(at_least(1)(text)))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    options.command = shlex.join(["scripts/bench", *sys.argv[1:]])
    options.models_dir = options.models_dir.resolve()
    options.seconds = options.seconds or (1 if options.quick else 5)
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.largest_batch = 8 if options.quick else 32
    options.output = options.output or (WORK / "quick" if options.quick else ROOT / "docs")
    return options


def at_least(least):
    def number(text):
        value = float(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}")
        return value

    return number


def find_models(options):
    """The models to measure, each a folder; files beside them are none."""
    if not options.models_dir.is_dir():
        raise BenchError(f"there is no folder {options.models_dir}; name one with --models-dir")
    there = sorted(path.name for path in options.models_dir.iterdir() if path.is_dir() and path.name[0] != ".")
    unknown = [name for name in options.models or () if name not in there]
    if unknown or not there:
        raise BenchError(f"{options.models_dir} has no model {', '.join(unknown)}; it has {', '.join(there) or 'none'}")
    return options.models or there


class only_one:
    """Lets no second bench run beside the first; the system drops the lock when the process ends."""

    def __enter__(self):
        WORK.mkdir(parents=True, exist_ok=True)
        self.lock = open(WORK / "lock", "w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BenchError("another bench is running; two would measure each other") from None

    def __exit__(self, *_):
        self.lock.close()


if __name__ == "__main__":
    # As an exception, so that servers are stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except (BenchError, SetupError, OSError) as error:
        sys.exit(f"scripts/bench: {error}")
