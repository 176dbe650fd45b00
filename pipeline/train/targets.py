"""What of one stored answer the student learns: its tokens, which of them have a loss, and the teacher's rows there.

Axes: N answer tokens with loss, K stored support; C = K + 1 buckets, the tail the last.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline import codec
from pipeline.codec import FloatArray, IdArray
from pipeline.config import Train
from pipeline.errors import UserError
from pipeline.models.tokenizer import reasoning

IGNORED = -100  # label of a position without loss, as transformers has it
LOG_TAIL_FLOOR = float(np.log(1e-6))

Soft = tuple[IdArray, FloatArray, FloatArray]  # ids_NK, logprobs_NK, log_tail_N: what codec.decode gives


class TrainingExample(NamedTuple):
    """One answer as the student is given it; row n of the teacher's goes with the n-th label that is not ignored."""

    input_ids: list[int]
    labels: list[int]
    ids_NK: IdArray
    logprobs_NK: FloatArray
    log_tail_N: FloatArray


def training_example(row: dict[str, Any], vocab_size: int, settings: Train) -> TrainingExample:
    """The training example of a row of rows.COLUMNS, by train.reasoning, .tail and .positions_frac.

    Tokens of its `masked_spans` are context alone: their labels are ignored and their rows left out. Raises UserError
    where rows are damaged or differ from tokens in number, where an id is outside the student's vocabulary and can't be
    merged into the tail, and where there is nothing before the answer to predict it from.
    """
    name = f"response {row['response_id']}"
    context, answer = reasoning.learnt(row, settings.reasoning)
    try:
        soft = codec.decode(row["logprobs"])
    except ValueError as error:
        raise UserError(f"{name}: {error}") from None
    if len(soft[0]) != len(row["token_ids"]):
        raise UserError(f"{name}: {len(soft[0])} rows of log-probs for {len(row['token_ids'])} tokens")
    if not context:
        raise UserError(f"{name}: an empty prompt, so nothing predicts its first token; leave it out of the prompts")
    if max(context + answer) >= vocab_size:
        raise UserError(f"{name}: a token id is outside the student's vocabulary of {vocab_size}")
    first = len(row["token_ids"]) - len(answer)
    kept_N = _kept(soft, _learnable(row, first), settings)
    soft_N = _targets(soft, kept_N, row, vocab_size, settings.tail)
    labels = np.full(len(context) + len(answer), IGNORED)
    places_N = kept_N - first
    labels[len(context) + places_N] = np.asarray(answer)[places_N]
    return TrainingExample(context + answer, labels.tolist(), *soft_N)


def entropy_nats(logprobs_NK: FloatArray, log_tail_N: FloatArray) -> npt.NDArray[np.float64]:
    """Entropy of the K + 1 stored buckets, shape N."""
    logprobs_NC = np.concatenate([logprobs_NK, log_tail_N[:, None]], axis=1).astype(np.float64)
    return -np.where(logprobs_NC > -np.inf, np.exp(logprobs_NC) * np.maximum(logprobs_NC, -1e9), 0).sum(axis=1)


def is_masked(row: dict[str, Any]) -> npt.NDArray[np.bool_]:
    """Of each token of a response, whether filter found it to hold personal data (DECISIONS.masked_spans)."""
    masked_T = np.zeros(len(row["token_ids"]), bool)
    for span in row["masked_spans"] or ():
        masked_T[span["start"] : span["end"]] = True
    return masked_T


def _learnable(row: dict[str, Any], first: int) -> npt.NDArray[np.int64]:
    """The tokens of a response from `first` on that may be learnt."""
    return first + np.flatnonzero(~is_masked(row)[first:])


def _kept(soft: Soft, learnable_N: npt.NDArray[np.int64], settings: Train) -> npt.NDArray[np.int64]:
    """Which of the tokens that may be learnt have a loss.

    The teacher's entropy chooses, answer by answer, so the choice is the same in any batch, pack or process; of equal
    ones, the earlier stays.
    """
    if settings.positions_frac == 1:
        return learnable_N
    wanted = math.ceil(settings.positions_frac * len(learnable_N) - 1e-9)  # 0.07 · 100 is 7.000000000000001
    order = np.argsort(-entropy_nats(soft[1][learnable_N], soft[2][learnable_N]), kind="stable")
    return learnable_N[np.sort(order[:wanted])]


def _targets(soft: Soft, kept_N: npt.NDArray[np.int64], row: dict[str, Any], vocab_size: int, tail: str) -> Soft:
    """The rows at these positions, in the student's vocabulary, with their tail put where `tail` says."""
    ids_NK, logprobs_NK, log_tail_N = soft[0][kept_N], soft[1][kept_N], soft[2][kept_N]
    if row["logprobs"]["kind"] in codec.COUNTS:  # the shares alone, see generate/support.py
        if ids_NK.max(initial=0) >= vocab_size:
            raise UserError(
                f"response {row['response_id']}: draws of a token id outside the student's vocabulary of {vocab_size}"
                " can't be merged into the tail: generate with support=drawn, or choose a student that has them"
            )
        return _renormalised(ids_NK, logprobs_NK, log_tail_N)
    inside = _within(ids_NK, logprobs_NK, log_tail_N, vocab_size, row["response_id"])
    if tail == "renormalise":
        return _renormalised(*inside)
    if tail == "label":
        return _given_to(np.asarray(row["token_ids"])[kept_N], *inside)
    return _floored(*inside, vocab_size)


def _within(ids_NK: IdArray, logprobs_NK: FloatArray, log_tail_N: FloatArray, vocab_size: int, name: str) -> Soft:
    """Ids beyond the student's vocabulary (of a teacher that is padded wider) merged into the tail.

    What took their place is a fill: the row's first id that is left, at −inf.
    """
    is_outside_NK = ids_NK >= vocab_size
    if not is_outside_NK.any():
        return ids_NK, logprobs_NK, log_tail_N
    is_entry_NK = ~is_outside_NK & (logprobs_NK > -np.inf)
    if not is_entry_NK.any(axis=1).all():
        raise UserError(f"response {name}: a row holds no id of the student's vocabulary of {vocab_size}")
    first_N1 = np.take_along_axis(ids_NK, is_entry_NK.argmax(axis=1)[:, None], axis=1)
    outside_NK = np.where(is_outside_NK, logprobs_NK, -np.inf)
    merged_N = np.logaddexp.reduce(np.concatenate([outside_NK, log_tail_N[:, None]], axis=1), axis=1)
    return (
        np.where(is_entry_NK, ids_NK, first_N1),
        np.where(is_entry_NK, logprobs_NK, -np.inf).astype(np.float32),
        merged_N.astype(np.float32),
    )


def _renormalised(ids_NK: IdArray, logprobs_NK: FloatArray, log_tail_N: FloatArray) -> Soft:
    """The tail's mass shared out over the support in proportion."""
    inside_N1 = np.logaddexp.reduce(logprobs_NK.astype(np.float64), axis=1, keepdims=True)
    return ids_NK, (logprobs_NK - inside_N1).astype(np.float32), np.full_like(log_tail_N, -np.inf)


def _given_to(tokens_N: npt.NDArray[Any], ids_NK: IdArray, logprobs_NK: FloatArray, log_tail_N: FloatArray) -> Soft:
    """The tail's mass added to the sampled token's entry; where it has none, in one of its own, K + 1 wide."""
    is_here_NK = (ids_NK == tokens_N[:, None]) & (logprobs_NK > -np.inf)
    logprobs_NK = np.where(is_here_NK, np.logaddexp(logprobs_NK, log_tail_N[:, None]), logprobs_NK).astype(np.float32)
    is_new_N = ~is_here_NK.any(axis=1) & (log_tail_N > -np.inf)
    if is_new_N.any():
        ids_N1 = np.where(is_new_N, tokens_N, ids_NK[:, 0])[:, None].astype(ids_NK.dtype)
        ids_NK = np.concatenate([ids_NK, ids_N1], axis=1)
        logprobs_NK = np.concatenate([logprobs_NK, np.where(is_new_N, log_tail_N, -np.inf)[:, None]], axis=1)
    return ids_NK, logprobs_NK.astype(np.float32), np.full_like(log_tail_N, -np.inf)


def _floored(ids_NK: IdArray, logprobs_NK: FloatArray, log_tail_N: FloatArray, vocab_size: int) -> Soft:
    """A tail of at least 1e-6; none where the row holds the student's whole vocabulary, which then has all the mass.

    A stored tail of 0 says only that it is below what the codec can say (1e-4); a divergence that takes the
    student's side needs a finite log of it.
    """
    is_whole_N = (logprobs_NK > -np.inf).sum(axis=1) >= vocab_size
    floored_N = np.maximum(log_tail_N, np.float32(LOG_TAIL_FLOOR))
    if not is_whole_N.any():
        return ids_NK, logprobs_NK, floored_N
    _, whole_NK, none_N = _renormalised(ids_NK, logprobs_NK, log_tail_N)
    return (
        ids_NK,
        np.where(is_whole_N[:, None], whole_NK, logprobs_NK),
        np.where(is_whole_N, none_N, floored_N),
    )
