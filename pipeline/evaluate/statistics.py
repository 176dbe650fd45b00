"""Figures with 95 % intervals: bootstrap over prompts, so that what hangs together is drawn together."""

from typing import TypedDict

import numpy as np
import numpy.typing as npt

FloatVector = npt.NDArray[np.float64]
MAX_WEIGHTS = 50_000_000  # entries of the resampling matrix held at once


class Figure(TypedDict):
    """A number as scores.json has it; `num` is how many independent things it is about."""

    value: float
    low: float | None
    high: float | None
    num: int


def ratio(numerators: FloatVector, denominators: FloatVector, resamples: int, seed: int) -> Figure:
    """Σ numerators / Σ denominators over prompts, with the percentile bootstrap interval over prompts.

    A mean per token has the prompt's sum and its number of tokens; a comparison of two arms has their sums, paired.
    """
    value = float(numerators.sum() / denominators.sum())
    n = len(numerators)
    if n < 2:
        return {"value": value, "low": None, "high": None, "num": n}
    generator = np.random.default_rng(seed)
    drawn: list[FloatVector] = []
    rows = max(1, MAX_WEIGHTS // n)
    for start in range(0, resamples, rows):
        # how often each prompt stands in each resample
        weights = generator.multinomial(n, np.full(n, 1 / n), size=min(rows, resamples - start)).astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            drawn.append((weights @ numerators) / (weights @ denominators))
    low, high = np.nanquantile(np.concatenate(drawn), [0.025, 0.975])
    return {"value": value, "low": float(low), "high": float(high), "num": n}


def repeated(values: list[float]) -> Figure:
    """Median of repeated measurements, with their minimum and maximum."""
    return {"value": float(np.median(values)), "low": min(values), "high": max(values), "num": len(values)}


def exact(value: float) -> Figure:
    """A count, known without error."""
    return {"value": float(value), "low": None, "high": None, "num": 1}
