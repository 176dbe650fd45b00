"""The two measures of a text that goes round in circles."""

from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import repetition
from pipeline.repetition import duplicate_ngram_frac, longest_sentence_run


@pytest.mark.parametrize(
    ("text", "longest"),
    [
        ("", 0),
        ("...  !!!\n---", 0),
        ("One. Two. Three.", 1),
        ("Yes. Yes. Yes. No.", 3),
        ("Yes. No. Yes. No. Yes.", 1),
        ("yes.\nYES.\n  Yes.  \n", 3),
        ("Go on!\n\n---\n\nGo on!", 2),
        ("a b c\na b c\nd\na b c\na b c\na b c", 3),
    ],
)
def test_the_longest_run_of_one_sentence_or_line(text: str, longest: int) -> None:
    assert longest_sentence_run(text) == longest


def test_a_text_below_thirty_words_is_not_judged_by_ngrams() -> None:
    assert duplicate_ngram_frac("word " * 29) == 0
    assert duplicate_ngram_frac("word " * 30) > 0.9


def test_a_text_without_repeats_has_no_duplicate_ngrams() -> None:
    assert duplicate_ngram_frac(" ".join(f"w{i}" for i in range(200))) == 0


def test_the_share_of_ngrams_that_stand_earlier() -> None:
    """Forty words twice: 71 10-grams, and those that start at word 41 or later, 31 of them, are repeats."""
    half = " ".join(f"w{i}" for i in range(40))
    assert duplicate_ngram_frac(f"{half} {half}") == pytest.approx(31 / 71)


def test_case_does_not_hide_a_repeat() -> None:
    half = " ".join(f"w{i}" for i in range(40))
    assert duplicate_ngram_frac(f"{half} {half.upper()}") == duplicate_ngram_frac(f"{half} {half}")


SPEECH = st.text(alphabet="ab.!? \n\t。", max_size=40)


@given(SPEECH)
def test_the_quick_way_to_part_sentences_gives_what_the_pattern_gives(text: str) -> None:
    parts = [part.strip(repetition.ENDS) for part in repetition.SENTENCE.split(text)]
    runs = [len(list(run)) for _, run in groupby(part for part in parts if any(map(str.isalnum, part)))]
    assert longest_sentence_run(text) == max(runs, default=0)


WORDS = st.lists(st.sampled_from(["a", "bb", "ccc"]), max_size=30)


def plain_top(words: list[str], num: int) -> float:
    ngrams = [tuple(words[at : at + num]) for at in range(len(words) - num + 1)]
    times = max((ngrams.count(ngram) for ngram in ngrams), default=0)
    if times < 3:
        return 0.0
    longest = max(sum(map(len, ngram)) for ngram in ngrams if ngrams.count(ngram) == times)
    return min(1.0, longest * times / sum(map(len, words)))


def plain_duplicates(words: list[str], num: int) -> float:
    """Characters of words that are part of an n-gram that stands earlier, or of one that overlaps it, counted once."""
    starts, covered = [tuple(words[at : at + num]) for at in range(len(words) - num + 1)], set()
    for at, ngram in enumerate(starts):
        if ngram in starts[:at]:
            covered |= set(range(at, at + num))
    return sum(len(words[at]) for at in covered) / max(1, sum(map(len, words)))


@given(WORDS)
def test_shares_of_ngrams_are_those_of_a_plain_count(words: list[str]) -> None:
    tops, duplicates = range(2, 5), range(5, 11)
    assert repetition.top_ngram_char_fracs(words, tops) == pytest.approx([plain_top(words, num) for num in tops])
    expected = [plain_duplicates(words, num) for num in duplicates]
    assert repetition.duplicate_ngram_char_fracs(words, duplicates) == pytest.approx(expected)
