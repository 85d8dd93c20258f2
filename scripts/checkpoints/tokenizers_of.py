"""tokenizer.json for dual encoders: as it is, or made from older files; and a stand-in for SigLIP."""

import io
import json
import string
import tempfile
from pathlib import Path

import transformers
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from .errors import Refused

#: SigLIP's texts are padded to this many tokens, and cut there.
SIGLIP_LENGTH = 64
STAND_IN_SIZE = 8000

#: What a converted tokenizer must encode as the original does.
PROBES = (
    "a photo of a cat", "This is a photo of a cat.", "  Two   DOGS, running!\n", "don't", "", "e-mail (2024) @home",
    "naïve café", "ÉCOLE", "½ ﬁne", "日本語", "🐱 cat", "x_y", "▁ a", "a" * 60,
)  # fmt: skip


def files_of(folder: Path, config: dict, files: dict) -> dict:
    """The tokenizer's files, tokenizer.json among them."""
    if "tokenizer.json" in files:
        try:
            Tokenizer.from_str(files["tokenizer.json"].decode())
        except Exception as error:
            raise Refused(f"{folder / 'tokenizer.json'} is no tokenizer: {error}") from error
        return files
    if config["model_type"] == "clip" and {"vocab.json", "merges.txt"} <= files.keys():
        tokenizer = transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        return {**files, "tokenizer.json": tokenizer.backend_tokenizer.to_str().encode()}
    if config["model_type"] == "siglip" and "spiece.model" in files:
        return {**files, "tokenizer.json": convert_siglip(files["spiece.model"]).to_str().encode()}
    older = "vocab.json with merges.txt" if config["model_type"] == "clip" else "spiece.model"
    raise Refused(f"{folder}: tokenizer.json is missing (and {older} too), without which labels cannot be encoded")


def convert_siglip(spiece_model: bytes) -> Tokenizer:
    """SiglipTokenizer, which transformers has in Python only, as a tokenizer.json; checked against it on PROBES."""
    tokenizer = siglip_pipeline(spiece_model)
    original = siglip_original(spiece_model)
    for text in PROBES:
        expected, found = original(text).input_ids, tokenizer.encode(text).ids
        if found != expected:
            raise Refused(f"spiece.model cannot be converted: {text!r} gives {found}, but {expected} in transformers")
    return tokenizer


def siglip_original(spiece_model: bytes):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "spiece.model"
        file.write_bytes(spiece_model)
        return transformers.SiglipTokenizer(str(file), model_input_names=["input_ids"])


def siglip_pipeline(spiece_model: bytes) -> Tokenizer:
    from transformers.convert_slow_tokenizer import import_protobuf

    proto = import_protobuf().ModelProto.FromString(spiece_model)
    if proto.trainer_spec.model_type != 1 or proto.trainer_spec.byte_fallback:
        raise Refused("spiece.model is not of the Unigram kind that SigLIP uses; give a tokenizer.json beside it")
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    end, unknown = proto.trainer_spec.eos_piece, proto.trainer_spec.unk_piece
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=proto.trainer_spec.unk_id, byte_fallback=False))
    steps = [
        # SentencePiece's own blank counts as one.
        normalizers.Replace("▁", " "),
        normalizers.Lowercase(),
        normalizers.Replace(Regex("[" + "".join("\\" + sign for sign in string.punctuation) + "]"), ""),
        normalizers.Replace(Regex(r"\s+"), " "),
        normalizers.Strip(),
    ]
    if proto.normalizer_spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap))
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    options = {"lstrip": True, "rstrip": True, "normalized": False, "special": True}
    tokenizer.add_special_tokens([AddedToken(piece, **options) for piece in (end, unknown)])
    end_id = tokenizer.token_to_id(end)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, end_id)])
    return tokenizer


def siglip_stand_in() -> dict:
    """A tokenizer with SigLIP's pipeline and special ids (`</s>` 1, which also pads) but a small vocabulary of its own.

    The checkpoint's own spiece.model is in no package registry. With random weights the ids mean nothing, so any
    vocabulary does that goes through the same steps: this one is trained on the words of CLIP's vocabulary.
    """
    import sentencepiece

    from . import clip_vocabulary

    joined = ("".join(pair) for pair in clip_vocabulary.read_merges())
    words = [word[: -len("</w>")] for word in joined if word.endswith("</w>") and word.isascii()]
    sentences = (" ".join(words[start : start + 12]) for start in range(0, len(words), 12))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences, model_writer=model, model_type="unigram", vocab_size=STAND_IN_SIZE,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, num_threads=1, minloglevel=2, character_coverage=1.0,
    )  # fmt: skip
    spiece_model = model.getvalue()
    config = {
        "tokenizer_class": "SiglipTokenizer", "model_max_length": SIGLIP_LENGTH, "model_input_names": ["input_ids"],
        "do_lower_case": True, "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>",
    }  # fmt: skip
    return {
        "spiece.model": spiece_model,
        "tokenizer.json": convert_siglip(spiece_model).to_str().encode(),
        "tokenizer_config.json": json.dumps(config, indent=2).encode() + b"\n",
    }
