"""Each kind of check on answers that do what was asked and on answers that just miss it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.eval_sets.checkers import KINDS, fault, passes, passes_loosely
from pipeline.eval_sets.checkers.wording import sentences_of, words_of

TABLE = "| A | B |\n|---|:-:|\n| 1 | 2 |\n| 3 | 4 |"
CODE = "```python\ndef f(x):\n    return x\n```"
LIST = "Here are the fruits:\n- Apples\n- the pears\n- Figs."

# (kind, arguments, answers that pass, answers that fail)
EXAMPLES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    (
        "num_words",
        {"low": 3, "high": 4},
        ["one two three", "a well-known fact – yes"],
        ["one two", "a b c d e", "- — –"],
    ),
    (
        "num_sentences",
        {"low": 2, "high": 2},
        [
            "One. Two!",
            "Dr. Smith left. Did he?",
            "It cost 3.5 pounds. Fine.",
            'He said "no." Then he left.',
            "- one\n- two",
        ],
        ["One.", "One. Two. Three.", "e.g. this one"],
    ),
    ("num_paragraphs", {"low": 2, "high": 2}, ["a\n\nb", "a\nb\n \n\nc"], ["a\nb", "a\n\nb\n\nc"]),
    ("num_lines", {"low": 2, "high": 2}, ["a\nb", "a\n\nb\n"], ["a", "a\nb\nc"]),
    ("num_characters", {"high": 5}, ["abcde", "  abc  "], ["abcdef"]),
    ("num_questions", {"low": 1, "high": 1}, ["Is it?", "Really?! It is."], ["It is.", "Is it? Was it?"]),
    ("num_capital_words", {"low": 2, "high": 2}, ["I saw BIG red CARS"], ["I A B", "BIG", "ALL OF IT"]),
    ("word_frequency", {"word": "cat", "low": 2, "high": 2}, ["Cat and cat."], ["cat", "cat category", "cat cat cat"]),
    ("text_frequency", {"text": "s", "low": 3}, ["Sees seas"], ["see a sea"]),
    ("includes", {"words": ["red car", "it's"]}, ["It’s a RED\ncar."], ["A red cart, it's.", "It's red, a car"]),
    ("excludes", {"words": ["tree", "trees"]}, ["street"], ["A Tree.", "two trees"]),
    ("lacks", {"characters": ",e"}, ["a dog"], ["a, b", "THE"]),
    ("starts_with", {"text": "Indeed"}, ["indeed, yes", "  Indeed"], ["Yes, indeed", "Inde"]),
    ("ends_with", {"text": "home."}, ["Go home.", "HOME. \n"], ["Go home", "home. Now"]),
    ("lower_case", {}, ["all small, 1."], ["One big", "123"]),
    ("upper_case", {}, ["ALL BIG!"], ["ALl", "123"]),
    ("wrapped", {"opening": '"', "closing": '"'}, ['"yes"', "“yes”"], ["yes", '"yes', '"', '""', '" "']),
    ("wrapped", {"opening": "**", "closing": "**"}, ["**yes**"], ["***", "**yes*"]),
    ("sentence_words", {"high": 3}, ["One two three. Four."], ["One two three four. Five."]),
    ("word_letters", {"low": 2, "high": 3}, ["the cat", "(it's)"], ["a cat", "cats"]),
    ("word_initials", {"letter": "s"}, ['"Six" sad Swans'], ["Six sad little swans"]),
    ("no_word_twice", {}, ["one two, three"], ["The cat saw the dog.", "go, go"]),
    ("script", {"script": "cyrillic"}, ["Это мой новый дом у реки, OK", "Привет!"], ["This is дом", "123"]),
    ("script", {"script": "japanese"}, ["春はきれいです。"], ["spring"]),
    ("script", {"script": "greek"}, ["νερό"], ["nero"]),
    ("language", {"code": "de"}, ["Der Hund schläft heute im Garten."], ["The dog sleeps in the garden today."]),
    ("language", {"code": "fr"}, ["- Le chien dort dans le jardin."], ["El perro duerme en el jardín."]),
    (
        "num_bullets",
        {"low": 2, "high": 2},
        ["- a\n* b", "List:\n  • a\n  • b"],
        ["- a", "a - b\nb - c", "-a\n-b", "**a**\n**b**"],
    ),
    (
        "numbered_list",
        {"low": 2, "high": 2},
        ["1. a\n2. b", "So:\n1) a\n\n2) b"],
        ["1. a", "1. a\n3. b", "2. a\n1. b", "- a\n- b"],
    ),
    ("title", {"opening": "<<", "closing": ">>"}, ["<<A>>\ntext"], ["<<A>>", "A\ntext", "<<>>\ntext", "text\n<<A>>"]),
    ("title", {"opening": "# "}, ["# A\ntext"], ["#A\ntext", "## A\ntext"]),
    (
        "postscript",
        {"marker": "P.S."},
        ["Hi.\nP.S. Bye.", "Hi.\n\n**P.S.** Bye"],
        ["P.S. Bye.", "Hi.\nP.S.", "P.S. x\nBye."],
    ),
    ("placeholders", {"low": 2, "high": 2}, ["[name], on [the date]"], ["[name]", "[] []", "[a](b) [c](d)"]),
    ("sections", {"separator": "***", "num": 2}, ["a\n***\nb"], ["a", "a ***", "a***b***c"]),
    ("line_initials", {"letters": "LAMP"}, ["Light\nall\n\n- Moths\n*Pale*"], ["Light\nAll\nMoths", "A\nL\nM\nP"]),
    (
        "table",
        {"columns": 2, "low": 2, "high": 2},
        [TABLE, f"See:\n\n{TABLE}\n\nDone."],
        ["a | b", TABLE + "\n| 5 | 6 |", TABLE + "\n| 5 |"],
    ),
    (
        "code_fence",
        {"languages": ["python"], "alone": True},
        [CODE, CODE + "\n"],
        [f"Sure:\n{CODE}", f"{CODE}\n{CODE}", "```\nx\n```"],
    ),
    ("code_fence", {"languages": ["python"]}, [f"Sure:\n{CODE}"], ["```js\nx\n```", "python"]),
    (
        "python_defines",
        {"name": "f"},
        [CODE, "class f: pass", f"A:\n{CODE}"],
        ["def g(): pass", "def f(:", "f = 1", "f"],
    ),
    (
        "json_object",
        {"keys": {"a": "integer", "b": "array"}},
        ['{"a": 1, "b": []}', '```json\n{"b": [], "a": 2}\n```'],
        [
            '{"a": 1}',
            '{"a": true, "b": []}',
            '{"a": 1, "b": [], "c": 0}',
            "[1]",
            'Sure: {"a": 1, "b": []}',
            '{"a": NaN, "b": []}',
        ],
    ),
    ("json_object", {"keys": {"a": "null"}, "only": False}, ['{"a": null, "c": 0}'], ['{"c": 0}', '{"a": 0}']),
    ("json_array", {"of": "string", "low": 2, "high": 2}, ['["a", "b"]'], ['["a"]', '["a", 1]', '{"a": "b"}', "a, b"]),
    ("json_array", {"of": "number", "high": 2}, ["[1, 2.5]", "[]"], ["[1, false]", "[1, 2, 3]", "{}"]),
    (
        "json_equals",
        {"value": {"a": [1, "X"], "b": True}},
        ['{"b": true, "a": [1.0, "x"]}'],
        ['{"b": 1, "a": [1, "X"]}', '{"b": true, "a": ["X", 1]}', '{"b": true}', "true", "{"],
    ),
    (
        "number",
        {"value": 1234.5},
        ["1,234.5", "It is 1 234,5 km.", "1.234,5", "12 × 3 makes 1234.50 euros."],
        ["1234", "1,234.5 or 7", "none"],
    ),
    (
        "number",
        {"value": 42},
        ["42", "The answer is 6 × 7 = 42.", "**Answer:** 42 (of 60)", "Answer:\n42 apples"],
        ["-42", "4.2", "420", "42 and 43"],
    ),
    ("number", {"value": -5}, ["−5 °C", "-5"], ["5", "10-5"]),
    ("number", {"value": 0.75}, ["3/4", ".75", "0,75"], ["3/5", "75", "1/0"]),
    ("number", {"value": 3.14, "tolerance": 0.01}, ["3.1416"], ["3.2"]),
    ("number", {"value": 12.5}, ["12.50"], ["1250", "125"]),
    (
        "items",
        {"items": ["figs", "apples", "pears"]},
        [LIST, "apples, pears and figs.", "The fruits are: figs; pears, apples"],
        ["apples, pears", "apples, pears, figs, plums", "apples, apples, pears", "figs"],
    ),
    ("items", {"items": ["b", "a"], "ordered": True}, ["b, a", "1. b\n2. a"], ["a, b"]),
    ("alphabetical", {"num": 3}, ["a, b, c", "- Ant\n- bee\n- cat"], ["b, a, c", "a, b", "a, a, b"]),
    ("choice", {"choice": "no", "options": ["yes", "no"]}, ["No.", "**no**"], ["yes", "yes and no", "unknown"]),
    (
        "short_answer",
        {"accepted": ["Oslo"], "max_words": 4},
        ["Oslo", "It is oslo."],
        ["Bergen", "The capital of Norway is Oslo", "Oslos"],
    ),
    ("matches", {"pattern": "\\d{4}-\\d{2}"}, [" 2031-04 "], ["2031-4", "in 2031-04"]),
    ("shorter_than", {"earlier": "a b c d", "share": 0.5}, ["a"], ["a b", "a b c", "-"]),
    ("same_words", {"earlier": "The cat sat."}, ["THE CAT SAT"], ["The cat", "The sat cat"]),
    ("same_items", {"earlier": "wolf, deer and owl"}, ["- Owl\n- deer\n- wolf"], ["owl, deer", "owl, deer, fox"]),
]


@pytest.mark.parametrize(("kind", "arguments", "good", "bad"), EXAMPLES, ids=lambda value: str(value)[:20])
def test_what_was_asked_passes_and_what_misses_it_does_not(
    kind: str, arguments: dict[str, Any], good: list[str], bad: list[str]
) -> None:
    assert fault(kind, arguments) is None
    assert [answer for answer in good if not passes(kind, arguments, answer)] == []
    assert [answer for answer in bad if passes(kind, arguments, answer)] == []


def test_every_kind_has_examples() -> None:
    assert {kind for kind, *_ in EXAMPLES} == KINDS.keys()


@given(answer=st.text(), example=st.sampled_from(EXAMPLES))
def test_any_text_gets_a_verdict(answer: str, example: tuple[str, dict[str, Any], list[str], list[str]]) -> None:
    kind, arguments, *_ = example
    strict = passes(kind, arguments, answer)
    assert isinstance(strict, bool)
    assert passes_loosely(kind, arguments, answer) or not strict  # loose never asks more


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_an_answer_without_text_passes_nothing(kind: str) -> None:
    arguments = next(arguments for name, arguments, *_ in EXAMPLES if name == kind)
    assert not passes(kind, arguments, "")
    assert not passes_loosely(kind, arguments, " \n")


def test_a_lead_in_a_closing_line_and_asterisks_cost_nothing_loosely() -> None:
    for answer in ("Sure, here it is:\nall small", "all small\nHope this HELPS!", "Yes:\nall small\nBye!"):
        assert not passes("lower_case", {}, answer)
        assert passes_loosely("lower_case", {}, answer)
    assert passes_loosely("starts_with", {"text": "Indeed"}, "**Indeed**, it is")
    assert not passes_loosely("lower_case", {}, "A\nB\nC")


@given(
    st.integers(-(10**9), 10**9), st.sampled_from(["{:,}", "{}", "It is {:,} in all.", "**{}**", "Answer: {:,} metres"])
)
def test_a_number_is_found_however_it_is_written(value: int, form: str) -> None:
    assert passes("number", {"value": float(value)}, form.format(value))
    assert not passes("number", {"value": float(value + 1)}, form.format(value))


@given(st.lists(st.text("abcdefgh", min_size=2, max_size=6), min_size=1, max_size=6, unique=True), st.randoms())
def test_a_set_is_found_in_lines_bullets_and_commas(things: list[str], draw: Any) -> None:
    shuffled = draw.sample(things, len(things))
    for answer in (", ".join(shuffled), "\n".join(f"- {thing}" for thing in shuffled), "Here:\n" + "\n".join(shuffled)):
        assert passes("items", {"items": things}, answer)
        assert not passes("items", {"items": [*things, "zzz"]}, answer)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("abc"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("xyz"), inner, max_size=3),
)


@given(VALUES, VALUES)
def test_json_is_equal_to_itself_and_to_nothing_else(one: Any, other: Any) -> None:
    assert passes("json_equals", {"value": one}, json.dumps(one))
    if json.dumps(one, sort_keys=True) != json.dumps(other, sort_keys=True):
        assert not passes("json_equals", {"value": one}, json.dumps(other))


@given(st.lists(st.lists(st.text("abcde", min_size=1, max_size=5), min_size=1, max_size=5), min_size=1, max_size=5))
def test_words_and_sentences_are_counted_as_they_were_written(sentences: list[list[str]]) -> None:
    text = " ".join(" ".join(words) + "." for words in sentences)
    assert len(words_of(text)) == sum(map(len, sentences))
    assert len(sentences_of(text)) == len(sentences)


@pytest.mark.parametrize(
    ("kind", "arguments", "said"),
    [
        ("items", {"items": ["a", "The a"]}, "items: items: two are the same"),
        ("json_object", {"keys": {}}, "json_object: keys: name at least one"),
        ("json_object", {"keys": {"a": "text"}}, "json_object: keys.a: input should be 'string'"),
        ("language", {"code": "German"}, "language: code: string should match"),
        ("includes", {"words": []}, "includes: words: list should have at least 1 item"),
        ("num_lines", {"low": -1}, "num_lines: low: input should be greater than or equal to 0"),
    ],
)
def test_arguments_that_ask_nothing_or_nonsense_are_named(kind: str, arguments: dict[str, Any], said: str) -> None:
    found = fault(kind, arguments)
    assert found is not None
    assert found.startswith(said)
