"""Batches in which tokens and their soft targets move together, and the order in which rows are seen.

Axes: B batch, T tokens of a row, N = loss positions of the batch (row by row), K stored support.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Sampler

from pipeline.config import Train
from pipeline.errors import UserError
from pipeline.train import packing
from pipeline.train.examples import WINDOW_SHARDS, Row, TrainingExamples
from pipeline.train.targets import IGNORED, TrainingExample, training_example

GROUPED_BATCHES = 50  # batches' worth of shuffled rows among which like lengths are put together
ITEM_COLUMNS = ["rows", "length", "group"]  # of `items`; Trainer is to leave them there


class Rows(Protocol):
    """What `collate_items` takes its rows from: TrainingExamples, or a list."""

    def __getitem__(self, number: int, /) -> Row: ...


def items(answers: TrainingExamples, settings: Train) -> Dataset:
    """What the trainer is given as its dataset: numbers of rows alone, some 20 bytes an answer.

    Columns: `rows`, the numbers in `answers` of an item, one, or with train.pack_tokens those of a pack; `length`, its
    tokens; `group`, which of them are read from the same file (packs: from the same window of files). Raises UserError
    where an answer is longer than a pack.
    """
    numbers, sizes = np.arange(len(answers)), np.ones(len(answers), np.int64)
    lengths, groups = answers.lengths, answers.index.shards
    if settings.pack_tokens is not None:
        packs, groups = packing.plan(answers, settings.pack_tokens, settings.seed)
        numbers, sizes = np.concatenate(packs), np.array([len(pack) for pack in packs])
        lengths = np.array([answers.lengths[pack].sum() for pack in packs], np.int32)
    ends = np.concatenate([[0], sizes.cumsum()])
    rows = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(numbers, pa.int32()))
    return Dataset(pa.table({"rows": rows, "length": pa.array(lengths), "group": pa.array(groups)}))


def sampler(dataset: Dataset, settings: Train) -> "LengthGrouped":
    """The order of `items` that `answers` can be read in: a window's packs are a group of their own."""
    together = WINDOW_SHARDS if settings.pack_tokens is None else 1
    lengths, groups = (dataset.with_format("numpy")[:][name] for name in ("length", "group"))
    return LengthGrouped(lengths, settings.batch_size, settings.seed, groups, together)


def collate_items(
    chosen: list[dict[str, Any]], answers: Rows, pad_token_id: int, vocab_size: int, settings: Train
) -> dict[str, Any]:
    """The batch of some `items`: packs laid flat where train.pack_tokens is set, else padded. See `collate`."""
    rows = [answers[number] for item in chosen for number in item["rows"]]
    if settings.pack_tokens is not None:
        return collate_flat(rows, vocab_size, settings)
    return dict(collate(rows, pad_token_id, vocab_size, settings))


def collate(rows: Sequence[Row], pad_token_id: int, vocab_size: int, settings: Train) -> dict[str, Tensor]:
    """One batch: padded `input_ids_BT`, `labels_BT`, and the teacher's rows at its N loss positions.

    Label t of a row is token t of the row; a causal model predicts it at position t − 1. The teacher's row for an
    answer's token t is the distribution of exactly that label (records.py), so row n of the `teacher_*` tensors goes
    with the n-th label that is not ignored. Which tokens have a loss, and what of the stored rows is the target, is
    said in targets.py. Raises UserError as `targets.training_example` does, and where there is nothing to learn.
    """
    examples = [training_example(row, vocab_size, settings) for row in rows]
    T = max(len(each.input_ids) for each in examples)
    input_ids_BT = np.full((len(rows), T), pad_token_id, np.int64)
    labels_BT = np.full((len(rows), T), IGNORED, np.int64)
    attention_BT = np.zeros((len(rows), T), np.int64)
    for b, each in enumerate(examples):
        length = len(each.input_ids)
        input_ids_BT[b, :length] = each.input_ids
        labels_BT[b, :length] = each.labels
        attention_BT[b, :length] = 1
    return {
        "input_ids": torch.from_numpy(input_ids_BT),
        "attention_mask": torch.from_numpy(attention_BT),
        "labels": torch.from_numpy(labels_BT),
        **_teacher(examples, rows, settings),
    }


def collate_flat(rows: Sequence[Row], vocab_size: int, settings: Train) -> dict[str, Any]:
    """One batch without padding: the answers end to end in one row, each from position 0 and seeing itself alone.

    `input_ids`, `labels`, `position_ids` of shape (1, T); where the answers begin and end as transformers'
    FlashAttentionKwargs name it (packed_attention.use makes a model heed it); and the teacher's rows as in
    `collate`. There is no attention_mask. The first label of an answer is always ignored: no position predicts it.
    """
    examples = [training_example(row, vocab_size, settings) for row in rows]
    lengths = [len(each.input_ids) for each in examples]
    ends = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    return {
        "input_ids": torch.tensor([[token for each in examples for token in each.input_ids]]),
        "labels": torch.tensor([[label for each in examples for label in each.labels]]),
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
        **_teacher(examples, rows, settings),
    }


def _teacher(examples: list[TrainingExample], rows: Sequence[Row], settings: Train) -> dict[str, Tensor]:
    """The teacher's rows of all examples, filled up to one width as the codec does: the row's first id again, at −inf.

    Raises UserError where there are none.
    """
    K = max(each.ids_NK.shape[1] for each in examples)
    ids_NK = np.concatenate([_filled(each.ids_NK, each.ids_NK[:, :1], K) for each in examples])
    logprobs_NK = np.concatenate([_filled(each.logprobs_NK, np.float32(-np.inf), K) for each in examples])
    if not len(ids_NK):
        names = ", ".join(row["response_id"] for row in rows)
        how = settings.reasoning
        raise UserError(
            f"responses {names}: nothing but reasoning, and train.reasoning={how} leaves nothing to learn"
            if how != "keep"
            else f"responses {names}: filter masked every token of them (privacy.answers), so nothing is left to learn"
        )
    return {
        "teacher_ids_NK": torch.from_numpy(ids_NK.astype(np.int64)),
        "teacher_logprobs_NK": torch.from_numpy(logprobs_NK),
        "teacher_log_tail_N": torch.from_numpy(np.concatenate([each.log_tail_N for each in examples])),
    }


def _filled(values_NK: npt.NDArray[Any], filling: Any, K: int) -> npt.NDArray[Any]:
    N, width = values_NK.shape
    return np.concatenate([values_NK, np.broadcast_to(filling, (N, K - width))], axis=1)


class LengthGrouped(Sampler[int]):
    """Rows in random order, those of a batch of like length; the order is a function of seed and epoch alone.

    So a resumed training sees the rows that the uninterrupted one would have seen (transformers' own sampler draws
    from the global generator, whose state a resume does not restore in time).

    `groups` says in which file each row stands. The files are taken in random order, `together` of them at a time, and
    rows are shuffled among those: whoever holds as many files in memory reads each once. What does not fill a batch
    is seen last of its files, and rows of the next ones fill it. A corpus of no more files than that is shuffled as a
    whole.
    """

    def __init__(
        self,
        lengths: Sequence[int] | npt.NDArray[np.integer],
        batch_size: int,
        seed: int,
        groups: Sequence[int] | npt.NDArray[np.integer] | None = None,
        together: int = WINDOW_SHARDS,
    ) -> None:
        self._lengths, self._batch_size, self._seed, self._epoch = np.asarray(lengths), batch_size, seed, 0
        self._groups = np.zeros(len(self._lengths), np.int32) if groups is None else np.asarray(groups)
        self._together = together

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's loader at the start of each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator, num_seen = np.random.default_rng([self._seed, self._epoch]), 0
        for rows in packing.windows(self._groups, self._together, generator):
            num_first = -num_seen % self._batch_size  # fill the batch that the files before left unfilled
            *whole, left = self._batches(rows[num_first:])
            generator.shuffle(whole)
            ordered = np.concatenate([rows[:num_first], *whole, left])
            num_seen += len(ordered)
            yield from ordered.tolist()

    def _batches(self, rows: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
        """Full batches of like lengths, and last what is left over."""
        size, batches = self._batch_size, []
        num_whole = len(rows) - len(rows) % size
        for start in range(0, num_whole, size * GROUPED_BATCHES):
            group = rows[start : min(start + size * GROUPED_BATCHES, num_whole)]
            group = group[np.argsort(self._lengths[group], kind="stable")]
            batches += np.split(group, len(group) // size)
        return [*batches, rows[num_whole:]]
