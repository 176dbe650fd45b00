"""Which of the answers to train on that the rules kept are enough: the best of several, no bucket above its share.

Axes: N answers, P prompts, B buckets. Memory: 50 bytes an answer, where anything is asked for.
"""

import hashlib
import math
from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config import Selection
from pipeline.errors import UserError

BEST_OF_N = "best_of_n"
BALANCES = {  # by the setting that each is held to
    "max_category_frac": "category_balance",
    "max_length_frac": "length_balance",
    "max_difficulty_frac": "difficulty_balance",
}
REASONS = (BEST_OF_N, *BALANCES.values())
Flags = npt.NDArray[np.bool_]
Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
DIFFICULTY_STEP_NATS = 0.25  # width of a bucket of difficulty


def best_of_n(prompts_N: Ids, mean_nll_nats_N: Floats, num: int, grades_N: Floats | None = None) -> Flags:
    """The `num` answers to each prompt that the teacher finds likeliest, per token; ties go to the earlier one.

    With grades those of the highest, and of one grade the likeliest; an answer without a grade (NaN) is below all.
    Likelihood favours the usual over the surprising: it says nothing of whether an answer is right.
    """
    merits_N = np.zeros(len(prompts_N)) if grades_N is None else np.nan_to_num(grades_N, nan=-np.inf)
    order_N = np.lexsort((mean_nll_nats_N, -merits_N, prompts_N))
    sorted_N = prompts_N[order_N]
    is_first_N = np.append(True, sorted_N[1:] != sorted_N[:-1])[: len(sorted_N)]
    starts_N = np.maximum.accumulate(np.where(is_first_N, np.arange(len(sorted_N)), 0))
    is_kept_N = np.zeros(len(prompts_N), dtype=bool)
    is_kept_N[order_N] = np.arange(len(sorted_N)) - starts_N < num
    return is_kept_N


def within_share(buckets_N: Ids, max_frac: float, ranks_N: Ids) -> Flags:
    """The answers that stay so that no bucket is more than `max_frac` of what stays; as many as possible.

    Of a bucket that is too large those of the lowest rank stay. Where the buckets are too few for that (1 / max_frac
    at the least), nothing could stay: ValueError.
    """
    _, inverse_N, counts_B = np.unique(buckets_N, return_inverse=True, return_counts=True)
    if len(counts_B) * max_frac < 1:
        raise ValueError(f"{len(counts_B)} buckets can't all be at most {max_frac:g} of the whole")
    # every bucket is cut at m; m / Σ min(c, m) never falls as m grows, so the largest that fits is found by halving
    low, high = 0, int(counts_B.max())
    while low < high:
        middle = (low + high + 1) // 2
        fits = middle <= max_frac * np.minimum(counts_B, middle).sum() + 1e-9
        low, high = (middle, high) if fits else (low, middle - 1)
    order_N = np.lexsort((ranks_N, inverse_N))
    starts_B = np.cumsum(counts_B) - counts_B
    is_kept_N = np.zeros(len(buckets_N), dtype=bool)
    is_kept_N[order_N] = np.arange(len(buckets_N)) - starts_B[inverse_N[order_N]] < low
    return is_kept_N


def length_buckets(num_tokens_N: Ids) -> Ids:
    """Powers of two: 1, 2–3, 4–7, 8–15, ... tokens."""
    return np.frexp(np.maximum(num_tokens_N, 1).astype(np.float64))[1].astype(np.int64)


def difficulty_buckets(mean_nll_nats_N: Floats) -> Ids:
    """Steps of a quarter nat a token: how unsure the teacher was of its own answer."""
    return np.floor(mean_nll_nats_N / DIFFICULTY_STEP_NATS).astype(np.int64)


def rank(seed: int, response_id: str) -> int:
    """Where an answer stands in the order in which too large buckets are cut: a function of seed and id alone."""
    return int(hashlib.sha256(f"selection {seed} {response_id}".encode()).hexdigest()[:15], 16)


class Selector:
    """Collects the answers in their order, and decides when all are there; those that are held out are let be."""

    def __init__(self, settings: Selection) -> None:
        self._settings = settings
        self.is_on = any(getattr(settings, name) is not None for name in ("best_of", *BALANCES))
        self._grades_N: Floats | None = None
        self._categories: dict[str, int] = {}
        self._last_prompt = ""
        self._num_prompts = 0
        self._integers = {name: array("q") for name in ("prompt", "category", "tokens", "rank")}
        self._nll_nats = array("d")
        self._is_train, self._is_kept = array("b"), array("b")  # kept: and to train on

    def add(self, row: dict[str, Any], token_logprobs: npt.NDArray[np.float32], is_kept: bool) -> None:
        """Take in an answer and whether the rules kept it; answers to one prompt follow each other."""
        if not self.is_on:
            return
        self._num_prompts += row["prompt_id"] != self._last_prompt
        self._last_prompt = row["prompt_id"]
        category = self._categories.setdefault(row["category"] or "", len(self._categories))
        rank_ = rank(self._settings.seed, row["response_id"])
        for name, value in zip(self._integers, (self._num_prompts, category, len(token_logprobs), rank_), strict=True):
            self._integers[name].append(value)
        self._nll_nats.append(-float(token_logprobs.mean()) if len(token_logprobs) else 0.0)
        self._is_train.append(row["split"] == "train")
        self._is_kept.append(is_kept and row["split"] == "train")

    def contested(self, num: int) -> Flags:
        """The answers, (N,), to train on that the rules kept, of prompts that have more than `num` of them."""
        is_kept_N = np.frombuffer(self._is_kept, np.int8).astype(bool)
        prompts_N = np.frombuffer(self._integers["prompt"], np.int64)
        num_kept_P = np.bincount(prompts_N[is_kept_N], minlength=self._num_prompts + 1)
        return is_kept_N & (num_kept_P[prompts_N] > num)

    def rank_by(self, grades_N: Floats) -> None:
        """Take a judge's grades of all answers, (N,), NaN where there is none: from now on best_of goes by them."""
        self._grades_N = grades_N

    def decisions(self) -> Iterator[tuple[str | None, list[tuple[str, float]]]]:
        """`(reason, scores)` of each answer in turn: what it is dropped for now, None where it is not.

        Scores are of answers to train on that the rules kept: best_of_n's is the mean NLL, or the grade where there is
        one; a balance's the share of the answer's bucket before it, or before the pass that dropped it. Raises
        UserError where a share is too small for the buckets that there are.
        """
        is_kept_N = np.frombuffer(self._is_kept, np.int8).astype(bool)
        why_N = np.full(len(is_kept_N), -1)
        scores = {}
        if self._settings.best_of is not None:
            scores[BEST_OF_N] = np.frombuffer(self._nll_nats) if self._grades_N is None else self._grades_N
            self._drop(why_N, is_kept_N, REASONS.index(BEST_OF_N), self._best(is_kept_N, self._settings.best_of))
        balances = {name: buckets_N for name, buckets_N in self._buckets() if getattr(self._settings, name) is not None}
        for name, buckets_N in balances.items():
            scores[BALANCES[name]] = _shares(buckets_N, is_kept_N)
        before = -1
        while before != (before := int(is_kept_N.sum())):  # what one balance drops may upset another
            for name, buckets_N in balances.items():
                within_N = self._within(name, buckets_N, is_kept_N)
                dropped_N = is_kept_N & ~within_N
                scores[BALANCES[name]][dropped_N] = _shares(buckets_N, is_kept_N)[dropped_N]
                self._drop(why_N, is_kept_N, REASONS.index(BALANCES[name]), within_N)
        for answer, reached in enumerate(np.frombuffer(self._is_kept, np.int8)):
            given = [(name, float(score_N[answer])) for name, score_N in scores.items()] if reached else []
            given = [(name, score) for name, score in given if not math.isnan(score)]
            yield REASONS[why_N[answer]] if why_N[answer] >= 0 else None, given

    def alone(self) -> dict[str, int]:
        """How many answers each reason would drop if it stood alone, without rules and other reasons."""
        all_N, stays = np.frombuffer(self._is_train, np.int8).astype(bool), {}
        if self._settings.best_of is not None:
            stays[BEST_OF_N] = self._best(all_N, self._settings.best_of)
        for name, buckets_N in self._buckets():
            if getattr(self._settings, name) is not None:
                stays[BALANCES[name]] = self._within(name, buckets_N, all_N)
        return {reason: int((all_N & ~stays_N).sum()) for reason, stays_N in stays.items()}

    def _buckets(self) -> Iterator[tuple[str, Ids]]:
        yield "max_category_frac", np.frombuffer(self._integers["category"], np.int64)
        yield "max_length_frac", length_buckets(np.frombuffer(self._integers["tokens"], np.int64))
        yield "max_difficulty_frac", difficulty_buckets(np.frombuffer(self._nll_nats))

    def _best(self, is_kept_N: Flags, num: int) -> Flags:
        stays_N = is_kept_N.copy()
        prompts_N = np.frombuffer(self._integers["prompt"], np.int64)
        nll_nats_N, grades_N = np.frombuffer(self._nll_nats), self._grades_N
        stays_N[is_kept_N] = best_of_n(
            prompts_N[is_kept_N], nll_nats_N[is_kept_N], num, None if grades_N is None else grades_N[is_kept_N]
        )
        return stays_N

    def _within(self, name: str, buckets_N: Ids, is_kept_N: Flags) -> Flags:
        stays_N = is_kept_N.copy()
        ranks_N = np.frombuffer(self._integers["rank"], np.int64)
        max_frac = getattr(self._settings, name)
        try:
            stays_N[is_kept_N] = within_share(buckets_N[is_kept_N], max_frac, ranks_N[is_kept_N])
        except ValueError as error:
            raise UserError(f"filter.selection.{name}={max_frac:g}: {error}; give more, or null") from None
        return stays_N

    @staticmethod
    def _drop(why_N: Ids, is_kept_N: Flags, reason: int, stays_N: Flags) -> None:
        why_N[is_kept_N & ~stays_N] = reason
        is_kept_N &= stays_N


def _shares(buckets_N: Ids, is_kept_N: Flags) -> Floats:
    """Of each answer, what share of those that are kept is in its bucket."""
    _, inverse_N = np.unique(buckets_N, return_inverse=True)
    counts_B = np.bincount(inverse_N[is_kept_N], minlength=int(inverse_N.max(initial=0)) + 1)
    return counts_B[inverse_N] / max(1, int(is_kept_N.sum()))
