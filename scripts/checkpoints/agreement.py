"""How well the answers of trained models agree: what measures.py has, on average too, and which label came first."""

from dataclasses import dataclass, field

import numpy as np

from . import measures
from .measures import Measure

#: What another JPEG decoder may do to logits and scores, and the lead, in logits, with which a label must stay first.
JPEG_LOGITS, JPEG_SCORES, JPEG_LEAD = 0.15, 0.02, 0.05


@dataclass
class Swap:
    """Another label than the reference's came first. Labels are indices, and the scores are the reference's."""

    photo: str
    expected: int
    found: int
    expected_score: float
    found_score: float


@dataclass
class Agreement(Measure):
    """With what trained weights make worth telling: how far off answers are on average, and what came first."""

    mean_values: list = field(default_factory=list)
    mean_scores: list = field(default_factory=list)
    swaps: list = field(default_factory=list)

    def add_row(self, row, values: np.ndarray, scores: np.ndarray) -> tuple:
        self.mean_values.append(float(np.abs(row.values - values).mean()))
        self.mean_scores.append(float(np.abs(row.scores - scores).mean()))
        return super().add_row(row, values, scores)

    def add_first(self, photo: str, row, answer, lead) -> None:
        """Notes a swap; it is a fault where the reference's best label leads by more than `lead`, if there is one."""
        expected, found = measures.best(answer.scores[0])[0], row.ranking[0]
        if found == expected:
            return
        scores = answer.scores[0]
        self.swaps.append(Swap(photo, expected, found, scores[expected], scores[found]))
        second, first = np.sort(answer.values[0])[-2:]
        if lead is not None and not first - second <= lead:
            self.faults.append(f"{photo}: label {found} is first, not {expected}, which leads by {first - second:.3g}")
