"""A checkpoint in memory: the torch model, and the files that go along with it."""

from dataclasses import dataclass, field

from .errors import Refused

#: model_type of config.json of what can be exported: as a classifier, or else as two encoders.
CLASSIFIERS = (
    "beit", "clip", "convnext", "convnextv2", "deit", "dinov2", "efficientnet", "resnet", "siglip", "swin", "swinv2", "vit",
)  # fmt: skip
DUAL_ENCODERS = {"clip": "CLIPModel", "siglip": "SiglipModel"}
#: Image processors that the server knows; others would not load there.
PROCESSORS = ("Beit", "Bit", "CLIP", "ConvNext", "DeiT", "EfficientNet", "Siglip", "ViT")


@dataclass
class Checkpoint:
    """A model in f32 and eval mode, its config.json, and the files that are copied as they are."""

    name: str
    model: object
    config: dict
    files: dict = field(default_factory=dict)

    @property
    def is_dual_encoder(self) -> bool:
        return is_dual_encoder(self.config)


def is_classifier(config: dict) -> bool:
    return "ForImageClassification" in ((config.get("architectures") or [None])[0] or "")


def is_dual_encoder(config: dict) -> bool:
    """Has it a text encoder too? On CLIP's and SigLIP's image encoders there are plain classifiers as well."""
    return config.get("model_type") in DUAL_ENCODERS and not is_classifier(config)


def model_class_name(config: dict, where: str) -> str:
    """The transformers class of a config.json, or why there is none that can be exported."""
    model_type = config.get("model_type")
    architecture = (config.get("architectures") or [None])[0]
    if is_dual_encoder(config):
        wanted = DUAL_ENCODERS[model_type]
        if architecture not in (wanted, None):
            raise Refused(
                f"{where}: architectures[0] is {architecture}; of {model_type}, {wanted} and classifiers "
                "(…ForImageClassification) can be exported"
            )
        return wanted
    if model_type not in CLASSIFIERS:
        known = ", ".join(CLASSIFIERS)
        raise Refused(f"{where}: model_type is {model_type!r}; these can be exported: {known}")
    if not is_classifier(config):
        raise Refused(
            f"{where}: architectures[0] is {architecture!r}, which is no classifier (…ForImageClassification)"
        )
    return architecture


def check_processor(settings: dict, where: str) -> None:
    """An image processor's file names a class that is known, in the old way or the new one, or none."""
    settings = settings.get("image_processor") or settings
    for key in ("image_processor_type", "feature_extractor_type"):
        name = settings.get(key)
        if name is not None:
            family = str(name).replace("FeatureExtractor", "ImageProcessor").split("ImageProcessor")[0]
            if family not in PROCESSORS:
                known = ", ".join(f"{family}ImageProcessor" for family in PROCESSORS)
                raise Refused(f"{where}: {key} is {name!r}; these are known: {known}")
            return
