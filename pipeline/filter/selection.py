"""Which of the answers that every rule kept are enough: the likeliest of several, and no bucket above its share.

Axes: N answers, B buckets.
"""

import hashlib

import numpy as np
import numpy.typing as npt

Flags = npt.NDArray[np.bool_]
Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
DIFFICULTY_STEP_NATS = 0.25  # width of a bucket of difficulty


def best_of_n(prompts_N: Ids, mean_nll_nats_N: Floats, num: int) -> Flags:
    """The `num` answers to each prompt that the teacher finds likeliest, per token; ties go to the earlier one.

    Likelihood favours the usual over the surprising: it says nothing of whether an answer is right.
    """
    order_N = np.lexsort((mean_nll_nats_N, prompts_N))
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
