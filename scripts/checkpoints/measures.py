"""How far two answers are apart, and how far they may be."""

import itertools
from dataclasses import dataclass, field

import numpy as np

#: f32 arithmetic in another order, on equal pixels: absolute, or as a share of the largest logit.
LOGITS = 1e-4
#: Cosines times a scale of 100 or so multiply that error.
ZERO_SHOT_LOGITS = 1e-3
#: Lossless photos go through the same arithmetic, so only its order may differ.
PIXELS = 1e-6
#: JPEG decoders round differently: five steps of 1/255 at most, divided by ImageNet's smallest deviation.
JPEG_PIXELS, JPEG_MEAN, JPEG_DEVIATION = 0.09, 0.010, 0.224
#: What that may do to a trained model's scores. Random weights can make more of it, so it is no limit here.
JPEG_SCORES = 0.02
TOP = 5


@dataclass
class Row:
    """The server's answer to one question: labels by rank, and by label values (logits, or logarithms) and scores."""

    ranking: list
    values: np.ndarray
    scores: np.ndarray


@dataclass
class Measure:
    """Largest differences over photos of one kind, and what was past its limit."""

    photos: int = 0
    pixels: float = 0.0
    mean_pixels: float = 0.0
    #: Of values computed from the server's own pixels.
    same_pixels: float = 0.0
    values: float = 0.0
    largest_value: float = 0.0
    scores: float = 0.0
    rankings: int = 0
    same_top: int = 0
    same_first: int = 0
    faults: list = field(default_factory=list)

    def require(self, photo: str, what: str, value: float, limit: float) -> None:
        # Not `>`, which NaN would pass.
        if not value <= limit:
            self.faults.append(f"{photo}: {what} {value:.3g} apart, limit {limit:.3g}")

    def add_pixels(self, photo: str, found: np.ndarray, expected: np.ndarray, limits: tuple) -> None:
        """`limits` are of the largest difference and of the mean one."""
        difference = np.abs(found - expected)
        largest, mean = float(difference.max()), float(difference.mean())
        self.photos += 1
        self.pixels, self.mean_pixels = max(self.pixels, largest), max(self.mean_pixels, mean)
        self.require(photo, "pixels are", largest, limits[0])
        self.require(photo, "pixels on average are", mean, limits[1])

    def add_row(self, row: Row, values: np.ndarray, scores: np.ndarray) -> tuple:
        """Returns the largest differences of this row's values and scores from the expected ones."""
        apart = float(np.abs(row.values - values).max()), float(np.abs(row.scores - scores).max())
        self.values, self.scores = max(self.values, apart[0]), max(self.scores, apart[1])
        self.largest_value = max(self.largest_value, float(np.abs(values).max()))
        wanted = best(scores)
        self.rankings += 1
        self.same_first += row.ranking[0] == wanted[0]
        self.same_top += row.ranking[:TOP] == wanted
        return apart

    def judge_lossless(self, photo: str, row: Row, values: np.ndarray, scores: np.ndarray, limit: float) -> None:
        """Equal pixels: values may differ by `limit`, or by its share of the largest one."""
        limit = max(limit, LOGITS * float(np.abs(values).max()))
        apart = self.add_row(row, values, scores)
        self.require(photo, "logits are", apart[0], limit)
        # Softmax and sigmoid never enlarge a difference.
        self.require(photo, "scores are", apart[1], limit)
        self.require_order(photo, row, values, 2 * limit)

    def judge_jpeg(self, photo: str, row: Row, values: np.ndarray, scores: np.ndarray, same: tuple) -> None:
        """Pixels of another decoder: from the same ones, whose values and limit are in `same`, the logits must follow
        as exactly as ever. How far they are from the reference's is measured; it says how sensitive the model is."""
        self.add_row(row, values, scores)
        values, limit = same
        limit = max(limit, LOGITS * float(np.abs(values).max()))
        apart = float(np.abs(row.values - values).max())
        self.same_pixels = max(self.same_pixels, apart)
        self.require(photo, "logits of the same pixels are", apart, limit)
        self.require_order(photo, row, values, 2 * limit)

    def require_order(self, photo: str, row: Row, values: np.ndarray, margin: float) -> None:
        fault = order_fault(row.ranking, values, margin)
        if fault:
            self.faults.append(f"{photo}: {fault}")


def best(scores: np.ndarray) -> list:
    """The indices of the best five, ties by index."""
    return np.argsort(-scores, kind="stable")[:TOP].tolist()


def jpeg_limits(processor: dict) -> tuple:
    """Largest and mean difference of pixel_values that two JPEG decoders may cause under this processor."""
    deviation = min(processor["image_std"])
    # Only EfficientNet's processor has this; it divides twice.
    if processor.get("include_top"):
        deviation **= 2
    return JPEG_PIXELS * JPEG_DEVIATION / deviation, JPEG_MEAN * JPEG_DEVIATION / deviation


def order_fault(ranking: list, values: np.ndarray, margin: float) -> str:
    """What is wrong with a ranking's first five, if values within `margin` may change places; empty if nothing."""
    top = ranking[:TOP]
    if len(top) != min(TOP, len(values)):
        return f"{len(top)} labels came"
    for better, worse in itertools.pairwise(top):
        if not values[better] >= values[worse] - margin:
            return f"label {better} is ranked above {worse}, whose logit is {values[worse] - values[better]:.3g} higher"
    others = np.delete(values, top)
    if len(others) and not values[top[-1]] >= others.max() - margin:
        return f"a label whose logit is {others.max() - values[top[-1]]:.3g} above the fifth's is missing"
    return ""


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max())
    return powers / powers.sum()
