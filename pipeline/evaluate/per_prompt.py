"""Sums by prompt, and 95 % intervals of whatever is computed of their totals.

Axes: P prompts, C columns, R resamples.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pipeline.evaluate.statistics import MAX_WEIGHTS, Figure, FloatVector

FloatMatrix = npt.NDArray[np.float64]


class PerPrompt:
    """A row of sums for each prompt, in the order the prompts came."""

    def __init__(self, num_columns: int) -> None:
        self._place: dict[str, int] = {}
        self._sums_PC = np.zeros((16, num_columns))

    def add(self, prompt: str, values_C: FloatVector) -> None:
        place = self._place.setdefault(prompt, len(self._place))
        if place == len(self._sums_PC):
            self._sums_PC = np.concatenate([self._sums_PC, np.zeros_like(self._sums_PC)])
        self._sums_PC[place] += values_C

    def prompts(self) -> list[str]:
        return list(self._place)

    def sums(self) -> FloatMatrix:
        return self._sums_PC[: len(self._place)]


def interval(
    statistic: Callable[[FloatMatrix], FloatVector], sums_PC: FloatMatrix, resamples: int, seed: int
) -> Figure:
    """A statistic of the prompts' totals, with the percentile bootstrap interval over prompts.

    `statistic` takes totals (R, C) and gives (R,). `statistics.ratio` is this for a quotient of two columns.
    """
    value = float(statistic(sums_PC.sum(axis=0, keepdims=True))[0])
    num = len(sums_PC)
    if num < 2:
        return {"value": value, "low": None, "high": None, "num": num}
    generator = np.random.default_rng(seed)
    drawn: list[FloatVector] = []
    rows = max(1, MAX_WEIGHTS // num)
    for start in range(0, resamples, rows):
        # how often each prompt stands in each resample
        weights_RP = generator.multinomial(num, np.full(num, 1 / num), size=min(rows, resamples - start))
        with np.errstate(divide="ignore", invalid="ignore"):
            drawn.append(statistic(weights_RP.astype(np.float64) @ sums_PC))
    low, high = np.nanquantile(np.concatenate(drawn), [0.025, 0.975])
    return {"value": value, "low": float(low), "high": float(high), "num": num}
