"""Evaluation items that a text repeats: exact overlap of n-grams of words, without a server.

A text repeats an item where a 13-gram of words stands in both (GPT-3's measure), or where half of the item's 8-grams
stand in the text (Tülu 3's). N-grams of more than ten items are an instruction that all share, and do not count, unless
an item has no others. Items of 15 to 23 words go by 5- to 7-grams, the longest of which half are left where one
word is changed; those of 5 to 7 words stand in the text as a whole; shorter ones are the whole text.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from pipeline.config import Config, EvaluationSet, Privacy
from pipeline.corpora import BadRowError, Row, files_of, read, utf8
from pipeline.data import shipped
from pipeline.errors import UserError
from pipeline.eval_sets.chat_set import told
from pipeline.eval_sets.probe_set import Probe
from pipeline.run.files import file_hash, folder_hash
from pipeline.screening import privacy
from pipeline.text.prompt_templates import listed
from pipeline.text.words import Hashes, ngram_hashes, words

LONG_NGRAM_WORDS, NGRAM_WORDS = 13, 8
MIN_NGRAM_WORDS = 5
COVERED_FRAC = 0.5
MAX_SHARED_ITEMS = 10  # an n-gram of more items is their boilerplate, as GPT-3's authors took it
MAX_NOTED = 5


@dataclass(frozen=True)
class EvaluationItem:
    """A text that is asked in an evaluation, and its place: file:line or dataset:row."""

    place: str
    text: str


@dataclass(frozen=True)
class Hit:
    """An item that a text repeats."""

    item: EvaluationItem
    rule: str  # 13-gram | 8-grams (5-grams, ...) | whole
    covered_frac: float  # share of the item's n-grams that stand in the text

    def row(self) -> dict[str, Any]:
        """As a report's line has it, beside the text."""
        return {
            "item": self.item.place,
            "item_text": self.item.text,
            "rule": self.rule,
            "covered_frac": round(self.covered_frac, 3),
        }


def ngram_words(num_words: int) -> int:
    """How long the n-grams are whose share counts of an item of so many words; 5 words or more."""
    if num_words < NGRAM_WORDS:
        return num_words
    return min(NGRAM_WORDS, num_words // 3) if num_words >= 3 * MIN_NGRAM_WORDS else NGRAM_WORDS


class EvaluationItems:
    """The items of evaluation sets, by the n-grams that they have.

    Memory: the texts, and 12 bytes for each of an item's words in each of two indexes.
    """

    def __init__(self, items: Iterable[EvaluationItem]) -> None:
        self._items: list[EvaluationItem] = []
        self._short: dict[tuple[str, ...], int] = {}
        self._num_ngrams: list[int] = []
        gathered: dict[int, list[tuple[Hashes, int]]] = {}
        for number, item in enumerate(items):
            sequence = words(item.text)
            self._items.append(item)
            self._num_ngrams.append(1)
            if len(sequence) < MIN_NGRAM_WORDS:
                self._short.setdefault(tuple(sequence), number)
                continue
            n = ngram_words(len(sequence))
            for length, hashes in ngram_hashes(sequence, {n, LONG_NGRAM_WORDS}).items():
                gathered.setdefault(length, []).append((np.unique(hashes), number))
        self._indexes = {length: _Index(parts) for length, parts in sorted(gathered.items())}
        for length, index in self._indexes.items():
            if length != LONG_NGRAM_WORDS:
                for number, num in index.num_ngrams().items():
                    self._num_ngrams[number] = num

    def __len__(self) -> int:
        return len(self._items)

    def hits(self, sequence: list[str]) -> list[Hit]:
        """The items that a text of these words repeats, in their order."""
        if len(sequence) < MIN_NGRAM_WORDS:
            number = self._short.get(tuple(sequence))
            return [] if number is None else [Hit(self._items[number], "whole", 1.0)]
        hashes = ngram_hashes(sequence, self._indexes.keys())
        found = {length: self._indexes[length].counts(ngrams) for length, ngrams in hashes.items()}
        covered = {
            number: (f"{length}-grams", count / self._num_ngrams[number])
            for length, counts in found.items()
            for number, count in counts.items()
            if length != LONG_NGRAM_WORDS
        }
        long = found.get(LONG_NGRAM_WORDS, {})
        hits = []
        for number in sorted(covered.keys() | long.keys()):
            rule, share = covered.get(number, ("", 0.0))
            if share >= COVERED_FRAC or number in long:
                hits.append(Hit(self._items[number], rule if share >= COVERED_FRAC else "13-gram", share))
        return hits


class _Index:
    """Hashes of n-grams, sorted, each with its item."""

    def __init__(self, parts: list[tuple[Hashes, int]]) -> None:
        hashes = np.concatenate([ngrams for ngrams, _ in parts])
        numbers = np.repeat(np.array([number for _, number in parts], np.int32), [len(ngrams) for ngrams, _ in parts])
        _, inverse, num_items = np.unique(hashes, return_inverse=True, return_counts=True)
        is_own = num_items[inverse] <= MAX_SHARED_ITEMS
        has_own = np.bincount(numbers, weights=is_own)[numbers] > 0
        counts = is_own | ~has_own
        hashes, numbers = hashes[counts], numbers[counts]
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._numbers = hashes[order], numbers[order]

    def num_ngrams(self) -> dict[int, int]:
        """Of each item, how many of its n-grams count."""
        numbers, counts = np.unique(self._numbers, return_counts=True)
        return dict(zip(numbers.tolist(), counts.tolist(), strict=True))

    def counts(self, ngrams: Hashes) -> Counter[int]:
        """Of each item that has any of these n-grams, how many it has."""
        first = np.searchsorted(self._hashes, ngrams)
        near = np.minimum(first, len(self._hashes) - 1)
        counts: Counter[int] = Counter()
        for ngram in np.unique(ngrams[self._hashes[near] == ngrams]):
            low, high = np.searchsorted(self._hashes, ngram), np.searchsorted(self._hashes, ngram, "right")
            counts.update(self._numbers[low:high].tolist())
        return counts


def sets_of(config: Config) -> tuple[EvaluationSet, ...]:
    """The sets that prompts are compared with: `prepare.decontaminate`, and the run's own chat set, tasks and probes.

    None where `prepare.decontaminate` is empty.
    """
    given = config.prepare.decontaminate
    named = {each.path for each in given}
    evaluate = config.evaluate
    paths = (evaluate.chat_set, evaluate.tasks.path, evaluate.risks.path)
    own = [path for path in paths if path and path not in named]
    return (*given, *(EvaluationSet(path=path) for path in own)) if given else ()


def rows(hits: list[Hit]) -> Iterator[dict[str, Any]]:
    """A report's lines of a text's hits: the first few, each with the number of all."""
    for hit in hits[:MAX_NOTED]:
        yield {**hit.row(), "num_items": len(hits)}


def load(sets: Iterable[EvaluationSet], settings: Privacy | None = None) -> EvaluationItems:
    """The items of all sets; with `settings`, one with personal data also as prompts have it, with placeholders.

    Raises UserError with file and line where a row has no text to compare.
    """
    return EvaluationItems(
        item for each in sets for given in _items(each) for item in _as_prompts_have_it(given, settings)
    )


def _as_prompts_have_it(item: EvaluationItem, settings: Privacy | None) -> list[EvaluationItem]:
    redacted = item.text if settings is None else privacy.redact(item.text, settings, Counter())
    return [item] if redacted == item.text else [item, EvaluationItem(item.place, redacted)]


def content_hashes(sets: Iterable[EvaluationSet], setting: str) -> dict[str, str]:
    """Hashes of the sets that are files or local folders. Raises UserError for a missing file, naming the setting."""
    hashes = {}
    for each in sets:
        if each.dataset and Path(each.dataset).is_dir():
            hashes[each.dataset] = folder_hash(Path(each.dataset))
        try:
            hashes |= {str(path): file_hash(shipped.find(path)) for path in files_of(each)}
        except UserError as error:
            raise UserError(f"{error} (evaluation items, {setting})") from None
    return hashes


def _items(source: EvaluationSet) -> Iterator[EvaluationItem]:
    for place, row in read(source, {*source.columns, *Probe.model_fields}):
        if isinstance(row, BadRowError):
            raise UserError(f"{place}: {row} (decontaminate)")
        asked = _asked(place, row)
        texts = [utf8(text) for column in source.columns for text in _texts(asked.get(column))]
        if not texts:
            raise UserError(
                f"{place}: no text in any of the columns {', '.join(source.columns)} (the row has:"
                f" {listed(row)}); name yours in the set's `columns`"
            )
        yield from (EvaluationItem(place, text) for text in texts)


def _asked(place: str, row: Row) -> Row:
    """The row; where it is a pair of probes, with both prompts as its turns, filled in as evaluate asks them."""
    if row.get("category") != "counterfactual" or not row.get("swaps"):
        return row
    try:
        return row | {"turns": Probe.model_validate(row).prompts()}
    except ValidationError as error:
        raise UserError(f"{place}: not a probe item: {told(error)} (decontaminate)") from None


def _texts(value: Any) -> list[str]:
    """The texts of a column: itself, those of a list, or the user's of a list of messages."""
    if isinstance(value, str):
        return [value] if value.strip() else []
    if isinstance(value, dict):
        return _texts(value.get("content")) if value.get("role") == "user" else []
    return [text for each in value for text in _texts(each)] if isinstance(value, list) else []
