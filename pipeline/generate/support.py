"""Which of the teacher's K best tokens are stored for each token: all, the likeliest, those drawn, or counts of draws.

All but counts are the teacher's distribution with some tokens merged into one bucket, the tail: a student that matches
it has a KL of 0, whichever tokens were merged. Counts are an unbiased estimate of the distribution within the K best.
Their tail is the mass outside the K best; it can't be held against a student's, whose mass outside the ids that happen
to be stored is another thing, so training leaves it out.

Axes: N tokens, K log-probs that the teacher gave, best first, padded at −inf.
"""

import hashlib

import numpy as np
import numpy.typing as npt

from pipeline import codec
from pipeline.codec import FloatArray, IdArray
from pipeline.config import Generate


def pack(
    ids_NK: IdArray, logprobs_NK: FloatArray, vocab_size: int, settings: Generate, response_id: str
) -> codec.Packed:
    """The support that the settings ask for, packed. Log-probs are nats, over the whole vocabulary."""
    if settings.support in ("drawn", "sampled"):
        counts_NK = counts_of_draws(logprobs_NK, uniforms(len(ids_NK), settings, response_id))
        if settings.support == "sampled":
            return codec.encode_draws(ids_NK, counts_NK, codec.log_tail(logprobs_NK, vocab_size))
        drawn_NK = np.where(counts_NK > 0, logprobs_NK, -np.inf).astype(np.float32)
        return codec.encode(ids_NK, drawn_NK, codec.log_tail(drawn_NK, vocab_size), codec.DRAWN_LEVELS)
    if settings.support == "nucleus":
        logprobs_NK = nucleus(logprobs_NK, settings.nucleus_mass, settings.nucleus_min)
    return codec.encode(ids_NK, logprobs_NK, codec.log_tail(logprobs_NK, vocab_size))


def nucleus(logprobs_NK: FloatArray, mass: float, min_entries: int) -> FloatArray:
    """The rows with −inf in place of what follows the first entries that together hold `mass`."""
    before_NK = np.cumsum(np.exp(logprobs_NK.astype(np.float64)), axis=1) - np.exp(logprobs_NK.astype(np.float64))
    is_kept_NK = (before_NK < mass) | (np.arange(logprobs_NK.shape[1]) < min_entries)
    return np.where(is_kept_NK, logprobs_NK, -np.inf).astype(np.float32)


def uniforms(num_tokens: int, settings: Generate, response_id: str) -> npt.NDArray[np.float64]:
    """Where the draws of each token fall in [0, 1), (N, draws): a function of seed, response id and position alone.

    Systematic draws are evenly spaced from one random start, so a count is the expected one, rounded up or down:
    their variance is the least that single draws can have. Random-sampling KD (arXiv:2503.16870) draws independently.
    """
    digest = hashlib.sha256(f"draws {settings.seed} {response_id}".encode()).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    return (np.arange(settings.num_draws) + generator.random((num_tokens, 1))) / settings.num_draws


def counts_of_draws(logprobs_NK: FloatArray, uniforms_ND: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """How many draws fall on each entry, (N, K), each drawn with its share of its row's mass: unbiased within the row.

    The share of the draws, times the row's mass, has the entry's probability as its expectation.
    """
    N, K = logprobs_NK.shape
    ends_NK = np.cumsum(np.exp(logprobs_NK.astype(np.float64)), axis=1)
    ends_NK /= ends_NK[:, -1:]
    rows_N1 = np.arange(N)[:, None]
    # one sorted line for all rows: row n spans (n, n + 1]
    drawn = np.searchsorted((ends_NK + rows_N1).reshape(-1), (uniforms_ND + rows_N1).reshape(-1), side="right")
    return np.bincount(np.minimum(drawn, N * K - 1), minlength=N * K).reshape(N, K)
