"""Texts that are nearly one of those before: MinHash signatures, an LSH index over them, a check of what it proposes.

MinHash after Broder (1997): of two texts' signatures, the share of equal slots estimates the Jaccard similarity of
their sets of 5-grams of words. LSH cuts signatures into bands, and proposes texts of which one whole band is equal.
16 bands of 7 slots propose 82 % of the pairs of similarity 0.72, 98 % of 0.8 and 99.99 % of 0.9 (datatrove's 14 of 8,
which are not checked: 65, 92 and 99.96 %); what is proposed counts where the estimate reaches the threshold.

A text comes with its core: the answer, where the text is a prompt and its answer. Two texts are duplicates where both
they and their cores are alike, and they name the same numbers. So "Yes." may answer any question, a long passage may
stand before several questions, and a sum may be set with other figures. What many texts share counts for nothing
(boilerplate.py), so one instruction may stand before every message.
"""

import hashlib
import re
import sqlite3
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]: it has no stubs

from pipeline.text.boilerplate import NGRAM_WORDS, NO_BOILERPLATE, Boilerplate

__all__ = ["NGRAM_WORDS", "NearDuplicates", "Sketch", "Twin", "sketch"]

NUM_BANDS, BAND_SLOTS = 16, 7
NUM_SLOTS = NUM_BANDS * BAND_SLOTS
SEED = 0
READ_ROWS = 1024  # sketches in memory at a time
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Sketch:
    """All that is held of a text."""

    bands: tuple[int, ...]  # a hash of each whole band of its signature, 64 bits
    slots_2S: npt.NDArray[np.uint16]  # the low halves of the slots of its signature, and of its core's
    exact: int  # hash of what must be the same in a duplicate: the numbers that stand in it, in order, and more


@dataclass(frozen=True)
class Twin:
    """A text among those before that is nearly this one."""

    row: int  # from 0, in the order they were added
    name: str  # that it was added by
    jaccard: float  # of the two texts without their boilerplate, estimated
    is_duplicate: bool  # whether the cores are as near, and what must be the same is


def sketch(
    words: list[str], core_words: list[str], more: str = "", boilerplate: Boilerplate = NO_BOILERPLATE
) -> Sketch:
    """The sketch of a text and its core, given their words; duplicates of it also have the same `more`.

    Of fewer words than make an n-gram all are one, so only the same words are like them.
    """
    slots_2S = np.array([_signature(boilerplate.own_ngrams(each)) for each in (words, core_words)], np.uint32)
    exact = hash((more, *_NUMBER.findall(" ".join(words))))
    return Sketch(_bands(slots_2S[0]), slots_2S.astype(np.uint16), exact)


class NearDuplicates:
    """Texts by their sketches, in which those that are nearly another are looked up.

    They are held in tables of a database (scratch.database) that start with `table`: 0.8 kB a text on disk, and in
    memory the database's cache. Texts that share a band are found by its hash, as in an LSH index in memory.
    """

    def __init__(self, threshold: float, database: sqlite3.Connection, table: str) -> None:
        self._threshold, self._execute = threshold, database.execute
        self._num = 0
        self._execute(f"CREATE TABLE {table} (row INTEGER PRIMARY KEY, name TEXT, exact INTEGER, slots BLOB)")
        self._execute(f"CREATE TABLE {table}_band (hash INTEGER, row INTEGER, PRIMARY KEY (hash, row)) WITHOUT ROWID")
        # S608 warns of injected SQL: all that is put in is the name of a table, which is the caller's code's own
        alike = f"SELECT row FROM {table}_band WHERE hash IN ({', '.join('?' * NUM_BANDS)})"  # noqa: S608
        self._look_up = f"SELECT row, name, exact, slots FROM {table} WHERE row IN ({alike}) ORDER BY row"  # noqa: S608
        self._add_text = f"INSERT INTO {table} VALUES (?, ?, ?, ?)"  # noqa: S608
        self._add_bands = f"INSERT OR IGNORE INTO {table}_band VALUES {', '.join(['(?, ?)'] * NUM_BANDS)}"  # noqa: S608

    def __len__(self) -> int:
        return self._num

    def twins(self, text: Sketch) -> list[Twin]:
        """The texts added before whose similarity with this one is estimated at the threshold or above, in order."""
        proposed, found = self._execute(self._look_up, text.bands), []
        while read := proposed.fetchmany(READ_ROWS):
            slots_C2S = np.frombuffer(b"".join(slots for *_, slots in read), np.uint16).reshape(-1, 2, NUM_SLOTS)
            jaccards_C2 = (slots_C2S == text.slots_2S).mean(2).tolist()
            for (row, name, exact, _), (jaccard, of_core) in zip(read, jaccards_C2, strict=True):
                if jaccard >= self._threshold:
                    is_duplicate = of_core >= self._threshold and exact == text.exact
                    found.append(Twin(row, name, jaccard, is_duplicate))
        return found

    def add(self, text: Sketch, name: str) -> None:
        """Hold a text; its row is the number of those before."""
        self._execute(self._add_text, (self._num, name, text.exact, text.slots_2S.tobytes()))
        self._execute(self._add_bands, [value for band in text.bands for value in (band, self._num)])
        self._num += 1


def _signature(ngrams: list[str]) -> list[int]:
    """32-bit slots."""
    signature = RMinHash(num_perm=NUM_SLOTS, seed=SEED)
    signature.update(ngrams)
    return signature.digest()


def _bands(slots_S: npt.NDArray[np.uint32]) -> tuple[int, ...]:
    """A hash of each band and its number, as SQLite's integers are: 64 bits with a sign."""
    digests = (
        hashlib.blake2b(band_S.tobytes(), digest_size=8, salt=number.to_bytes(1)).digest()
        for number, band_S in enumerate(slots_S.reshape(NUM_BANDS, BAND_SLOTS))
    )
    return tuple(np.frombuffer(b"".join(digests), np.int64).tolist())
