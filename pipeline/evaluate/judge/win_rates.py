"""What verdicts come to: win-rates, raw and at equal length, and what speaks against the judge; clustered by item.

Axes: N pairs, I items, R resamples, F features of the regression.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.judge.questions import Choice
from pipeline.run import metrics
from pipeline.statistics import Figure, ratio, resampled_weights

Array = npt.NDArray[np.float64]
Figures = dict[str, Figure]
FIRST = {"A": 1.0, "tie": 0.5, "B": 0.0}  # what a verdict is worth to the answer in the first place
SLOPE_RIDGE = 0.1  # against 88 verdicts next to nothing; keeps a slope finite where the longer answer always wins
LEVEL_RIDGE = 1e-3  # the same for a level where one side always wins
NEWTON_STEPS, MAX_STEP = 40, 2.0
CHUNK = 4_000_000  # entries of the R × N matrices held at once


@dataclass(frozen=True)
class Outcome:
    """A pair's two verdicts: `choices[0]` with the first answer as A, `choices[1]` with it as B; None: invalid."""

    item_id: str
    category: str
    longer_by: int  # characters of the first answer over the second
    choices: tuple[Choice | None, Choice | None]

    @property
    def is_valid(self) -> bool:
        return None not in self.choices

    def scores(self) -> tuple[float, float]:
        """What each order gives the first answer: 1 won, 0.5 tie, 0 lost."""
        return FIRST[str(self.choices[0])], 1 - FIRST[str(self.choices[1])]

    def score(self) -> float:
        """The mean of both orders: a verdict that flips with the order is a tie."""
        return sum(self.scores()) / 2


class Clustered:
    """Means whose intervals are drawn over items: what hangs together is drawn together."""

    def __init__(self, resamples: int, seed: int) -> None:
        self.resamples, self.seed = resamples, seed

    def mean(self, values: Iterable[tuple[str, float]]) -> Figure | None:
        """The mean of (item, value) with its interval; None where there are none."""
        sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for item_id, value in values:
            sums[item_id][0] += value
            sums[item_id][1] += 1
        if not sums:
            return None
        numerators, denominators = np.array(list(sums.values())).T
        return ratio(numerators, denominators, self.resamples, self.seed)


def compared(outcomes: list[Outcome], draws: Clustered) -> Figures:
    """Win-rate of the first answer, what is won, tied, lost, and the judge's leanings; only what could be counted.

    Pairs with an invalid verdict count in `invalid_frac` (of verdicts) alone.
    """
    valid = [o for o in outcomes if o.is_valid]
    scored = [(o.item_id, o.score()) for o in valid]
    decided = [(o, choice, place) for o in valid for place, choice in enumerate(o.choices) if choice != "tie"]
    unequal = [(o, choice, place) for o, choice, place in decided if o.longer_by]
    found = {
        metrics.WIN_RATE: draws.mean(scored),
        metrics.LENGTH_CONTROLLED_WIN_RATE: length_controlled(valid, draws) if valid else None,
        metrics.WON_FRAC: draws.mean((item, float(score > 0.5)) for item, score in scored),
        metrics.TIED_FRAC: draws.mean((item, float(score == 0.5)) for item, score in scored),
        metrics.LOST_FRAC: draws.mean((item, float(score < 0.5)) for item, score in scored),
        metrics.POSITION_FLIP_FRAC: draws.mean((o.item_id, float({*o.scores()} == {0.0, 1.0})) for o in valid),
        metrics.FIRST_PLACE_FRAC: draws.mean((o.item_id, float(choice == "A")) for o, choice, _ in decided),
        metrics.LONGER_PREFERRED_FRAC: draws.mean(
            # the first answer is A in the order 0, B in the order 1
            (o.item_id, float((o.longer_by > 0) == (choice == "AB"[place])))
            for o, choice, place in unequal
        ),
        metrics.INVALID_FRAC: draws.mean((o.item_id, float(choice is None)) for o in outcomes for choice in o.choices),
    }
    return {name: figure for name, figure in found.items() if figure is not None}


def by_category(outcomes: list[Outcome], draws: Clustered) -> dict[str, Figures]:
    """Both win-rates of each category; those at equal length share one slope, since a category has few pairs."""
    valid = [o for o in outcomes if o.is_valid]
    categories = sorted({o.category for o in valid})
    if not categories:
        return {}
    even = _at_equal_length(valid, categories, draws)
    found = {}
    for category, figure in zip(categories, even, strict=True):
        raw = draws.mean((o.item_id, o.score()) for o in valid if o.category == category)
        assert raw is not None  # noqa: S101 - a category is one of a pair
        found[category] = {metrics.WIN_RATE: raw, metrics.LENGTH_CONTROLLED_WIN_RATE: figure}
    return found


def length_controlled(outcomes: list[Outcome], draws: Clustered) -> Figure:
    """The win-rate that a logistic regression on the difference in length predicts for answers of equal length.

    logit p = level + slope · tanh(difference / its standard deviation), after Dubois et al. 2024, arXiv:2404.04475.
    """
    [figure] = _at_equal_length(outcomes, None, draws)
    return figure


def _at_equal_length(outcomes: list[Outcome], categories: list[str] | None, draws: Clustered) -> list[Figure]:
    """One figure for each category, or one for all; a level each, and one slope."""
    longer_by_N = np.array([o.longer_by for o in outcomes], dtype=np.float64)
    spread = longer_by_N.std()
    slope_N1 = np.tanh(longer_by_N / spread if spread else longer_by_N * 0)[:, None]
    groups = [[o.category == category for o in outcomes] for category in categories or []] or [[True] * len(outcomes)]
    levels_NF = np.array(groups, dtype=np.float64).T
    features_NF = np.hstack([levels_NF, slope_N1])
    scores_N = np.array([o.score() for o in outcomes])
    ridge_F = np.array([LEVEL_RIDGE] * len(groups) + [SLOPE_RIDGE])
    items = {item_id: place for place, item_id in enumerate(dict.fromkeys(o.item_id for o in outcomes))}
    owner_N = np.array([items[o.item_id] for o in outcomes])

    def rates(weights_RN: Array) -> Array:
        levels_RF = logistic(features_NF, scores_N, weights_RN, ridge_F)[:, :-1]
        is_drawn = weights_RN @ levels_NF > 0
        return np.where(is_drawn, _sigmoid(levels_RF), np.nan)

    [values] = rates(np.ones((1, len(outcomes))))
    nums = [len({o.item_id for o, is_in in zip(outcomes, group, strict=True) if is_in}) for group in groups]
    resampled = resampled_weights(len(items), draws.resamples, draws.seed, CHUNK // len(outcomes))
    drawn = [rates(weights_RI[:, owner_N]) for weights_RI in resampled]
    found: list[Figure] = []
    for place, (value, num) in enumerate(zip(values, nums, strict=True)):
        low = high = None
        if num > 1:
            rates_R = np.concatenate(drawn)[:, place]
            low, high = (
                map(float, np.nanquantile(rates_R, [0.025, 0.975])) if np.isfinite(rates_R).any() else (None, None)
            )
        found.append({"value": float(value), "low": low, "high": high, "num": num})
    return found


def logistic(features_NF: Array, scores_N: Array, weights_RN: Array, ridge_F: Array) -> Array:
    """Coefficients of R weighted logistic regressions on scores of 0-1, by Newton's method: (R, F).

    Each maximises the weighted log-likelihood less Σ ridge · coefficient² / 2.
    """
    N, F = features_NF.shape
    outer_NFF = (features_NF[:, :, None] * features_NF[:, None, :]).reshape(N, F * F)
    coefficients_RF = np.zeros((len(weights_RN), F))
    for _ in range(NEWTON_STEPS):
        rates_RN = _sigmoid(coefficients_RF @ features_NF.T)
        slope_RF = (weights_RN * (scores_N - rates_RN)) @ features_NF - ridge_F * coefficients_RF
        curve_RFF = ((weights_RN * rates_RN * (1 - rates_RN)) @ outer_NFF).reshape(-1, F, F) + np.diag(ridge_F)
        step_RF = np.linalg.solve(curve_RFF, slope_RF[..., None])[..., 0]
        coefficients_RF += step_RF.clip(-MAX_STEP, MAX_STEP)
        if np.abs(step_RF).max() < 1e-8:
            break
    return coefficients_RF


def wilson(total: float, num: int) -> Figure:
    """A share of `num` independent trials with Wilson's 95 % interval, that holds at 0 and 1 too.

    For scores with ties of a half it is wider than need be. Raises ZeroDivisionError where there is no trial.
    """
    share, z = total / num, 1.959964
    centre = (share + z**2 / (2 * num)) / (1 + z**2 / num)
    reach = z * math.sqrt(share * (1 - share) / num + z**2 / (4 * num**2)) / (1 + z**2 / num)
    return {"value": share, "low": max(0.0, centre - reach), "high": min(1.0, centre + reach), "num": num}


def _sigmoid(x: Array) -> Array:
    return 0.5 * (1 + np.tanh(x / 2))  # does not overflow
