"""The rows that train sees, and batches in which tokens and their soft targets move together.

Axes: B batch, T tokens of a padded row, N = loss positions of the batch (row by row), K stored support.
"""

# pyarrow.compute makes its functions at import, which no type checker sees:
# pyright: reportAttributeAccessIssue=false

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Sampler

from pipeline import codec, reasoning
from pipeline.errors import UserError
from pipeline.rundir import RunDir, read_answers

IGNORED = -100  # label of a position without loss, as transformers has it
GROUPED_BATCHES = 50  # batches' worth of shuffled rows among which like lengths are put together
REASONING = ["reasoning_tokens", "reasoning_start", "reasoning_end"]
COLUMNS = ["response_id", "split", "prompt_token_ids", "token_ids", "token_logprobs", "logprobs", *REASONING]


def kept_rows(run_dir: RunDir, split: str, max_length: int, how: str = "keep") -> tuple[Dataset, int]:
    """The answers of a split that filter kept, and how many of those were left out as longer than `max_length`.

    `how` is train.reasoning: `length` is that of the tokens which `collate` gives the student. Raises UserError where
    none fits, or none tells its reasoning.
    """
    tables, too_long = [], 0
    for answers, kept in read_answers(run_dir, COLUMNS):
        table = answers.filter(pc.and_(kept, pc.equal(answers.column("split"), split)))
        lengths = pc.add(
            pc.list_value_length(table.column("prompt_token_ids")),
            pc.list_value_length(table.column("token_ids")),
        )
        if how == "drop":
            cut = pc.subtract(table.column("reasoning_end"), table.column("reasoning_start"))
            lengths = pc.subtract(lengths, cut)
        fits = pc.less_equal(lengths, max_length)
        too_long += table.num_rows - (pc.sum(fits).as_py() or 0)
        tables.append(table.append_column("length", lengths).filter(fits))
    table = pa.concat_tables(tables)
    if table.num_rows == 0:
        raise UserError(f"{run_dir.path}: no {split} answer fits train.max_length={max_length} tokens")
    return Dataset(table.drop_columns(["split"])), too_long


def collate(rows: list[dict[str, Any]], pad_token_id: int, vocab_size: int, how: str = "keep") -> dict[str, Tensor]:
    """One batch: padded `input_ids_BT`, `labels_BT`, and the teacher's rows at its N loss positions.

    Label t of a row is token t of the row; a causal model predicts it at position t − 1. The teacher's row for an
    answer's token t is the distribution of exactly that label (records.py), so row n of the `teacher_*` tensors goes
    with the n-th label that is not ignored. `how` is train.reasoning (pipeline/reasoning.py). Raises UserError where
    rows and tokens differ in number, an id is outside the student's vocabulary, or there is nothing to learn.
    """
    parts = [reasoning.learnt(row, how) for row in rows]
    T = max(len(context) + len(answer) for context, answer in parts)
    input_ids_BT = np.full((len(rows), T), pad_token_id, np.int64)
    labels_BT = np.full((len(rows), T), IGNORED, np.int64)
    attention_BT = np.zeros((len(rows), T), np.int64)
    for b, (context, answer) in enumerate(parts):
        P, A = len(context), len(answer)
        input_ids_BT[b, : P + A] = context + answer
        labels_BT[b, P : P + A] = answer
        attention_BT[b, : P + A] = 1
    decoded = [_targets(row["logprobs"]) for row in rows]
    for row, (ids_NK, _, _) in zip(rows, decoded, strict=True):
        if len(ids_NK) != len(row["token_ids"]):
            name, tokens = f"response {row['response_id']}", len(row["token_ids"])
            raise UserError(f"{name}: {len(ids_NK)} rows of log-probs for {tokens} tokens")
    firsts = [len(row["token_ids"]) - len(answer) for row, (_, answer) in zip(rows, parts, strict=True)]
    learnt = [[values[first:] for values in arrays] for first, arrays in zip(firsts, decoded, strict=True)]
    K = max(ids_NK.shape[1] for ids_NK, _, _ in decoded)
    ids_NK = np.concatenate([_filled(ids_NK, ids_NK[:, :1], K) for ids_NK, _, _ in learnt])
    logprobs_NK = np.concatenate([_filled(logprobs_NK, np.float32(-np.inf), K) for _, logprobs_NK, _ in learnt])
    log_tail_N = np.concatenate([log_tail_N for _, _, log_tail_N in learnt])
    if not len(ids_NK):
        ids = ", ".join(row["response_id"] for row in rows)
        raise UserError(f"responses {ids}: nothing but reasoning, and train.reasoning={how} leaves nothing to learn")
    if max(ids_NK.max(initial=0), input_ids_BT.max()) >= vocab_size:
        ids = ", ".join(row["response_id"] for row in rows)
        raise UserError(f"responses {ids}: a token id is outside the student's vocabulary of {vocab_size}")
    return {
        "input_ids": torch.from_numpy(input_ids_BT),
        "attention_mask": torch.from_numpy(attention_BT),
        "labels": torch.from_numpy(labels_BT),
        "teacher_ids_NK": torch.from_numpy(ids_NK.astype(np.int64)),
        "teacher_logprobs_NK": torch.from_numpy(logprobs_NK),
        "teacher_log_tail_N": torch.from_numpy(log_tail_N),
    }


def _targets(packed: codec.Packed) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`(ids_NK, logprobs_NK, log_tail_N)` to learn: of draws, the shares alone (see generate/support.py)."""
    ids_NK, logprobs_NK, log_tail_N = codec.decode(packed)
    if packed["kind"] not in codec.COUNTS:
        return ids_NK, logprobs_NK, log_tail_N
    return ids_NK, logprobs_NK - np.log1p(-np.exp(log_tail_N))[:, None], np.full_like(log_tail_N, -np.inf)


def _filled(values_NK: np.ndarray, filling: Any, K: int) -> np.ndarray:
    """Rows of K entries, as the codec fills them: the row's first id again, at −inf."""
    N, width = values_NK.shape
    return np.concatenate([values_NK, np.broadcast_to(filling, (N, K - width))], axis=1)


class LengthGrouped(Sampler[int]):
    """Rows in random order, those of a batch of like length; the order is a function of seed and epoch alone.

    So a resumed training sees the rows that the uninterrupted one would have seen (transformers' own sampler draws
    from the global generator, whose state a resume does not restore in time).
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        self._lengths, self._batch_size, self._seed, self._epoch = np.asarray(lengths), batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's loader at the start of each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self._seed, self._epoch])
        order = generator.permutation(len(self._lengths))
        span = self._batch_size * GROUPED_BATCHES
        batches: list[np.ndarray] = []
        for start in range(0, len(order), span):
            group = order[start : start + span]
            group = group[np.argsort(self._lengths[group], kind="stable")]
            batches += [group[i : i + self._batch_size] for i in range(0, len(group), self._batch_size)]
        short = [batch for batch in batches if len(batch) < self._batch_size]  # the last one stays last
        whole = [batch for batch in batches if len(batch) == self._batch_size]
        generator.shuffle(whole)
        return iter(np.concatenate([*whole, *short]).tolist())
