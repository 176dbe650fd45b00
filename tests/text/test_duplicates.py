"""Near duplicates: what is found, with which twin, and what is left in peace."""

import os
import random
import sqlite3
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rensa import RMinHash, RMinHashLSH  # pyright: ignore[reportAttributeAccessIssue]: it has no stubs
from support.planted import EDITS, SEEDS, Edit, prose

from pipeline.text import duplicates as module
from pipeline.text.duplicates import NearDuplicates, Sketch, Twin
from pipeline.text.words import ask, words

THRESHOLD = 0.72
PASSAGE = prose(random.Random(3), 90)
CODE = "```python\n" + "\n".join(f"def step_{n}(state):\n    return state + {n}" for n in range(8)) + "\n```"


def sketch(text: str, core: str, more: str = "") -> Sketch:
    return module.sketch(words(text), words(core), more)


def empty(threshold: float = THRESHOLD) -> NearDuplicates:
    return NearDuplicates(threshold, sqlite3.connect(":memory:"), "text")


def index(*texts: Sketch) -> NearDuplicates:
    made = empty()
    for number, text in enumerate(texts):
        made.add(text, f"text {number}")
    return made


def asked(text: str) -> Sketch:
    return sketch(text, ask([{"role": "user", "content": text}]))


def answered(prompt: str, answer: str) -> Sketch:
    return sketch(f"{prompt}\n{answer}", answer)


def duplicates(one: Sketch, other: Sketch) -> list[int]:
    return [twin.row for twin in index(one).twins(other) if twin.is_duplicate]


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_each_light_edit_of_200_texts_is_found_with_its_twin(edit: Edit) -> None:
    draw = random.Random(1)
    texts = [prose(draw, draw.randint(90, 250)) for _ in range(200)]
    held = index(*(sketch(text, text) for text in texts))
    for row, text in enumerate(texts):
        edited = edit(draw, text)
        found = held.twins(sketch(edited, edited))
        assert [(twin.row, twin.is_duplicate) for twin in found] == [(row, True)], edited


def test_shipped_prompts_are_no_duplicates_of_one_another() -> None:
    held = empty()
    for seed in SEEDS:
        assert held.twins(asked(seed)) == [], seed
        held.add(asked(seed), seed)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (f"Translate into German:\n{PASSAGE}", f"Translate into French:\n{PASSAGE}"),
        (f"{PASSAGE}\n\nWho is it about?", f"{PASSAGE}\n\nWhere does it happen, and when?"),
        (f"Explain this code.\n{CODE}", f"Find the bug in this code.\n{CODE}"),
        (f"{PASSAGE} They paid 35 each; how many came?", f"{PASSAGE} They paid 45 each; how many came?"),
        ("What is the capital of France?", "What is the capital of Spain?"),
        ("What is C?", "What is C++?"),
        ("What is 17 + 5?", "What is 17 * 5?"),
        ("Now in French.", "Now in German."),
        (
            "Write a four-line poem about the last bus of the night.",
            "Write a four-line poem about the first bus of the day.",
        ),
        ("天空为什么是蓝色的？", "海水为什么是蓝色的？"),
        ("???", "!!!"),
    ],
)
def test_prompts_that_are_alike_and_ask_for_something_else_stay(one: str, other: str) -> None:
    assert duplicates(asked(one), asked(other)) == []
    assert duplicates(asked(one), asked(one)) == [0]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("Is the sky blue?", "Yes."), ("Is grass green?", "Yes.")),
        (("Is the sky blue?", "Yes, it is blue."), ("Is the sea blue?", "Yes, it is blue.")),
        ((PASSAGE, "It is about a bus."), (PASSAGE, "I would call it a poem of the sea.")),
        ((f"{PASSAGE}\nWho?", "The driver of the bus."), (f"{PASSAGE}\nWhere?", "At the end of the line.")),
        (("What is 17 + 5?", "17 + 5 is 22."), ("What is 17 + 6?", "17 + 6 is 23.")),
    ],
)
def test_answers_that_are_alike_in_one_half_stay(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert duplicates(answered(*one), answered(*other)) == []
    assert duplicates(answered(*one), answered(*one)) == [0]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Hi there!", "hi  THERE"),
        ("Why?", "why"),
        ("你好！", "你好"),
        ("Write a short poem about the sea, please.", "write a short poem about the sea please"),
        (PASSAGE, PASSAGE + " Thank you."),
        (
            "天空为什么是蓝色的？请用简单的话解释一下，谢谢你。" * 2,
            "天空为什么是蓝色的，请用简单的话解释一下！谢谢你。" * 2,
        ),
    ],
)
def test_texts_that_differ_in_nothing_that_counts_are_duplicates(one: str, other: str) -> None:
    assert duplicates(asked(one), asked(other)) == [0]


def test_of_two_asks_about_one_passage_the_similarity_is_told_all_the_same() -> None:
    """So that prepare can keep them on one side of the split."""
    held = index(asked(f"Translate into German:\n{PASSAGE}"))
    [twin] = held.twins(asked(f"Translate into French:\n{PASSAGE}"))
    assert not twin.is_duplicate
    assert twin.jaccard > 0.85


def test_the_estimate_is_near_the_similarity() -> None:
    """A run of words replaced in a text of 304, 300 5-grams: 24 words and 28 5-grams gone make 272 of 328."""
    draw = random.Random(5)
    pieces = [f"w{draw.random()}".replace(".", "") for _ in range(304)]
    other = [*pieces[:100], *(f"x{n}" for n in range(24)), *pieces[124:]]
    one, two = " ".join(pieces), " ".join(other)
    [twin] = index(sketch(one, one)).twins(sketch(two, two))
    assert twin.jaccard == pytest.approx(272 / 328, abs=0.08)


def test_a_duplicate_has_the_same_of_what_must_be_the_same() -> None:
    held = index(sketch(PASSAGE, PASSAGE, "one"))
    assert [twin.is_duplicate for twin in held.twins(sketch(PASSAGE, PASSAGE, "one"))] == [True]
    assert [twin.is_duplicate for twin in held.twins(sketch(PASSAGE, PASSAGE, "other"))] == [False]


def test_below_the_threshold_no_twin_is_told() -> None:
    draw = random.Random(7)
    one = prose(draw, 200)
    other = " ".join(one.split()[:140]) + " " + prose(draw, 60)  # a Jaccard of about 0.54
    assert empty(0.72).twins(sketch(other, other)) == index(sketch(one, one)).twins(sketch(other, other)) == []


def test_twins_are_told_in_the_order_they_were_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ_ROWS", 2)
    held = index(*[sketch(PASSAGE, PASSAGE)] * 5)
    expected = [Twin(row, f"text {row}", 1, True) for row in range(5)]
    assert held.twins(sketch(PASSAGE, PASSAGE)) == expected
    assert len(held) == 5


def likenesses(draw: random.Random, num: int) -> list[list[str]]:
    """The words of texts; each is an earlier one of which none to two fifths of the words are replaced."""
    made = [[f"w{draw.randrange(10**6)}" for _ in range(120)]]
    while len(made) < num:
        other = list(draw.choice(made))
        start, length = draw.randrange(120), draw.randrange(48)
        other[start : start + length] = [f"x{draw.randrange(10**6)}" for _ in other[start : start + length]]
        made.append(other)
    return made


def test_the_texts_proposed_are_those_of_an_lsh_index_in_memory() -> None:
    """That of rensa; a threshold of 0 lets through whatever shares a band."""
    lsh, held, nums = RMinHashLSH(THRESHOLD, module.NUM_SLOTS, module.NUM_BANDS), empty(0), []
    for row, pieces in enumerate(likenesses(random.Random(11), 400)):
        signature = RMinHash(num_perm=module.NUM_SLOTS, seed=module.SEED)
        signature.update([" ".join(pieces[n : n + module.NGRAM_WORDS]) for n in range(116)])
        made = module.sketch(pieces, pieces)
        proposed = [twin.row for twin in held.twins(made)]
        assert proposed == sorted(lsh.query(signature))
        nums.append(len(proposed))
        lsh.insert(row, signature)
        held.add(made, "")
    assert 0 < sum(nums) < 400 * 399 / 2 * 0.9  # some were, others not


def test_a_band_counts_in_its_own_place_alone() -> None:
    slots_2S = np.arange(224, dtype=np.uint32).reshape(2, 112)
    other_2S = np.roll(slots_2S, module.BAND_SLOTS, axis=1)
    one, other = (Sketch(module._bands(each[0]), each.astype(np.uint16), 0) for each in (slots_2S, other_2S))
    held = empty(0)
    held.add(one, "one")
    assert held.twins(other) == []
    assert [twin.name for twin in held.twins(one)] == ["one"]


SLOTS = st.lists(st.sampled_from([1, 2, 1 + (1 << 16)]), min_size=112, max_size=112)  # 1 and the last: low halves equal


@settings(max_examples=60, deadline=None, database=None)
@given(SLOTS, st.integers(0, 2**32), st.sampled_from([0.0, 0.5, 0.72, 0.9]))
def test_twins_are_those_of_a_search_through_all_pairs(base: list[int], seed: int, threshold: float) -> None:
    draw, held, before = random.Random(seed), empty(threshold), []
    for row in range(12):
        pairs = [list(base), list(base)]
        for slots in pairs:
            for _ in range(draw.randrange(40)):
                slots[draw.randrange(112)] = draw.choice([1, 2, 1 + (1 << 16), draw.randrange(1 << 32)])
        exact = draw.randrange(2)
        whole_and_core = np.array(pairs, np.uint32)
        text = Sketch(module._bands(whole_and_core[0]), whole_and_core.astype(np.uint16), exact)
        expected = []
        for number, (others, other_exact) in enumerate(before):
            shares_band = any(pairs[0][n : n + 7] == others[0][n : n + 7] for n in range(0, 112, 7))
            alike = [
                sum(a % 65536 == b % 65536 for a, b in zip(ours, theirs, strict=True)) / 112
                for ours, theirs in zip(pairs, others, strict=True)
            ]
            if shares_band and alike[0] >= threshold:
                is_duplicate = alike[1] >= threshold and exact == other_exact
                expected.append(Twin(number, str(number), alike[0], is_duplicate))
        assert held.twins(text) == expected
        held.add(text, str(row))
        before.append((pairs, exact))


def test_a_sketch_is_the_same_in_every_process() -> None:
    program = (
        "from pipeline.text.duplicates import sketch; s = sketch('why is the sky blue today'.split(), ['why']);"
        "print(s.bands, s.slots_2S.tolist())"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(told) == 1


@settings(max_examples=100, deadline=None, database=None)
@given(st.text(max_size=200))
def test_every_text_is_its_own_duplicate(text: str) -> None:
    assert duplicates(sketch(text, text), sketch(text, text)) == [0]
