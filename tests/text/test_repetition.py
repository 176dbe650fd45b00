"""The two measures of a text that repeats itself."""

from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.text import repetition
from pipeline.text.loops import loop_repeats
from pipeline.text.repetition import duplicate_ngram_frac, longest_sentence_run


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


PROSE = "First you take the pan from the shelf. Then you wash it with care, and dry it. Nothing else is needed here."
LOOPS = {
    "one word, hyphens": "Lemon-" * 20,
    "initials": "S." * 40,
    "fewer than thirty words": "the cat sat " * 6,
    "half a sentence": "I'm not sure what you mean, but " * 5,
    "syllables": "ha" * 60,
    "Chinese": "我喜欢你" * 8,
    "one Chinese character": "哈" * 40,
    "a Chinese paragraph three times": "这是一个很长的段落，我们要说明为什么天空是蓝色的，因为阳光在大气中散射。" * 3,
    "Japanese": "すごい、" * 12,
    "Thai": "คุณชอบฉัน" * 10,
    "Arabic": "الحمد لله " * 8,
    "Korean": "한국어는 " * 8,
    "emoji": "😀" * 30,
    "digits": "0" * 300,
    "punctuation": "!" * 200,
    "line breaks": f"Yes.{chr(10) * 300}",
    "code": "def f():\n    return 1\n" * 6,
    "tags": "<div>" * 30,
    "lines": "The sea is wide\n" * 5,
    "numbered lines": "\n".join(f"{n}. Use a different approach here" for n in range(1, 12)),
    "late, to the end": f"{PROSE * 8} And so it goes on {'and then the ' * 8}and",
    "long, and then an end": f"{PROSE * 8} {'over and ' * 60} out. {PROSE * 8}",
}
NO_LOOPS = {
    "a laugh": "Ha ha ha ha ha, that is a good one! I will tell it to my friends.",
    "a long laugh": "Hahahahahahaha! Good one.",
    "a Chinese laugh": "哈哈哈哈哈哈，真有意思！",
    "counting": ", ".join(map(str, range(1, 101))),
    "a table of numbers": "| n | n² |\n|---|---|\n" + "".join(f"| {n} | {n * n} |\n" for n in range(20)),
    "a drawn table": "+-----+-----+\n| a   | b   |\n+-----+-----+\n| 1   | 2   |\n+-----+-----+",
    "an empty table": "| | | |\n|---|---|---|\n| | | |\n| | | |\n| | | |\n| | | |\n",
    "a board": ". . . . . . . .\n" * 8,
    "steps of stars": "\n".join("*" * n for n in range(1, 20)),
    "a form": f"Name: {'_' * 25}\nDate: {'_' * 25}\nSignature: {'_' * 25}",
    "a table of contents": "\n".join(f"Chapter {n} {'.' * 30} {3 * n}" for n in range(1, 5)),
    "a rule": f"{'-' * 80}\nTitle\n{'-' * 80}\n{PROSE}",
    "DNA": "ACGTTGCAAGGCTTAACGATCGATCGGCTAAGCTAGGCTTAGCATCGGATTACGGCATTA",
    "a tandem repeat": "CAGCAGCAGCAGCAGCAG stands in the gene for huntingtin; more than forty of them make one ill.",
    "a googol": f"A googol is 1{'0' * 100}.",
    "a third": f"1/3 = 0.{'3' * 60}...",
    "zeros": "[0, 0, 0, 0, 0, 0, 0, 0, 0, 0]",
    "a refrain": "Row, row, row your boat,\nGently down the stream.\nMerrily, merrily, merrily, merrily.",
    "a chant": "Na na na na na na na na, hey hey hey, goodbye",
    "answers": "1. True\n2. True\n3. True\n4. True\n5. True\n6. False",
    "buffaloes": "Buffalo buffalo Buffalo buffalo buffalo buffalo Buffalo buffalo.",
    "loops of code": "for (i = 0; i < 8; i++) {\n  for (j = 0; j < 8; j++) {\n    board[i][j] = 0;\n  }\n}\n",
    "prose": PROSE,
    "nothing": "",
}


@pytest.mark.parametrize("text", LOOPS.values(), ids=LOOPS)
def test_a_loop_is_repetitive(text: str) -> None:
    assert repetition.is_repetitive(text)


@pytest.mark.parametrize("text", NO_LOOPS.values(), ids=NO_LOOPS)
def test_a_form_that_repeats_by_nature_is_no_loop(text: str) -> None:
    assert not repetition.is_repetitive(text)


@pytest.mark.parametrize("text", [text for name, text in LOOPS.items() if "line" not in name and "three" not in name])
def test_a_loop_is_found_wherever_the_text_was_cut(text: str) -> None:
    assert all(loop_repeats(text[: len(text) - n]) >= 3 for n in range(4))


@given(st.text(alphabet="ab cあ", max_size=150), st.sampled_from(["", "xyz " * 8]))
def test_loops_are_those_of_a_search_through_all_stretches(text: str, before: str) -> None:
    said = " ".join(f"{before}{text}".split())
    weights = [3 if character == "あ" else 1 for character in said]

    def repeats(start: int, period: int) -> int:
        end = start + period
        while end < len(said) and said[end] == said[end - period]:
            end += 1
        weight, is_stretch = sum(weights[start:end]), end - start >= max(4 * period, period + 8)
        counts = weight >= 60 and (weight >= 0.35 * sum(weights) or len(said) - end <= 3)
        return (end - start) // period if is_stretch and counts and said[start : start + period].strip() else 0

    found = [repeats(start, period) for start in range(len(said)) for period in range(1, len(said) // 4 + 1)]
    assert (loop_repeats(f"{before}{text}") > 0) == (max(found, default=0) > 0)
