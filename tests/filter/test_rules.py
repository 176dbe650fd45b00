"""Each rule alone: what it measures, where its threshold is, and how it is turned off."""

from typing import Any

import pytest

from pipeline.config import Filter
from pipeline.filter.rules import RULES, Candidate

END = 1  # the end-of-turn, a special token
SPECIAL = frozenset({0, END})
Verdict = tuple[float, bool] | None
TEN_WORDS = "one two three four five six seven eight nine ten"


def candidate(text: str = "Hello.", body: int | list[int] = 3, finish_reason: str = "stop") -> Candidate:
    """An answer of that many plain tokens, or of these, and its end-of-turn where it was finished."""
    tokens = [7] * body if isinstance(body, int) else body
    ended = [END] if finish_reason == "stop" else []
    return Candidate("p", text, tokens + ended, finish_reason, SPECIAL)


def verdict(rule: str, answer: Candidate, **settings: Any) -> Verdict:
    return RULES[rule](answer, Filter(**settings))


@pytest.mark.parametrize(("text", "expected"), [("", (0, False)), (" \n\t ", (0, False)), (" a ", (1, True))])
def test_an_answer_of_white_space_is_empty(text: str, expected: Verdict) -> None:
    assert verdict("empty", candidate(text)) == expected


@pytest.mark.parametrize(("finish_reason", "expected"), [("stop", (0, True)), ("length", (1, False))])
def test_an_answer_that_hit_the_limit_is_truncated(finish_reason: str, expected: Verdict) -> None:
    assert verdict("truncated", candidate(finish_reason=finish_reason)) == expected


@pytest.mark.parametrize(
    ("body", "finish_reason", "expected"),
    [
        ([7, 8], "stop", (0, True)),
        ([7, 0, 8], "stop", (1, False)),
        ([7, END, 0], "stop", (2, False)),
        ([7, 8], "length", (0, True)),
        ([7, 0], "length", (1, False)),
    ],
)
def test_special_tokens_before_the_end_of_turn_are_counted(
    body: list[int], finish_reason: str, expected: Verdict
) -> None:
    assert verdict("control_tokens", candidate(body=body, finish_reason=finish_reason)) == expected


@pytest.mark.parametrize(("body", "keep"), [(4, False), (5, True), (6, True)])
def test_the_shortest_answer_is_counted_without_its_end_of_turn(body: int, keep: bool) -> None:
    assert verdict("too_short", candidate(body=body), min_tokens=5) == (body, keep)
    assert verdict("too_short", candidate(body=body, finish_reason="length"), min_tokens=5) == (body, keep)


@pytest.mark.parametrize(("body", "keep"), [(4, True), (5, True), (6, False)])
def test_the_longest_answer_is_counted_without_its_end_of_turn(body: int, keep: bool) -> None:
    assert verdict("too_long", candidate(body=body), max_tokens=5) == (body, keep)


@pytest.mark.parametrize(("times", "keep"), [(1, True), (3, True), (4, False)])
def test_a_sentence_may_stand_in_a_row_so_many_times(times: int, keep: bool) -> None:
    assert verdict("repeated_sentence", candidate("Yes. " * times), max_sentence_repeats=3) == (times, keep)


@pytest.mark.parametrize(
    "code", ["```\nx = 1\n```\n", "def f(x):\n    return x\n", "import os\n", "#include <stdio.h>\n"]
)
def test_lines_in_an_answer_with_code_may_stand_twice_as_often(code: str) -> None:
    answers = {times: candidate(code + "print(x)\n" * times) for times in (6, 7)}
    verdicts = {
        times: verdict("repeated_sentence", answer, max_sentence_repeats=3) for times, answer in answers.items()
    }
    assert verdicts == {6: (6, True), 7: (7, False)}


def test_a_loop_of_words_is_dropped_from_its_share_on() -> None:
    """Ten words four times are 31 10-grams, 10 of them different."""
    answer, share = candidate(" ".join([TEN_WORDS] * 4)), 21 / 31
    assert verdict("repeated_ngrams", answer, max_duplicate_ngram_frac=share + 1e-6) == (pytest.approx(share), True)
    assert verdict("repeated_ngrams", answer, max_duplicate_ngram_frac=share - 1e-6) == (pytest.approx(share), False)


@pytest.mark.parametrize(
    ("rule", "off"),
    [
        ("truncated", {"drop_truncated": False}),
        ("control_tokens", {"drop_control_tokens": False}),
        ("too_short", {"min_tokens": None}),
        ("too_long", {"max_tokens": None}),
        ("repeated_sentence", {"max_sentence_repeats": None}),
        ("repeated_ngrams", {"max_duplicate_ngram_frac": None}),
    ],
)
def test_a_rule_that_is_off_says_nothing(rule: str, off: dict[str, Any]) -> None:
    worst = candidate("Yes. " * 5000, [0] * 5000, "length")
    assert verdict(rule, worst, **off) is None
    assert verdict(rule, candidate()) is not None


def test_an_ordinary_answer_passes_every_rule_as_shipped() -> None:
    text = "Rain is water that falls from clouds. It forms when vapour cools.\n\n1. Clouds gather.\n2. Drops grow."
    assert [name for name, rule in RULES.items() if not (rule(candidate(text, 30), Filter()) or (0, True))[1]] == []
