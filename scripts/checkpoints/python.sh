# shellcheck shell=bash
# Sourced by scripts/export, scripts/parity and scripts/accuracy: `run_module NAME …` runs a module of this folder on an interpreter that
# has what scripts/requirements/export.txt pins: $OCELLI_EXPORT_PYTHON, else a venv of its own, made on first use.

checkpoints_root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"

make_export_venv() {
  local venv="$1" requirements="$2" base="${PYTHON:-python3}"
  if ! "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "$base is missing or older than Python 3.11; name a newer one: PYTHON=/path/to/python3.11" >&2
    return 1
  fi
  echo "Installing torch and transformers into ${venv#"$checkpoints_root"/}: once, about 6 GB and a few minutes." >&2
  rm -rf "$venv"
  if ! "$base" -m venv "$venv" ||
    ! PIP_USER=0 PIP_REQUIRE_VIRTUALENV=0 "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary=:all: --require-hashes -r "$requirements"; then
    rm -rf "$venv"
    echo "The venv could not be made (see above). It needs python3-venv, PyPI and 6 GB of disk. To use an interpreter that" >&2
    echo "has these packages already: OCELLI_EXPORT_PYTHON=/path/to/python" >&2
    return 1
  fi
}

export_python() {
  local venv="$checkpoints_root/.setup/export-venv" requirements="$checkpoints_root/scripts/requirements/export.txt"
  if [[ -n "${OCELLI_EXPORT_PYTHON:-}" ]]; then
    if ! "$OCELLI_EXPORT_PYTHON" -c 'import onnx, onnxruntime, torch, torchvision, transformers' >&2; then
      echo "OCELLI_EXPORT_PYTHON=$OCELLI_EXPORT_PYTHON lacks packages of scripts/requirements/export.txt" >&2
      return 1
    fi
    echo "$OCELLI_EXPORT_PYTHON"
    return
  fi
  # The copy of the requirements is put there last, so a half-made venv, or one of older pins, is made anew.
  if ! cmp --quiet "$requirements" "$venv/requirements.txt" 2>/dev/null; then
    mkdir -p "$checkpoints_root/.setup"
    make_export_venv "$venv" "$requirements" || return 1
    cp "$requirements" "$venv/requirements.txt"
  fi
  echo "$venv/bin/python"
}

run_module() {
  local module="$1" python
  shift
  python="$(export_python)" || exit 1
  # Safe path: the folder that the user happens to be in is not searched for modules.
  PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$checkpoints_root/scripts" exec "$python" -m "checkpoints.$module" "$@"
}
