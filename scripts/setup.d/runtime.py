"""The folder with ONNX Runtime's shared library and its providers, out of a wheel."""

import platform
import re
import sys

from wheels import PINS, SETUP, SetupError, extract, fetched, new_folder, platform_options, say

FOLDER = SETUP / "onnxruntime"
# Per runtime: its package, what is in it, and the size of the wheel in MB.
PACKAGES = {
    "openvino": ("onnxruntime-openvino", " (OpenVINO)", 84),
    "cpu": ("onnxruntime", "", 28),
    "gpu": ("onnxruntime-gpu", " (CUDA, TensorRT)", 256),
}

# Python's own module is not needed, nor are OpenVINO's C API and the second and third copies of its libraries: each is
# there as libX.so, libX.so.2025.4.1 and libX.so.2541, and the last is what the others ask the loader for.
LIBRARIES = (
    r"onnxruntime/capi/(?:"
    r"libonnxruntime\.so\.[\d.]+|libonnxruntime\.[\d.]+\.dylib|libonnxruntime_providers_\w+\.so"
    r"|libopenvino(?:_onnx_frontend)?\.so\.\d+|libopenvino_\w+_plugin\.so|libtbb\.so\.12|libtbbmalloc\.so"
    r")"
)


def folder(_name):
    return FOLDER


def make(targets):
    """Makes the folder; `targets` is the stamp by the runtime's name: "openvino", "cpu" or "gpu"."""
    ((name, stamp),) = targets.items()
    package, content, megabytes = PACKAGES[name]
    if name != "cpu" and (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise SetupError(f"there is no {package} for this system; use --runtime cpu")
    version = re.search(r"==(\S+)", (PINS / f"{package}.txt").read_text())[1]
    say(f"fetching ONNX Runtime {version}{content}, {megabytes} MB …")
    with fetched(f"{package}.txt", options=platform_options()) as wheels, new_folder(FOLDER, stamp) as making:
        (wheel,) = wheels.values()
        for library in extract(wheel, LIBRARIES, making):
            library.chmod(0o755)
            # The name without a version is what the server looks for. Relative, as the folder may be moved.
            named = re.fullmatch(r"libonnxruntime\.(?:so\.[\d.]+|[\d.]+\.(dylib))", library.name)
            if named:
                (making / f"libonnxruntime.{named[1] or 'so'}").symlink_to(library.name)
        extract(wheel, r"onnxruntime/(?:LICENSE|ThirdPartyNotices\.txt)", making)
