"""The answers to train on, read from the shards as they are asked for; and which of them are kept back to validate."""

# pyarrow.compute makes its functions at import, which no type checker sees:
# pyright: reportAttributeAccessIssue=false

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UserError
from pipeline.run.files import read_committed
from pipeline.run.rundir import RunDir
from pipeline.run.shards import read_answers, shard_paths

WINDOW_SHARDS = 8  # files whose rows are shuffled together, and as many are held in memory
MAX_VALIDATION_ANSWERS = 256
MIN_ANSWERS_TO_SPLIT = 20  # of fewer, each is worth more as a training example than as a measurement
REASONING = ["reasoning_tokens", "reasoning_start", "reasoning_end"]
COLUMNS = ["response_id", "prompt_token_ids", "token_ids", "token_logprobs", "logprobs", *REASONING]
MASKED = "masked_spans"  # filter's: tokens of the response that no loss may touch
INDEXED = ["split", "conversation_id", "prompt_id", "prompt_token_ids", "token_ids", *REASONING]

Row = dict[str, Any]


@dataclass(frozen=True)
class Index:
    """What is held of each answer that fits: 24 bytes, whatever its length."""

    shards: npt.NDArray[np.int32]  # which of the run's files
    places: npt.NDArray[np.int32]  # row within it
    lengths: npt.NDArray[np.int32]  # tokens that the student is given, its reasoning cut out where it is dropped
    learnt: npt.NDArray[np.int32]  # tokens among them that are learnt: neither masked reasoning nor personal data
    conversations: npt.NDArray[np.uint64]  # hash of the conversation, which no split divides

    def take(self, chosen: npt.NDArray[Any]) -> "Index":
        return Index(**{name: values[chosen] for name, values in vars(self).items()})


class TrainingExamples:
    """The kept answers of a run that fit, in the order of its files: `answers[i]` reads the file it stands in.

    Memory is 24 bytes an answer (Index), and the `WINDOW_SHARDS` files that were read last; whoever asks in the order
    of `batches.LengthGrouped` has each file read once an epoch. Each process reads all files. `paths` are those of the
    responses, each with that of filter's decisions about them.
    """

    def __init__(
        self, paths: list[tuple[Path, Path]], index: Index, too_long: int = 0, nothing_to_learn: int = 0
    ) -> None:
        self._paths, self.index = paths, index
        self.too_long = too_long  # kept by filter, but longer than max_length
        self.nothing_to_learn = nothing_to_learn  # kept by filter, but nothing in it that may be learnt
        self._tables: OrderedDict[int, pa.Table] = OrderedDict()

    def __len__(self) -> int:
        return len(self.index.lengths)

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        return self.index.lengths

    def __getitem__(self, number: int) -> Row:
        """The row, with the values of COLUMNS, and MASKED. Raises UserError where its file can't be read."""
        table = self._table(int(self.index.shards[number]))
        return table.slice(int(self.index.places[number]), 1).to_pylist()[0]

    def __iter__(self) -> Iterator[Row]:
        return (self[number] for number in range(len(self)))

    def subset(self, chosen: npt.NDArray[Any]) -> "TrainingExamples":
        """These answers alone, in this order."""
        return TrainingExamples(self._paths, self.index.take(chosen), self.too_long, self.nothing_to_learn)

    def _table(self, shard: int) -> pa.Table:
        if shard not in self._tables:
            while len(self._tables) >= WINDOW_SHARDS:
                self._tables.popitem(last=False)
            responses, decisions = self._paths[shard]
            masked = read_committed(decisions, [MASKED]).column(MASKED)
            self._tables[shard] = read_committed(responses, COLUMNS).append_column(MASKED, masked)
        self._tables.move_to_end(shard)
        return self._tables[shard]


class HeldExamples(TrainingExamples):
    """A few answers that are asked for again and again: each is read once, and held."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._rows: dict[int, Row] = {}

    def __getitem__(self, number: int) -> Row:
        if number not in self._rows:
            self._rows[number] = super().__getitem__(number)
            if len(self._rows) == len(self):
                self._tables.clear()
        return self._rows[number]


def kept_answers(run_dir: RunDir, split: str, max_length: int, how: str = "keep") -> TrainingExamples:
    """The answers of a split that filter kept, of at most `max_length` tokens, and with something to learn.

    `how` is train.reasoning. Each file is checked and read once, one at a time. Raises UserError where a file is
    damaged, and where no answer is left.
    """
    paths = list(zip(shard_paths(run_dir, "generate"), shard_paths(run_dir, "filter"), strict=True))
    parts, too_long, without = [], 0, 0
    for shard, (table, kept) in enumerate(read_answers(run_dir, INDEXED)):
        index = _indexed(table, shard, how).take(
            pc.and_(kept, pc.equal(table.column("split"), split)).to_numpy().astype(bool)
        )
        fits, teaches = index.lengths <= max_length, index.learnt > 0
        too_long += int((~fits).sum())
        without += int((fits & ~teaches).sum())
        parts.append(index.take(fits & teaches))
    whole = _joined(parts)
    if not len(whole.lengths):
        causes = why_left_out(too_long, without, max_length, how) or "filter kept none (`retort report` shows why)"
        raise UserError(f"{run_dir.path}: no {split} answer is left to train on: {causes}")
    return TrainingExamples(paths, whole, too_long, without)


def why_left_out(too_long: int, nothing_to_learn: int, max_length: int, how: str) -> str:
    """Why train leaves out so many of the answers that filter kept, and what to change; empty where it leaves out none.

    `how` is train.reasoning.
    """
    told = []
    if too_long:
        told.append(
            f"{too_long} of the answers that filter kept have more than train.max_length={max_length} tokens with"
            " their prompts (raise it)"
        )
    if nothing_to_learn:
        told.append(
            f"{nothing_to_learn} of the answers that filter kept hold nothing to learn with train.reasoning={how} and"
            " without what filter masked (train.reasoning=keep and privacy.answers=off keep all)"
        )
    return "; ".join(told)


def split_validation(answers: TrainingExamples, frac: float) -> tuple[TrainingExamples, TrainingExamples]:
    """`(train, validation)`: about this share of the answers kept back, MAX_VALIDATION_ANSWERS at most.

    Whole conversations, all their samples and turns on one side, chosen by a hash of their own: the same in every
    run of the same corpus. Those with the lowest hashes are taken while they fit into the share; where none does, the
    smallest one, if that leaves half of the answers to train on. Of fewer than MIN_ANSWERS_TO_SPLIT answers none is
    kept back.
    """
    num = len(answers)
    is_validation = np.zeros(num, bool)
    if frac > 0 and num >= MIN_ANSWERS_TO_SPLIT:
        _, which, sizes = np.unique(answers.index.conversations, return_inverse=True, return_counts=True)
        chosen, total = np.zeros(len(sizes), bool), 0
        for place, size in enumerate(sizes.tolist()):  # np.unique sorts: lowest hash first
            if total + size <= min(MAX_VALIDATION_ANSWERS, round(frac * num)):
                chosen[place], total = True, total + size
        if not total and sizes.min() <= min(MAX_VALIDATION_ANSWERS, num // 2):
            chosen[sizes.argmin()] = True
        is_validation = chosen[which]
    kept_back = answers.subset(np.flatnonzero(is_validation))
    return answers.subset(np.flatnonzero(~is_validation)), HeldExamples(kept_back._paths, kept_back.index)


def _indexed(table: pa.Table, shard: int, how: str) -> Index:
    """The index of all rows of a file."""
    num_answer = _numbers(pc.list_value_length(table.column("token_ids")))
    reasoning = {name: _numbers(table.column(name)) for name in REASONING}
    cut = reasoning["reasoning_end"] - reasoning["reasoning_start"] if how == "drop" else 0
    first = reasoning["reasoning_tokens"] if how != "keep" else np.zeros(table.num_rows, np.int32)
    names = pc.coalesce(table.column("conversation_id"), table.column("prompt_id")).to_pylist()
    return Index(
        shards=np.full(table.num_rows, shard, np.int32),
        places=np.arange(table.num_rows, dtype=np.int32),
        lengths=_numbers(pc.list_value_length(table.column("prompt_token_ids"))) + num_answer - cut,
        learnt=num_answer - first - _num_masked(table.column(MASKED), first),
        conversations=np.array([_hash(name) for name in names], np.uint64),
    )


def _num_masked(column: Any, first: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """How many tokens of each response, from its `first` on, are masked."""
    num = np.zeros(len(column), np.int32)
    for place in np.flatnonzero(_numbers(pc.coalesce(pc.list_value_length(column), 0))):
        spans = column[int(place)].as_py()
        num[place] = sum(max(0, span["end"] - max(span["start"], first[place])) for span in spans)
    return num


def _joined(parts: list[Index]) -> Index:
    if not parts:
        none = np.zeros(0, np.int32)
        return Index(none, none, none, none, np.zeros(0, np.uint64))
    return replace(parts[0], **{name: np.concatenate([vars(part)[name] for part in parts]) for name in vars(parts[0])})


def _numbers(column: Any) -> npt.NDArray[np.int32]:
    return column.to_numpy().astype(np.int32)


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"validation {name}".encode(), digest_size=8).digest(), "little")
