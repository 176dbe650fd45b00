"""Whether an arm is as sure as it should be.

An arm is calibrated against the teacher's distribution p itself, not against the tokens that the teacher drew:

- `accuracy_frac` is p of the arm's first choice: how often it would be right if the teacher went on at temperature 1.
  `confidence_frac` is what the arm itself gives that choice.
- `brier_score` is the expectation of Σ (q − onehot)² (Brier 1950, Monthly Weather Review 78) over the teacher's next
  token: Σ q² − 2 Σ p q + 1. Its floor is the teacher's own, 1 − Σ p².
- `ece_frac` is the expected calibration error of the first choice (Guo et al. 2017, arXiv:1706.04599): the mean over
  bins of |confidence − accuracy|, in bins of equal mass (Nixon et al. 2019, arXiv:1904.01685).

A drawn token is a fair label at temperature 1 and top-p 1 alone, and chat answers are greedy; where it is one, the
figures here are the expectation of what it would give, without the noise of the draw, which |…| would turn into error.
What is left of sampling is in the contexts: those are of the texts as they are.
"""

import numpy as np
import numpy.typing as npt

from pipeline.statistics import FloatVector
from pipeline.statistics.per_prompt import FloatMatrix, PerPrompt

NUM_BINS = 15
# The bins' edges are quantiles of so many tokens, the first: all there are but in large runs, and the memory it takes.
EDGE_TOKENS = 2**18


class Bins:
    """Per prompt and bin of confidence: the sums of confidence and accuracy, and the number of tokens."""

    def __init__(self) -> None:
        self._edges: FloatVector | None = None  # between the bins
        self._waiting: list[tuple[str, npt.NDArray[np.float32]]] = []  # (prompt, (N, 2)), until there are edges
        self._num_waiting = 0
        self._sums = PerPrompt(NUM_BINS * 3)

    def add(self, prompt: str, confidence_N: FloatVector, accuracy_N: FloatVector) -> None:
        values_N2 = np.column_stack([confidence_N, accuracy_N])
        if self._edges is not None:
            self._share_out(prompt, values_N2, self._edges)
            return
        self._waiting.append((prompt, values_N2.astype(np.float32)))
        self._num_waiting += len(values_N2)
        if self._num_waiting >= EDGE_TOKENS:
            self._settle()

    def sums(self) -> FloatMatrix:
        """(P, bins · 3): of each bin confidence, accuracy and tokens; prompts in the order they came."""
        if self._edges is None and self._waiting:
            self._settle()
        return self._sums.sums()

    def _settle(self) -> None:
        confidence = np.concatenate([values_N2[:, 0] for _, values_N2 in self._waiting]).astype(np.float64)
        edges: FloatVector = np.asarray(np.quantile(confidence, np.arange(1, NUM_BINS) / NUM_BINS), np.float64)
        for prompt, values_N2 in self._waiting:
            self._share_out(prompt, values_N2.astype(np.float64), edges)
        self._edges, self._waiting = edges, []

    def _share_out(self, prompt: str, values_N2: FloatMatrix, edges: FloatVector) -> None:
        sums = np.zeros((NUM_BINS, 3))
        places_N = np.searchsorted(edges, values_N2[:, 0], side="right")
        np.add.at(sums, places_N, np.column_stack([values_N2, np.ones(len(values_N2))]))
        self._sums.add(prompt, sums.ravel())


def ece_frac(totals_RC: FloatMatrix) -> FloatVector:
    """Expected calibration error of summed rows of `Bins.sums`: (R, bins · 3) → (R,)."""
    confidence_RB, accuracy_RB, tokens_RB = np.moveaxis(totals_RC.reshape(-1, NUM_BINS, 3), 2, 0)
    return np.abs(confidence_RB - accuracy_RB).sum(axis=1) / tokens_RB.sum(axis=1)
