"""The two measures of a text that goes round in circles."""

import pytest

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
