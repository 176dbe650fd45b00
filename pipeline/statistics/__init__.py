"""Figures with 95 % intervals and tests, over prompts: what hangs together is drawn together, what is paired stays so.

Axes: N prompts (or items: whatever is independent), C columns, R resamples.
"""

from collections.abc import Iterator, Sequence
from math import isfinite
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from pipeline.statistics import binomial

FloatVector = npt.NDArray[np.float64]
RELABELINGS = 10_000
MAX_WEIGHTS = 50_000_000  # entries of the resampling matrix held at once
SIGNIFICANCE, POWER = 0.05, 0.8


class Figure(TypedDict):
    """A number as scores.json has it; `num` is how many independent things it is about."""

    value: float
    low: float | None
    high: float | None
    num: int


def cluster_sums(clusters: Sequence[str], values: Sequence[float]) -> tuple[FloatVector, FloatVector]:
    """Each cluster's sum of values and their number, clusters in the order they first come.

    Rows of one prompt are no independent evidence: `ratio` of these two draws prompts, never rows.
    """
    place = {cluster: number for number, cluster in enumerate(dict.fromkeys(clusters))}
    rows = np.array([place[cluster] for cluster in clusters], np.int64)
    sums = np.bincount(rows, np.asarray(values, np.float64), len(place))
    return sums.astype(np.float64), np.bincount(rows, minlength=len(place)).astype(np.float64)


def ratio(numerators: FloatVector, denominators: FloatVector, resamples: int, seed: int) -> Figure:
    """Σ numerators / Σ denominators over prompts, with the percentile bootstrap interval over prompts.

    A mean per token has the prompt's sum and its number of tokens; a comparison of two arms has their sums, paired.
    """
    sums_R2 = resampled_sums(np.stack([numerators, denominators], axis=1), resamples, seed)
    return _ratio(numerators, denominators, sums_R2)


def defined_ratio(numerators: FloatVector, denominators: FloatVector, resamples: int, seed: int) -> Figure | None:
    """`ratio`, or None where it is not defined: the denominators' own interval, of the same resamples, holds 0.

    Then the set can't tell the denominator from nothing, and the ratio may be any number. (Fieller's interval is
    unbounded in just that case: Fieller 1954.)
    """
    sums_R2 = resampled_sums(np.stack([numerators, denominators], axis=1), resamples, seed)
    low, high = _bounds(sums_R2[:, 1])
    if low is None or high is None or low <= 0 <= high:
        return None
    return _ratio(numerators, denominators, sums_R2)


def mean(values: FloatVector, resamples: int, seed: int) -> Figure:
    """The mean over prompts; of `first - second` it is the paired difference of two arms."""
    return ratio(values, np.ones_like(values), resamples, seed)


def gap_closed(
    student: FloatVector, untrained: FloatVector, teacher: FloatVector, resamples: int, seed: int
) -> Figure | None:
    """(S − S₀) / (T − S₀) of scores per prompt; None where the teacher was not shown to differ from the untrained.

    1: the student is as good as its teacher; 0: training bought nothing.
    """
    return defined_ratio(student - untrained, teacher - untrained, resamples, seed)


def resampled_sums(values_NC: npt.NDArray[np.float64], resamples: int, seed: int) -> npt.NDArray[np.float64]:
    """The columns' sums in each resample of the N rows; shape (R, C), R = 0 where one row can't be resampled.

    The same N, number and seed draw the same rows, so figures made apart are still paired.
    """
    n, num_columns = values_NC.shape
    drawn = [weights_RN @ values_NC for weights_RN in resampled_weights(n, resamples, seed, MAX_WEIGHTS // n)]
    return np.concatenate(drawn) if drawn else np.empty((0, num_columns))


def resampled_weights(num: int, resamples: int, seed: int, max_rows: int) -> Iterator[npt.NDArray[np.float64]]:
    """How often each of `num` prompts stands in each resample: parts of at most `max_rows`, (R, N); none of one prompt.

    However it is parted, the same number and seed draw the same resamples.
    """
    generator, rows = np.random.default_rng(seed), max(1, max_rows)
    for start in range(0, resamples if num > 1 else 0, rows):
        yield generator.multinomial(num, np.full(num, 1 / num), size=min(rows, resamples - start)).astype(np.float64)


def sign_test(differences: FloatVector) -> Figure:
    """Exact two-sided p that ups and downs among the paired differences are equally likely; `num` of them differ.

    Of binary outcomes this is McNemar's exact test (McNemar 1947): pairs that agree say nothing.
    """
    ups, downs = int((differences > 0).sum()), int((differences < 0).sum())
    return {"value": binomial.sign_test(ups, downs), "low": None, "high": None, "num": ups + downs}


def permutation_test(first: FloatVector, second: FloatVector, seed: int) -> Figure:
    """Two-sided p that two sets of different items are drawn alike: how often a relabeling parts their means as far.

    RELABELINGS random ones and that of the data (Phipson and Smyth 2010), so that however few the items are, a true
    null is rejected no more often than the level says. `num` is the items of the smaller set.
    """
    both, generator = np.concatenate([first, second]), np.random.default_rng(seed)
    scale = 1 / len(first) + 1 / len(second)  # the difference of means is this much of the first sum, less a constant
    expected, rows = both.mean() * len(first), max(1, MAX_WEIGHTS // len(both))
    least = abs(first.sum() - expected) - 1e-9 / scale  # as far apart, but for rounding
    num_as_far = 1
    for start in range(0, RELABELINGS, rows):
        drawn = np.broadcast_to(both, (min(rows, RELABELINGS - start), len(both)))
        sums = generator.permuted(drawn, axis=1)[:, : len(first)].sum(axis=1)
        num_as_far += int((np.abs(sums - expected) >= least).sum())
    p = num_as_far / (RELABELINGS + 1)
    return {"value": p, "low": None, "high": None, "num": min(len(first), len(second))}


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """p-values for a family of comparisons, adjusted so that one false finding among all has its 5 % (Holm 1979)."""
    adjusted, highest = {}, 0.0
    for place, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}


def detectable_difference(differences: FloatVector, num_tests: int = 1) -> Figure | None:
    """The least true difference of shares that so many pairs show with 80 % power; None where no pair differs, or none.

    By the exact sign test at 5 % ÷ `num_tests`, the strictest level of Holm's for so many; as many pairs differ as do
    here, or as the difference itself needs. How to say it of evaluations: Miller 2024 (arXiv:2411.00640).
    """
    num, discordant = len(differences), float(np.mean(differences != 0)) if len(differences) else 0.0
    level = SIGNIFICANCE / num_tests

    def power(difference: float) -> float:
        return binomial.power_of_sign_test(num, max(discordant, difference), difference, level)

    if not discordant or power(1) < POWER:
        return None
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if power(middle) < POWER else (low, middle)
    return {"value": high, "low": None, "high": None, "num": num}


def repeated(values: list[float]) -> Figure:
    """Median of repeated measurements, with their minimum and maximum."""
    return {"value": float(np.median(values)), "low": min(values), "high": max(values), "num": len(values)}


def exact(value: float) -> Figure:
    """A count, known without error."""
    return {"value": float(value), "low": None, "high": None, "num": 1}


def defined(found: Any) -> Any:
    """A tree of figures as JSON can have it: None for a figure without a finite value (0 / 0), and for such a bound."""
    if not isinstance(found, dict):
        return found
    if "value" not in found:
        return {name: defined(inner) for name, inner in found.items()}
    if not isfinite(found["value"]):
        return None
    return {name: None if isinstance(x, float) and not isfinite(x) else x for name, x in found.items()}


def _ratio(numerators: FloatVector, denominators: FloatVector, sums_R2: npt.NDArray[np.float64]) -> Figure:
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(numerators.sum() / denominators.sum())
        low, high = _bounds(sums_R2[:, 0] / sums_R2[:, 1])
    return {"value": value, "low": low, "high": high, "num": len(numerators)}


def _bounds(draws_R: FloatVector) -> tuple[float | None, float | None]:
    """The 95 % percentile interval of what was resampled; None where there is no such bound."""
    draws_R = draws_R[~np.isnan(draws_R)]  # of a resample that drew no token at all
    if not len(draws_R):
        return None, None
    tail = SIGNIFICANCE / 2
    low, high = (float(bound) for bound in np.quantile(draws_R, [tail, 1 - tail]))
    return low if isfinite(low) else None, high if isfinite(high) else None
