"""CLIP's tokenizer.json, made from the vocabulary that the PyPI package open-clip-torch carries."""

import gzip
import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from .errors import Refused

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".setup" / "clip-vocabulary"
REQUIREMENTS = ROOT / "scripts" / "requirements" / "clip-vocabulary.txt"
MEMBER = "open_clip/bpe_simple_vocab_16e6.txt.gz"
SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"

#: CLIP uses the first 49152 - 256 - 2 merges; the file has more.
MERGES = 48_894
START, END = "<|startoftext|>", "<|endoftext|>"
SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

#: Ids that OpenAI's tokenizer gives; a table that was put together in another order would give others.
GOLDEN = {
    "a photo of a cat": [49406, 320, 1125, 539, 320, 2368, 49407],
    "This is a photo of a cat.": [49406, 589, 533, 320, 1125, 539, 320, 2368, 269, 49407],
    "don't": [49406, 847, 713, 49407],
    "": [49406, 49407],
    "🐱": [49406, 22979, 49407],
    "Ünïcode ÉCOLE": [49406, 6522, 77, 35689, 3217, 3459, 8166, 49407],
    "日本語": [49406, 39121, 44353, 34002, 508, 49407],
    "<|endoftext|> x": [49406, 49407, 343, 49407],
}


def tokenizer_files() -> dict:
    """tokenizer.json and tokenizer_config.json, checked against known ids."""
    tokenizer = build(read_merges())
    for text, ids in GOLDEN.items():
        if tokenizer.encode(text).ids != ids:
            raise Refused(f"CLIP's tokenizer came out wrong: {text!r} gives {tokenizer.encode(text).ids}, not {ids}")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special}
    return {
        "tokenizer.json": tokenizer.to_str(pretty=False).encode(),
        "tokenizer_config.json": json.dumps(config, indent=2).encode() + b"\n",
    }


def read_merges() -> list:
    lines = gzip.decompress(vocabulary()).decode("utf-8").split("\n")
    return [tuple(line.split()) for line in lines[1 : 1 + MERGES]]


def vocabulary() -> bytes:
    """The file's bytes, fetched once and checked every time."""
    file = CACHE / Path(MEMBER).name
    if not file.is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_bytes(download())
        partial.replace(file)
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise Refused(f"{file} is not the file that was expected; delete it and run this again")
    return content


def download() -> bytes:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--require-hashes", "--dest", str(CACHE), "--requirement", str(REQUIREMENTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(CACHE.glob("open_clip_torch-*.whl"))
    if done.returncode != 0 or not wheels:
        raise Refused(f"CLIP's vocabulary cannot be fetched from PyPI: {done.stderr.strip() or 'no wheel came'}")
    with zipfile.ZipFile(wheels[-1]) as wheel:
        content = wheel.read(MEMBER)
    wheels[-1].unlink()
    return content


def build(merges: list) -> Tokenizer:
    """The pipeline of openai/clip-vit-base-patch32's tokenizer.json."""
    pieces = byte_characters()
    pieces += [piece + "</w>" for piece in pieces]
    pieces += ["".join(pair) for pair in merges]
    vocabulary = {piece: index for index, piece in enumerate([*pieces, START, END])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=END, end_of_word_suffix="</w>", fuse_unk=False))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(START, normalized=True, special=True), AddedToken(END, special=True)])
    ends = [(END, vocabulary[END]), (START, vocabulary[START])]
    tokenizer.post_processor = processors.RobertaProcessing(*ends, trim_offsets=False, add_prefix_space=False)
    return tokenizer


def byte_characters() -> list:
    """The characters that stand for the 256 bytes, in GPT-2's order: printable ones first, as themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = len(set(range(256)) - set(printable))
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(others)]
