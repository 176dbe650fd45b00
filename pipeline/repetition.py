"""Measures of a text that goes round in circles; filter drops by them, evaluate counts by the first two."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import groupby

SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])\s*|\n+")
PARAGRAPH = re.compile(r"\n\s*\n")
NGRAM_WORDS = 10
MIN_NGRAM_TEXT_WORDS = 30
MIN_TOP_COUNT = 3


def longest_sentence_run(text: str) -> int:
    """How often one sentence or line stands in a row, at most."""
    return _longest_run(SENTENCE.split(text))


def longest_paragraph_run(text: str) -> int:
    """How often one paragraph stands in a row, at most."""
    return _longest_run(PARAGRAPH.split(text))


def duplicate_ngram_frac(text: str) -> float:
    """Share of the 10-grams of words that stand earlier in the text (after Gopher, table A1); 0 below 30 words."""
    words = text.lower().split()
    if len(words) < MIN_NGRAM_TEXT_WORDS:
        return 0.0
    ngrams = _ngrams(words, NGRAM_WORDS)
    return 1 - len(set(ngrams)) / len(ngrams)


def top_ngram_char_frac(words: list[str], num: int) -> float:
    """Share of the characters that the commonest n-gram of words takes up, where it stands three times at least.

    Gopher, table A1; of n-grams that are equally common the longest. White space is not counted.
    """
    counts = Counter(_ngrams(words, num))
    times = max(counts.values(), default=0)
    if times < MIN_TOP_COUNT:
        return 0.0
    longest = max(sum(map(len, ngram)) for ngram, count in counts.items() if count == times)
    return min(1.0, longest * times / sum(map(len, words)))


def duplicate_ngram_char_frac(words: list[str], num: int) -> float:
    """Share of the characters in n-grams of words that stand earlier in the text, each character counted once.

    Gopher, table A1.
    """
    seen: set[tuple[str, ...]] = set()
    repeated, covered = 0, 0  # characters; words up to here are counted
    for place, ngram in enumerate(_ngrams(words, num)):
        if ngram in seen:
            repeated += sum(map(len, words[max(place, covered) : place + num]))
            covered = place + num
        seen.add(ngram)
    return repeated / max(1, sum(map(len, words)))


def has_duplicate_ngram(words: list[str], num: int) -> bool:
    """Whether any n-gram of words stands there twice: else no longer one does either."""
    ngrams = _ngrams(words, num)
    return len(set(ngrams)) < len(ngrams)


def duplicate_fracs(parts: Sequence[str]) -> tuple[float, float]:
    """`(of the parts, of their characters)`: the share that stands earlier among lines or paragraphs (Gopher, A1)."""
    counts = Counter(parts)
    if len(counts) == len(parts):
        return 0.0, 0.0
    repeated = sum(len(part) * (count - 1) for part, count in counts.items())
    return 1 - len(counts) / len(parts), repeated / max(1, sum(map(len, parts)))


def _longest_run(parts: list[str]) -> int:
    said = [part.strip().lower() for part in parts if any(c.isalnum() for c in part)]
    return max((len(list(run)) for _, run in groupby(said)), default=0)


def _ngrams(words: list[str], num: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[n:] for n in range(num)), strict=False))
