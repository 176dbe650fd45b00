"""Answers laid end to end: which go into one pack."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from pipeline.errors import UserError
from pipeline.train.examples import WINDOW_SHARDS, TrainingExamples


def plan(answers: TrainingExamples, pack_tokens: int, seed: int) -> tuple[list[list[int]], npt.NDArray[np.int32]]:
    """`(packs, windows)`: which answers each pack holds, at most `pack_tokens` tokens, and whose window it is of.

    First-fit decreasing among the answers of WINDOW_SHARDS files, so that a pack is read from files that are held
    together. A function of the seed. Raises UserError where an answer is longer than a pack.
    """
    longest = int(answers.lengths.max(initial=0))
    if longest > pack_tokens:
        raise UserError(
            f"train.pack_tokens={pack_tokens}: the longest answer takes {longest} tokens with its prompt; set it to"
            f" {longest} or more, or lower train.max_length to leave such answers out"
        )
    packs: list[list[int]] = []
    of_window: list[int] = []
    for window, rows in enumerate(windows(answers.index.shards, WINDOW_SHARDS, np.random.default_rng(seed))):
        fitted = _first_fit(rows, answers.lengths, pack_tokens)
        packs += fitted
        of_window += [window] * len(fitted)
    return packs, np.array(of_window, np.int32)


def windows(
    groups: npt.NDArray[np.integer], together: int, generator: np.random.Generator
) -> Iterator[npt.NDArray[np.int64]]:
    """The rows of some groups at a time, `together` of them, groups in random order and rows shuffled among them."""
    by_group = np.argsort(groups, kind="stable")
    names, starts = np.unique(groups[by_group], return_index=True)
    parts = np.split(by_group, starts[1:])
    order = generator.permutation(len(names))
    for first in range(0, len(order), together):
        yield generator.permutation(np.concatenate([parts[place] for place in order[first : first + together]]))


def _first_fit(rows: npt.NDArray[np.int64], lengths: npt.NDArray[np.int32], pack_tokens: int) -> list[list[int]]:
    """The longest first, each into the first pack with room for it."""
    packs: list[list[int]] = []
    room = np.full(len(rows), pack_tokens, np.int64)  # of as many packs as there could be
    for row in rows[np.argsort(-lengths[rows], kind="stable")].tolist():
        place = int((room >= lengths[row]).argmax())
        if place == len(packs):
            packs.append([])
        packs[place].append(row)
        room[place] -= lengths[row]
    return packs
