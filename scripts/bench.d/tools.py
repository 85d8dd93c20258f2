"""What the measurements need: the release binary, the load generator, the models and photos, and medians."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "scripts" / "bench.d"
SETUP = ROOT / ".setup"
WORK = SETUP / "bench"
BINARY = ROOT / "target" / "release" / "ocelli"
OHA_VERSION = "1.16.0"
OHA = SETUP / "oha" / "bin" / "oha"

WAY = ("provider", "precision", "instances", "threads")

# Folders are made as scripts/setup makes them. At the end, as it has a photos.py of its own.
sys.path.append(str(ROOT / "scripts" / "setup.d"))


class BenchError(Exception):
    """What went wrong and what to do about it, for the user."""


def say(line):
    """Prints a line of progress, where a caller that reads standard output does not see it."""
    print(line, file=sys.stderr, flush=True)


def run(command, **options):
    """Runs a command; one that fails ends the bench."""
    finished = subprocess.run([str(part) for part in command], **options)
    if finished.returncode != 0:
        raise BenchError(f"`{' '.join(map(str, command))}` failed with {finished.returncode}")
    return finished


def prepare(own_models):
    """Fetches what is missing and builds the release; `own_models`: the models are the user's, so none are made."""
    run([ROOT / "scripts" / "setup", "--photos", *(["--no-models"] if own_models else [])])
    build()
    if installed_oha() != OHA_VERSION:
        say(f"building the load generator oha {OHA_VERSION}, some minutes …")
        options = ["--locked", "--quiet", "--force", "--root", SETUP / "oha"]
        run(["cargo", "install", *options, f"oha@{OHA_VERSION}"], cwd=ROOT)


def build():
    """Builds the release as scripts/serve does: with libjpeg-turbo where its tools can be had."""
    tools = subprocess.run([ROOT / "scripts" / "jpeg-tools"], stdout=subprocess.PIPE, text=True)
    features, variables = [], {}
    if tools.returncode == 0:
        features = ["--features", "turbojpeg"]
        variables = dict(line.split("=", 1) for line in tools.stdout.splitlines())
    run(["cargo", "build", "--release", "--locked", "--quiet", *features], cwd=ROOT, env={**os.environ, **variables})


def installed_oha():
    try:
        return subprocess.run([OHA, "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1]
    except (OSError, subprocess.CalledProcessError):
        return None


def ocelli_bench(models_dir, cache_dir, model, photos, *options):
    """What preprocessing and inference cost in the server's own code: the report of `ocelli bench`."""
    command = bench_command(models_dir, cache_dir, model, photos, *options)
    output = run(command, cwd=ROOT, stdout=subprocess.PIPE).stdout
    return json.loads(output)["report"]


def bench_command(models_dir, cache_dir, model, photos, *options):
    """The command whose report that is."""
    settings = ["--models-dir", models_dir, "--cache-dir", cache_dir]
    return [str(part) for part in (BINARY, "bench", *settings, "--model", model, *options, *photos)]


def way_of(cost):
    """How a graph was run, as a value to compare by."""
    return tuple(cost[key] for key in WAY)


def point_options(ways, batch_sizes):
    """Options of `ocelli bench` that measure these ways at these sizes alone."""
    ways = [part for way in dict.fromkeys(ways) for part in ("--way", ",".join(map(str, way)))]
    return [*ways, *(part for size in dict.fromkeys(batch_sizes) for part in ("--batch-size", size))]


def figure_options(options):
    """Options of `ocelli bench`: each of its figures takes a tenth of a load over HTTP."""
    return ["--seconds", max(0.05, options.seconds * 0.1)]


def median(values):
    return statistics.median(values)


def link_models(folder, models):
    """A models folder with a link for each `(name, target)`, so that a server loads these alone."""
    folder.mkdir(parents=True)
    for name, target in models:
        (folder / name).symlink_to(target.resolve())
    return folder
