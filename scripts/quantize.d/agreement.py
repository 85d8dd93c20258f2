"""How far the int8 graph's answers are from the f32 graph's, on images that took no part in calibration."""

import numpy as np
from errors import Refused

#: Where the best answer leads by less, a change of it is a near tie.
CLEAR_MARGIN = 0.05
BATCH = 8


def answers(session, graph, tensors) -> np.ndarray:
    """[images, values] of the graph's answer."""
    batches, batch = [], []

    def run():
        batches.append(session.run([graph.output], {graph.input: np.concatenate(batch)})[0])
        batch.clear()

    for tensor in tensors:
        batch.append(tensor)
        if len(batch) == BATCH:
            run()
    if batch:
        run()
    return np.concatenate(batches).astype(np.float64)


def measure_for(config: dict, is_dual_encoder: bool):
    """The measure that suits the model: a function of the f32 graph's answers and the int8 graph's."""
    if is_dual_encoder:
        return of_embeddings
    if config.get("problem_type") == "regression":
        raise Refused("config.json: problem_type is regression, and agreement can be told of classes only")
    multi_label = config.get("problem_type") == "multi_label_classification"
    return lambda reference, logits: of_classes(reference, logits, multi_label)


def check_finite(reference: np.ndarray, answers: np.ndarray, who: str) -> None:
    """No figure can be told of infinities; NaN would even slip through comparisons."""
    for values, graph in ((reference, "f32"), (answers, "int8")):
        if not np.isfinite(values).all():
            raise Refused(f"the {graph} graph's answers on {who} are not all finite")


def of_classes(reference: np.ndarray, logits: np.ndarray, multi_label: bool) -> dict:
    """What of the answers to a classifier's user changes."""
    if reference.ndim != 2:
        raise Refused(f"the graph's logits must be [batch, labels], not {list(reference.shape)}")
    reference, logits = (probabilities(values, multi_label) for values in (reference, logits))
    same = reference.argmax(axis=1) == logits.argmax(axis=1)
    if reference.shape[1] == 1:
        # One label is always the first; what counts is yes or no.
        same = ((reference > 0.5) == (logits > 0.5))[:, 0]
        margin = np.abs(2 * reference[:, 0] - 1)
    else:
        best = np.sort(reference, axis=1)
        margin = best[:, -1] - best[:, -2]
    clear = margin > CLEAR_MARGIN
    # Of the label whose probability moves most, per image.
    moved = np.abs(reference - logits).max(axis=1)
    return {
        "agreement": float(same.mean()),
        "top1_agreement": float(same.mean()),
        "clear_images": int(clear.sum()),
        "top1_agreement_of_clear": float(same[clear].mean()) if clear.any() else None,
        "mean_probability_difference": float(moved.mean()),
        "largest_probability_difference": float(moved.max()),
    }


def probabilities(logits: np.ndarray, multi_label: bool) -> np.ndarray:
    if multi_label or logits.shape[1] == 1:
        return np.exp(-np.logaddexp(0, -logits))
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def of_embeddings(reference: np.ndarray, embeddings: np.ndarray) -> dict:
    """How well directions are kept. All embeddings of an encoder share a large part, beside which any error looks
    small; so the figure that decides is the cosine after that part, the mean of the f32 ones, has been taken away."""
    reference, embeddings = (values.reshape(len(values), -1) for values in (reference, embeddings))
    reference, embeddings = unit(reference), unit(embeddings)
    cosines = (reference * embeddings).sum(axis=1)
    shared = reference.mean(axis=0)
    centred = (unit(reference - shared) * unit(embeddings - shared)).sum(axis=1)
    return {
        "agreement": float(centred.mean()),
        "mean_cosine": float(cosines.mean()),
        "smallest_cosine": float(cosines.min()),
        "mean_centred_cosine": float(centred.mean()),
        "smallest_centred_cosine": float(centred.min()),
    }


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def in_words(figures: dict) -> str:
    if "top1_agreement" in figures:
        clear = figures["top1_agreement_of_clear"]
        return (
            f"top-1 agrees on {figures['top1_agreement']:.1%}"
            + (f" ({clear:.1%} of the {figures['clear_images']} that are no near ties)" if clear is not None else "")
            + f"; probabilities differ by {figures['mean_probability_difference']:.3f} on average, "
            f"{figures['largest_probability_difference']:.3f} at most"
        )
    return (
        f"cosine of the embeddings {figures['mean_cosine']:.4f} on average, {figures['smallest_cosine']:.4f} at least; "
        f"less their common part {figures['mean_centred_cosine']:.4f} and {figures['smallest_centred_cosine']:.4f}"
    )
