"""The alignment contract of records.py, checked on one stored response: tokens and rows belong together.

Axes: N tokens, K stored support.
"""

from typing import Any

import numpy as np

from pipeline import codec
from pipeline.errors import UserError

LOG_SMALLEST_TAIL = float(np.log(1e-6))  # a tail below about 1e-7 is stored as none (codec.log_tail)
SAMPLED_TOLERANCE_NATS = 0.02  # float16 keeps −30 nats to 0.015
MASS_TOLERANCE = 0.01  # float16 keeps a log-prob to 2⁻¹¹ of itself


def check(row: dict[str, Any], vocab_size: int) -> float:
    """The stored log-prob of each sampled token against its row: equal where the row has it, else below the row.

    `row` has response_id, token_ids, token_logprobs and logprobs, as in records.RESPONSES. Returns the largest
    difference, nats. Raises UserError where rows and tokens differ in number or disagree, where an id is outside the
    vocabulary or twice in a row, and where a row and its tail don't sum to 1.
    """
    name, tokens_N = f"response {row['response_id']}", np.asarray(row["token_ids"], np.int64)
    sampled_N = np.asarray(row["token_logprobs"], np.float32)
    try:
        ids_NK, logprobs_NK, log_tail_N, mass_N = codec.decode_with_mass(row["logprobs"])
    except ValueError as error:
        raise UserError(f"{name}: {error}") from None
    if not len(ids_NK) == len(tokens_N) == len(sampled_N):
        raise UserError(f"{name}: {len(tokens_N)} tokens, but {len(ids_NK)} rows of log-probs")
    largest = max(ids_NK.max(initial=0), tokens_N.max(initial=0))
    if largest >= vocab_size or tokens_N.min(initial=0) < 0:
        raise UserError(f"{name}: token id {largest} is outside the vocabulary of {vocab_size}")
    if (np.diff(np.sort(ids_NK, axis=1), axis=1) == 0).any():
        raise UserError(f"{name}: a row of its log-probs has the same token twice")
    if not (np.abs(mass_N - 1) < MASS_TOLERANCE).all():
        worst = np.abs(mass_N - 1).argmax()
        raise UserError(f"{name}, token {worst}: its row and tail hold a probability of {mass_N[worst]:.4f}, not 1")
    is_here_NK = ids_NK == tokens_N[:, None]
    stored_N = np.where(is_here_NK, logprobs_NK, 0).sum(axis=1)
    # outside the support: no likelier than the least of it, nor than the whole tail
    ceiling_N = np.minimum(logprobs_NK.min(axis=1), np.maximum(log_tail_N, LOG_SMALLEST_TAIL))
    off_N = np.where(is_here_NK.any(axis=1), np.abs(stored_N - sampled_N), np.maximum(sampled_N - ceiling_N, 0))
    if off_N.size and not off_N.max() <= SAMPLED_TOLERANCE_NATS:
        raise UserError(
            f"{name}, token {off_N.argmax()}: its stored log-prob and its row differ by {off_N.max():.3f} nats:"
            " rows and tokens are not aligned"
        )
    return float(off_N.max(initial=0))
