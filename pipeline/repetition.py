"""Measures of a text that goes round in circles; filter drops by them, evaluate counts by the first two."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import groupby

SENTENCE = re.compile(r"[.!?]\s+|[。！？]\s*|\n+")
ENDS = " \t.!?。！？"
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
    """Share of the 10-grams of words that stand earlier in the text (after Gopher, table A1); 0 below 30 words.

    The bars of a table are no words.
    """
    words = text.lower().replace("|", " ").split()
    if len(words) < MIN_NGRAM_TEXT_WORDS:
        return 0.0
    ngrams = _ngrams(words, NGRAM_WORDS)
    return 1 - len(set(ngrams)) / len(ngrams)


def top_ngram_char_fracs(words: list[str], nums: Sequence[int]) -> list[float]:
    """Share of the characters that the commonest n-gram of words takes up, for each n, ascending.

    Gopher, table A1; of n-grams that are equally common the longest, and only those that stand there three times at
    least. White space is not counted.
    """
    shares = [0.0] * len(nums)
    num_chars = max(1, sum(map(len, words)))
    for place, num in enumerate(nums):
        counts = Counter(zip(*(words[n:] for n in range(num)), strict=False))
        times = max(counts.values(), default=0)
        if times < MIN_TOP_COUNT:  # nor does a longer one
            break
        longest = max(sum(map(len, ngram)) for ngram, count in counts.items() if count == times)
        shares[place] = min(1.0, longest * times / num_chars)
    return shares


def duplicate_ngram_char_fracs(words: list[str], nums: Sequence[int]) -> list[float]:
    """Share of the characters in n-grams of words that stand earlier in the text, for each n, ascending.

    Gopher, table A1; each character is counted once.
    """
    shares = [0.0] * len(nums)
    num_chars = max(1, sum(map(len, words)))
    for place, num in enumerate(nums):
        repeated = _chars_in_duplicates(words, num)
        if not repeated:  # nor in longer ones
            break
        shares[place] = repeated / num_chars
    return shares


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
    said = [part.strip(ENDS).lower() for part in parts]
    if len(set(said)) == len(said):  # mostly
        return int(any(c.isalnum() for part in said for c in part))
    said = [part for part in said if any(c.isalnum() for c in part)]
    return max((len(list(run)) for _, run in groupby(said)), default=0)


def _chars_in_duplicates(words: list[str], num: int) -> int:
    seen: set[tuple[str, ...]] = set()
    repeated, covered = 0, 0  # characters; words up to `covered` are counted
    for place, ngram in enumerate(_ngrams(words, num)):
        if ngram in seen:
            repeated += sum(map(len, words[max(place, covered) : place + num]))
            covered = place + num
        seen.add(ngram)
    return repeated


def _ngrams(words: list[str], num: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[n:] for n in range(num)), strict=False))
