"""Texts that are nearly one of those before: MinHash signatures, an LSH index over them, a check of what it proposes.

MinHash after Broder (1997): of two texts' signatures, the share of equal slots estimates the Jaccard similarity of
their sets of 5-grams of words. LSH cuts signatures into bands, and proposes texts of which one whole band is equal.
16 bands of 7 slots propose 82 % of the pairs of similarity 0.72, 98 % of 0.8 and 99.99 % of 0.9 (datatrove's 14 of 8,
which are not checked: 65, 92 and 99.96 %); what is proposed counts where the estimate reaches the threshold.

A text comes with its core: the answer, where the text is a prompt and its answer. Two texts are duplicates where both
they and their cores are alike, and they name the same numbers. So "Yes." may answer any question, a long passage may
stand before several questions, and a sum may be set with other figures.
"""

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from rensa import RMinHash, RMinHashLSH  # pyright: ignore[reportAttributeAccessIssue]: it has no stubs

NGRAM_WORDS = 5
NUM_BANDS, BAND_SLOTS = 16, 7
NUM_SLOTS = NUM_BANDS * BAND_SLOTS
SEED = 0
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Sketch:
    """All that is held of a text."""

    signature: RMinHash
    slots_S: npt.NDArray[np.uint16]  # the low halves of the signature's slots
    core_slots_S: npt.NDArray[np.uint16]
    exact: int  # hash of what must be the same in a duplicate: the numbers that stand in it, in order, and more


@dataclass(frozen=True)
class Twin:
    """A text among those before that is nearly this one."""

    row: int  # from 0, in the order they were added
    jaccard: float  # of the two texts, estimated
    is_duplicate: bool  # whether the cores are as near, and what must be the same is


def sketch(words: list[str], core_words: list[str], more: str = "") -> Sketch:
    """The sketch of a text and its core, given their words; duplicates of it also have the same `more`."""
    whole, core = (_signature(each) for each in (words, core_words))
    return Sketch(whole, _slots(whole), _slots(core), hash((more, *_NUMBER.findall(" ".join(words)))))


class NearDuplicates:
    """Texts by their sketches, in which those that are nearly another are looked up.

    Memory: 456 bytes a text here (twice that while the arrays grow) and about 1,400 in the index (more while its tables
    grow): 2 to 3.4 GiB a million.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._index = RMinHashLSH(threshold, NUM_SLOTS, NUM_BANDS)
        self._num = 0
        self._slots_NS = np.empty((1024, NUM_SLOTS), np.uint16)
        self._core_slots_NS = np.empty((1024, NUM_SLOTS), np.uint16)
        self._exact_N = np.empty(1024, np.int64)

    def __len__(self) -> int:
        return self._num

    def twins(self, text: Sketch) -> list[Twin]:
        """The texts added before whose similarity with this one is estimated at the threshold or above."""
        rows_C = np.asarray(self._index.query(text.signature), np.int64)
        jaccards_C = (self._slots_NS[rows_C] == text.slots_S).mean(1)
        near = np.flatnonzero(jaccards_C >= self._threshold)
        rows_C, jaccards_C = rows_C[near], jaccards_C[near]
        core_jaccards_C = (self._core_slots_NS[rows_C] == text.core_slots_S).mean(1)
        same_C = (core_jaccards_C >= self._threshold) & (self._exact_N[rows_C] == text.exact)
        found = zip(rows_C.tolist(), jaccards_C.tolist(), same_C.tolist(), strict=True)
        return [Twin(*each) for each in sorted(found)]

    def add(self, text: Sketch) -> None:
        """Hold a text; its row is the number of those before."""
        if self._num == len(self._exact_N):
            self._slots_NS, self._core_slots_NS, self._exact_N = (
                np.concatenate([each, np.empty_like(each)])
                for each in (self._slots_NS, self._core_slots_NS, self._exact_N)
            )
        self._index.insert(self._num, text.signature)
        self._slots_NS[self._num] = text.slots_S
        self._core_slots_NS[self._num] = text.core_slots_S
        self._exact_N[self._num] = text.exact
        self._num += 1


def _signature(words: list[str]) -> RMinHash:
    """Of the 5-grams of words; of fewer words, of all as one, so that only the same words are like it."""
    signature = RMinHash(num_perm=NUM_SLOTS, seed=SEED)
    num = max(1, len(words) - NGRAM_WORDS + 1)
    signature.update([" ".join(words[n : n + NGRAM_WORDS]) for n in range(num)])
    return signature


def _slots(signature: RMinHash) -> npt.NDArray[np.uint16]:
    return np.array(signature.digest(), np.uint32).astype(np.uint16)
