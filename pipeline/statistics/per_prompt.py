"""Sums by prompt, and 95 % intervals of whatever is computed of their totals.

Axes: P prompts, C columns, R resamples.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pipeline.statistics import Figure, FloatVector, resampled_sums

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


def intervals(
    statistics: Callable[[FloatMatrix], FloatMatrix], sums_PC: FloatMatrix, resamples: int, seed: int
) -> list[Figure]:
    """Statistics of the prompts' totals, each with its percentile bootstrap interval over prompts.

    `statistics` takes totals (R, C) and gives (R, F). The prompts are drawn as `statistics.ratio` draws them, but once
    for all: a quotient of two columns comes out the same, and figures of one set are paired.
    """
    num = len(sums_PC)
    totals_RC = resampled_sums(sums_PC, resamples, seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        values_F = statistics(sums_PC.sum(axis=0, keepdims=True))[0]
        if not len(totals_RC):
            return [{"value": float(value), "low": None, "high": None, "num": num} for value in values_F]
        drawn_RF = statistics(totals_RC)
    bounds_2F = np.nanquantile(drawn_RF, [0.025, 0.975], axis=0)
    return [
        {"value": float(value), "low": float(low), "high": float(high), "num": num}
        for value, low, high in zip(values_F, *bounds_2F, strict=True)
    ]
