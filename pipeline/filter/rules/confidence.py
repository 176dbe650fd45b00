"""Rules from the log-probs that were paid for: how sure the teacher was of what it wrote. Temperature 1, nats.

They need `token_logprobs` alone. Of an answer whose log-probs are unknown they say nothing. Ours, except where said.
"""

import numpy as np
import numpy.typing as npt

from pipeline.config import Filter
from pipeline.filter.rules.response import Nats, Response, Verdict

MIN_NLL_TOKENS = 8
SPAN_TOKENS = 32
LOOP_NGRAM_TOKENS = 8
SURE_NATS = 0.1  # a token of a probability above .9
HASH_FACTOR = 0x9E3779B97F4A7C15
# (tokens, the factor to that power): hashes of 1, 2 and 4 tokens are joined two by two
DOUBLINGS = [(width, np.array([pow(HASH_FACTOR, width, 1 << 64)], np.uint64)) for width in (1, 2, 4)]


def confident_loop(answer: Response, settings: Filter) -> Verdict | None:
    """Longest stretch of tokens that the teacher was sure of because it had written them before; `max_loop_tokens`.

    A token counts where the 8 tokens that end with it stand earlier in the answer, and its NLL is below 0.1 nats: the
    distribution has collapsed onto the loop (Holtzman et al. 2020, figure 4). Catches loops without sentences or words.
    """
    limit = settings.max_loop_tokens
    if limit is None or not len(answer.token_logprobs):
        return None
    if len(answer.token_ids) < max(limit, LOOP_NGRAM_TOKENS + 1):
        return 0.0, True
    is_known_T = _stands_earlier(np.asarray(answer.token_ids, np.uint64))
    if is_known_T is None:
        return 0.0, True
    is_sure_T = answer.token_logprobs[LOOP_NGRAM_TOKENS - 1 :] > -SURE_NATS
    longest = _longest_true(is_known_T & is_sure_T)
    return longest, longest <= limit


def low_confidence_span(answer: Response, settings: Filter) -> Verdict | None:
    """Highest mean NLL of 32 tokens in a row, nats a token, against `max_span_nll_nats`: where the thread was lost.

    Shorter answers are one span, from 8 tokens on.
    """
    if settings.max_span_nll_nats is None or len(answer.token_logprobs) < MIN_NLL_TOKENS:
        return None
    nats = worst_span_nll_nats(answer.token_logprobs)
    return nats, nats <= settings.max_span_nll_nats


def high_nll(answer: Response, settings: Filter) -> Verdict | None:
    """Mean NLL, nats a token, against that of the run's worst answers, `worst_nll_frac` of all; 8 tokens on.

    The limit is the run's own quantile (manifest: `nll_limit_nats`), found in a pass of its own.
    """
    if answer.run.nll_limit_nats is None or len(answer.token_logprobs) < MIN_NLL_TOKENS:
        return None
    nats = -float(answer.token_logprobs.mean())
    return nats, nats <= answer.run.nll_limit_nats


def nll_limit_nats(means: npt.NDArray[np.floating], worst_frac: float) -> float | None:
    """The mean NLL that this share of the answers is above, at most; None where that is less than one answer."""
    num_worst = int(len(means) * worst_frac)
    return float(np.partition(means, -num_worst - 1)[-num_worst - 1]) if 0 < num_worst < len(means) else None


def worst_span_nll_nats(token_logprobs: Nats) -> float:
    """Highest mean NLL of SPAN_TOKENS in a row; of all, where there are fewer."""
    width = min(SPAN_TOKENS, len(token_logprobs))
    sums = np.cumsum(token_logprobs, dtype=np.float64)
    sums[width:] -= sums[:-width].copy()
    return -float(sums[width - 1 :].min()) / width


def _stands_earlier(ids_T: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_] | None:
    """Of each run of 8 tokens, by a hash of it, whether it stands earlier too; None where none does."""
    hashes = ids_T
    for width, factor in DOUBLINGS:
        hashes = hashes[:-width] * factor + hashes[width:]  # wraps around
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    is_same = ordered[1:] == ordered[:-1]
    if not is_same.any():
        return None
    is_earlier = np.zeros(len(hashes), np.bool_)
    is_earlier[order[1:]] = is_same
    return is_earlier


def _longest_true(values: npt.NDArray[np.bool_]) -> int:
    if not values.any():
        return 0
    ends = np.flatnonzero(np.diff(np.concatenate([[False], values, [False]]).astype(np.int8)))
    return int((ends[1::2] - ends[::2]).max())
