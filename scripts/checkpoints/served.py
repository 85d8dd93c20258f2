"""What the server answers, in the shape of the reference's answers."""

import numpy as np

from .errors import Refused
from .measures import Row, softmax
from .reference import LABELS, QUESTIONS
from .server import Server


def pixels(server: Server, probe: str, content: bytes, shape: tuple) -> np.ndarray:
    """pixel_values [3, height, width], as the server makes them."""
    count = int(np.prod(shape))
    values = by_index(server.classify(probe, content, top_k=count, function_to_apply="none"), count)
    return values.astype(np.float32).reshape(shape)


def classified(server: Server, model: str, content: bytes, count: int) -> list:
    """All logits in one request, and the default answer, the five best scores, in another."""
    logits = by_index(server.classify(model, content, top_k=count, function_to_apply="none"), count)
    top = server.classify(model, content)
    scores = softmax(logits)
    for index, score in top:
        scores[index] = score
    return [Row([index for index, _ in top], logits, scores)]


def zero_shot(server: Server, model: str, content: bytes, count: int) -> list:
    """A row per question. The endpoint gives scores only, so the values are their logarithms."""
    rows = []
    for templates in QUESTIONS:
        ranked = server.zero_shot(model, content, LABELS, templates)
        scores = by_index(ranked, count)
        rows.append(Row([index for index, _ in ranked], np.log(scores), scores))
    return rows


def by_index(ranked: list, count: int) -> np.ndarray:
    indices = np.array([index for index, _ in ranked])
    if not np.array_equal(np.sort(indices), np.arange(count)):
        raise Refused(f"{len(ranked)} labels came, not each of {count} once")
    values = np.empty(count)
    values[indices] = [score for _, score in ranked]
    return values
