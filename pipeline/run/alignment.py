"""The alignment contract of records.py, checked on one stored response: tokens and rows belong together.

Axes: N tokens, K stored support.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import codec
from pipeline.codec import FloatArray
from pipeline.errors import UserError

ROUNDING_NATS = 0.02  # float32, and tails of 2e-4
ROUNDING_DRAWS = 0.01
DRAWS_SIGMA = 7  # a count that chance makes this improbable does not come by chance


def check(row: dict[str, Any], vocab_size: int) -> float:
    """The stored log-prob of each sampled token against its row: equal where the row has it, else below the row.

    `row` has response_id, token_ids, token_logprobs and logprobs, as in records.RESPONSES. Where rows hold counts of
    draws, those of the sampled tokens are compared with what their log-probs imply. Returns the largest difference
    beyond rounding, nats (0 for counts). Raises UserError where rows and tokens differ in number or disagree, where an
    id is outside the vocabulary or twice in a row, and where a row and its tail don't sum to 1.
    """
    name, tokens_N = f"response {row['response_id']}", np.asarray(row["token_ids"], np.int64)
    sampled_N = np.asarray(row["token_logprobs"], np.float32)
    try:
        ids_NK, logprobs_NK, log_tail_N, mass_N = codec.decode_with_mass(row["logprobs"])
    except (ValueError, TypeError) as error:  # TypeError: a null where a number belongs
        raise UserError(f"{name}: {error}") from None
    if not len(ids_NK) == len(tokens_N) == len(sampled_N):
        raise UserError(f"{name}: {len(tokens_N)} tokens, but {len(ids_NK)} rows of log-probs")
    if not len(tokens_N):
        return 0.0
    largest = max(ids_NK.max(), tokens_N.max())
    if largest >= vocab_size or tokens_N.min() < 0:
        raise UserError(f"{name}: token id {largest} is outside the vocabulary of {vocab_size}")
    # a fill-in repeats an id without mass: numbered below 0, apart from every id and each other
    distinct_NK = np.sort(np.where(logprobs_NK > -np.inf, ids_NK, -1 - np.arange(ids_NK.shape[1])), axis=1)
    if (np.diff(distinct_NK, axis=1) == 0).any():
        raise UserError(f"{name}: a row of its log-probs has the same token twice")
    # what rounding can take or give, were it all of one sign; a row is then made to sum to 1: its levels move by that
    rounding_N = (np.exp(logprobs_NK.astype(np.float64)) * codec.level_error_nats(logprobs_NK)).sum(axis=1)
    rounding_N = 1.1 * rounding_N + ROUNDING_NATS
    if not (np.abs(mass_N - 1) < rounding_N).all():
        worst = int((np.abs(mass_N - 1) - rounding_N).argmax())
        raise UserError(f"{name}, token {worst}: its row and tail hold a probability of {mass_N[worst]:.4f}, not 1")
    if not (sampled_N <= 0).all():
        worst = int((~(sampled_N <= 0)).argmax())
        raise UserError(f"{name}, token {worst}: its log-prob is {sampled_N[worst]}, not a number up to 0")
    is_here_NK = (ids_NK == tokens_N[:, None]) & (logprobs_NK > -np.inf)
    if row["logprobs"]["kind"] in codec.COUNTS:
        _check_draws(name, row["logprobs"], sampled_N, is_here_NK, logprobs_NK, log_tail_N)
        return 0.0
    moved_N = np.abs(np.log(mass_N - np.exp(log_tail_N)) - np.log1p(-np.exp(log_tail_N))) + ROUNDING_NATS
    is_best = row["logprobs"]["kind"] == codec.LEVELS
    return _check_levels(name, sampled_N, is_here_NK, logprobs_NK, log_tail_N, moved_N, is_best)


def _check_levels(
    name: str,
    sampled_N: FloatArray,
    is_here_NK: npt.NDArray[np.bool_],
    logprobs_NK: FloatArray,
    log_tail_N: FloatArray,
    moved_N: npt.NDArray[np.float64],
    is_best: bool,
) -> float:
    stored_N = np.where(is_here_NK, logprobs_NK, 0).sum(axis=1)
    # outside the support: no likelier than the least of it, where it is of the likeliest, nor than the whole tail
    least_N = np.where((logprobs_NK > -np.inf) & is_best, logprobs_NK, 0).min(axis=1)
    ceiling_N = np.minimum(least_N, np.log(np.exp(log_tail_N.astype(np.float64)) + codec.TAIL_STEP))
    off_N = np.where(is_here_NK.any(axis=1), np.abs(stored_N - sampled_N), np.maximum(sampled_N - ceiling_N, 0))
    beyond_N = off_N - codec.level_error_nats(np.where(is_here_NK.any(axis=1), sampled_N, least_N))
    if not (beyond_N <= moved_N).all():
        worst = int((beyond_N - moved_N).argmax())
        raise UserError(
            f"{name}, token {worst}: its stored log-prob and its row differ by {off_N[worst]:.3f} nats:"
            " rows and tokens are not aligned"
        )
    return max(0.0, float(beyond_N.max()))


def _check_draws(
    name: str,
    packed: codec.Packed,
    sampled_N: FloatArray,
    is_here_NK: npt.NDArray[np.bool_],
    logprobs_NK: FloatArray,
    log_tail_N: FloatArray,
) -> None:
    """The sampled tokens' counts against what their log-probs imply.

    Systematic draws give the expected count rounded up or down. Independent ones are held together: their sum is off
    by no more than a binomial's deviation (Bernstein's inequality). A token outside the tokens drawn from has no count,
    and is no likelier than the least of those.
    """
    num_draws, tail_N = packed["num_draws"], np.exp(log_tail_N.astype(np.float64))
    count_N = (
        num_draws * np.exp(np.where(is_here_NK, logprobs_NK, -np.inf).astype(np.float64)).sum(axis=1) / (1 - tail_N)
    )
    chance_N = np.minimum(np.exp(sampled_N.astype(np.float64)) / (1 - tail_N), 1)
    outside_N = np.where(count_N > 0, 0, np.minimum(chance_N, 1 / packed["width"]))
    off_N = count_N - num_draws * (chance_N - outside_N)
    worst = int(np.abs(off_N).argmax())
    rounding_N = ROUNDING_DRAWS + num_draws * codec.TAIL_STEP / (1 - tail_N)
    if packed["kind"] == codec.SYSTEMATIC and abs(off_N[worst]) > 1 + rounding_N[worst]:
        raise UserError(
            f"{name}, token {worst}: {count_N[worst]:.0f} of {num_draws} draws, but its log-prob implies"
            f" {num_draws * chance_N[worst]:.1f}: rows and tokens are not aligned"
        )
    is_inside_N = chance_N >= 1 / packed["width"]  # for sure: what the count says has no part in the choice
    off = float((count_N - num_draws * chance_N)[is_inside_N].sum())
    deviation = float((chance_N * (1 - chance_N))[is_inside_N].sum() * num_draws) ** 0.5
    if abs(off) > DRAWS_SIGMA * deviation + DRAWS_SIGMA**2 / 3:
        raise UserError(
            f"{name}: its tokens have {off:+.0f} draws beyond what their log-probs imply, give or take"
            f" {deviation:.0f}: rows and tokens are not aligned"
        )
