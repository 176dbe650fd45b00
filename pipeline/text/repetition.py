"""Measures of a text that repeats itself; filter drops by them, evaluate counts by `is_repetitive`."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby

from pipeline.text.loops import loop_repeats

SENTENCE = re.compile(r"[.!?]\s+|[。！？]\s*|\n+")
# Of a line of three words or more: `1. True` and `2. True` are answers to two questions.
ITEM_NUMBER = re.compile(r"^[ \t]*\(?\d{1,3}[.):][ \t]*(?=\S+[ \t]+\S+[ \t]+\S|[^\x00-\u2fff]{6})", re.MULTILINE)
ODD_SPACE = re.compile(r"[\t\r\x0b\x0c\x1c-\x1f]")
ENDS = " \t.!?。！？"
PARAGRAPH = re.compile(r"\n\s*\n")
NGRAM_WORDS = 10
MIN_NGRAM_TEXT_WORDS = 30
NGRAM_CHARACTERS, MIN_NGRAM_TEXT_CHARACTERS = 20, 60  # the same of scripts without spaces
UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
SYMBOLS_ALONE = re.compile(r"(?<!\S)[^\w\s]+(?!\S)")  # words without letter or digit, as of a drawing
MIN_TOP_COUNT = 3
MAX_SENTENCE_RUN, MAX_DUPLICATE_NGRAM_FRAC = 3, 0.35  # as filter has them by default


def is_repetitive(text: str) -> bool:
    """Whether an answer repeats itself: by sentences or lines in a row, by duplicate n-grams, or in a loop."""
    return (
        longest_sentence_run(text) > MAX_SENTENCE_RUN
        or (
            duplicate_ngram_frac(text) > MAX_DUPLICATE_NGRAM_FRAC
            and duplicate_ngram_frac(SYMBOLS_ALONE.sub(" ", text)) > MAX_DUPLICATE_NGRAM_FRAC
        )
        or duplicate_character_frac(text) > MAX_DUPLICATE_NGRAM_FRAC
        or loop_repeats(text) > 0
    )


def longest_sentence_run(text: str) -> int:
    """How often one sentence or line stands in a row, at most; the number of a list's item is not part of it."""
    text = ITEM_NUMBER.sub("", text) if "\n" in text else text
    if text.isascii() and not ODD_SPACE.search(text):  # as SENTENCE has it, in half the time
        return _longest_run(text.replace("! ", ". ").replace("? ", ". ").replace("\n", ". ").split(". "))
    return _longest_run(SENTENCE.split(text))


def longest_paragraph_run(text: str) -> int:
    """How often one paragraph stands in a row, at most."""
    return _longest_run(PARAGRAPH.split(text))


def duplicate_ngram_frac(text: str) -> float:
    """Share of the 10-grams of words that stand earlier in the text (after Gopher, table A1); 0 below 30 words.

    The bars of a table are no words.
    """
    return duplicate_ngram_frac_of(text.lower().replace("|", " ").split())


def duplicate_ngram_frac_of(words: list[str]) -> float:
    """The same of words."""
    if len(words) < MIN_NGRAM_TEXT_WORDS:
        return 0.0
    return 1 - len(set(_ngrams(words, NGRAM_WORDS))) / (len(words) - NGRAM_WORDS + 1)


def duplicate_character_frac(text: str) -> float:
    """Share of the 20-grams of characters that stand earlier in a text of a script without spaces, such as Chinese.

    0 where such characters are not most of the text, and below 60 of them.
    """
    characters = UNSPACED.findall(text)
    if len(characters) < MIN_NGRAM_TEXT_CHARACTERS or 2 * len(characters) < len(text):
        return 0.0
    return 1 - len(set(_ngrams(characters, NGRAM_CHARACTERS))) / (len(characters) - NGRAM_CHARACTERS + 1)


def top_ngram_char_fracs(words: list[str], nums: Sequence[int]) -> list[float]:
    """Share of the characters that the commonest n-gram of words takes up, for each n, ascending.

    Gopher, table A1; of n-grams that are equally common the longest, and only those that stand there three times at
    least. White space is not counted.
    """
    shares = [0.0] * len(nums)
    num_chars = max(1, sum(map(len, words)))
    starts: Sequence[int] = range(len(words))
    for place, num in enumerate(nums):
        ngrams = _ngrams_at(words, starts, num)
        counts = Counter(ngrams)
        times = max(counts.values(), default=0)
        if times < MIN_TOP_COUNT:  # nor is a longer one so common
            break
        common = {ngram: count for ngram, count in counts.items() if count >= MIN_TOP_COUNT}
        longest = max(sum(map(len, ngram)) for ngram, count in common.items() if count == times)
        shares[place] = min(1.0, longest * times / num_chars)
        # a longer one that is so common begins with one that is
        starts = [at for at, ngram in zip(starts, ngrams, strict=False) if ngram in common]
    return shares


def duplicate_ngram_char_fracs(words: list[str], nums: Sequence[int]) -> list[float]:
    """Share of the characters in n-grams of words that stand earlier in the text, for each n, ascending.

    Gopher, table A1; each character is counted once.
    """
    shares = [0.0] * len(nums)
    ends = list(accumulate(map(len, words), initial=0))  # of the words, in characters
    starts: Sequence[int] = range(len(words))
    for place, num in enumerate(nums):
        ngrams = _ngrams_at(words, starts, num)
        if len(set(ngrams)) == len(ngrams):  # nor does a longer one stand there twice
            break
        once: set[tuple[str, ...]] = set()
        twice: set[tuple[str, ...]] = set()
        repeated, covered = 0, 0  # characters; words up to `covered` are counted
        for at, ngram in zip(starts, ngrams, strict=False):
            if ngram in once:
                twice.add(ngram)
                repeated += ends[at + num] - ends[max(at, covered)]
                covered = at + num
            else:
                once.add(ngram)
        shares[place] = repeated / max(1, ends[-1])
        # a longer one that stands there twice begins with one that does
        starts = [at for at, ngram in zip(starts, ngrams, strict=False) if ngram in twice]
    return shares


def has_duplicate_ngram(words: list[str], num: int) -> bool:
    """Whether any n-gram of words stands there twice: else no longer one does either."""
    return len(set(_ngrams(words, num))) < len(words) - num + 1


def duplicate_fracs(parts: Sequence[str]) -> tuple[float, float]:
    """`(of the parts, of their characters)`: the share that stands earlier among lines or paragraphs (Gopher, A1)."""
    counts = Counter(parts)
    if len(counts) == len(parts):
        return 0.0, 0.0
    repeated = sum(len(part) * (count - 1) for part, count in counts.items())
    return 1 - len(counts) / len(parts), repeated / max(1, sum(map(len, parts)))


def _longest_run(parts: list[str]) -> int:
    said = [words for part in parts if (words := part.strip(ENDS).lower())]
    if len(set(said)) == len(said):  # mostly
        return int(any(c.isalnum() for part in said for c in part))
    said = [part for part in said if any(c.isalnum() for c in part)]
    return max((len(list(run)) for _, run in groupby(said)), default=0)


def _ngrams(words: list[str], num: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[n:] for n in range(num)), strict=False)


def _ngrams_at(words: list[str], starts: Sequence[int], num: int) -> list[tuple[str, ...]]:
    """The n-grams that begin at these words, ascending; the last starts may have none."""
    if len(starts) == len(words):
        return list(_ngrams(words, num))
    return [tuple(words[at : at + num]) for at in starts if at + num <= len(words)]
