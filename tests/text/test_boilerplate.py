"""What many texts share is told from what is a text's own, and from light edits of one text."""

import random
import sqlite3
from collections.abc import Sequence
from typing import Any

import pytest
from support.planted import EDITS, SEEDS, prose

from pipeline.text import duplicates
from pipeline.text.boilerplate import NO_BOILERPLATE, Boilerplate, Sample, Text
from pipeline.text.words import words

INSTRUCTION = prose(random.Random(1), 70)
DOCUMENT = prose(random.Random(2), 1500)
MESSAGES = [prose(random.Random(100 + n), 12 + n % 30) for n in range(200)]
TERMS = [f"w{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(200)]  # each one word
Messages = list[dict[str, Any]]


def user(text: str) -> Messages:
    return [{"role": "user", "content": text}]


def boilerplate(*sources: Sequence[str]) -> Boilerplate:
    return Boilerplate([Text.of(user(text)) for text in texts] for texts in sources)


def num_alike(conversations: Sequence[Messages]) -> int:
    """How many are nearly an earlier one, whatever they ask for: as prepare takes those on the other side to be."""
    shared = Boilerplate([[Text.of(messages) for messages in conversations]])
    held, found = duplicates.NearDuplicates(0.72, sqlite3.connect(":memory:"), "text"), 0
    for messages in conversations:
        prompt = shared.compared(Text.of(messages).prompt, messages)
        sketch = duplicates.sketch(prompt, prompt, "", shared)
        found += bool(held.twins(sketch))
        held.add(sketch, "")
    return found


TURNS = [*user(prose(random.Random(3), 40)), {"role": "assistant", "content": prose(random.Random(4), 40)}]


@pytest.mark.parametrize(
    "conversations",
    [
        [user(f"{INSTRUCTION} {text}") for text in MESSAGES],
        [user(f"{INSTRUCTION}\n\n{text}") for text in MESSAGES],
        [user(f"{text}\n\n{INSTRUCTION}") for text in MESSAGES],
        [user(f"{INSTRUCTION} {text} {DOCUMENT[:400]}") for text in MESSAGES],
        [user(f"{INSTRUCTION} {text}") for text in MESSAGES[:12]],
        [user(f"{INSTRUCTION} {text}") for text in MESSAGES[:4]],
        [user(f"{INSTRUCTION} {term}") for term in TERMS],
        [user(f"{DOCUMENT}\n\n{text}") for text in MESSAGES],
        [user(f"{prose(random.Random(n % 10), 70)} {text}") for n, text in enumerate(MESSAGES)],
        [*map(user, SEEDS), *(user(f"{INSTRUCTION} {text}") for text in MESSAGES)],
        [[*TURNS, *user(term)] for term in TERMS],
        [[{"role": "system", "content": f"{INSTRUCTION} {text}"}, *user("Extract all fields.")] for text in MESSAGES],
        [[{"role": "system", "content": f"You are {text}"}, *user("Hi")] for text in MESSAGES],
        [user(f"请把下面的句子翻译成英文，只回答译文，不要解释，也不要加任何标点符号：{text}") for text in MESSAGES],
    ],
    ids=[
        *("one paragraph", "blank line", "instruction last", "both ends", "twelve rows", "four rows", "one word"),
        *("one document", "ten templates", "among others", "examples as turns", "document as system", "persona"),
        "no spaces",
    ],
)
def test_prompts_that_share_an_instruction_are_not_alike(conversations: list[Messages]) -> None:
    assert num_alike(conversations) == 0


def test_thirty_edits_of_one_prompt_are_still_alike() -> None:
    draw = random.Random(5)
    base, others = prose(draw, 120), [prose(draw, 80) for _ in range(150)]
    edits = [EDITS[n % len(EDITS)](draw, base) for n in range(30)]
    assert num_alike([user(text) for text in [base, *others, *edits]]) == 30
    assert len(boilerplate([base, *others, *edits])) == 0


def test_light_edits_of_prompts_with_an_instruction_are_still_found() -> None:
    draw = random.Random(6)
    asked = [f"{INSTRUCTION} {prose(draw, 60)}" for _ in range(100)]
    edits = [EDITS[n % len(EDITS)](draw, text) for n, text in enumerate(asked[:40])]
    assert num_alike([user(text) for text in [*asked, *edits]]) == 40


def test_two_asks_about_each_of_many_passages_share_no_boilerplate() -> None:
    asks = [f"{ask}: {prose(random.Random(n), 90)}" for n in range(40) for ask in ("In German", "In French")]
    assert len(boilerplate(asks)) == 0


def test_a_text_that_is_boilerplate_throughout_is_compared_as_a_whole() -> None:
    shared = boilerplate([f"{INSTRUCTION} {text}" for text in MESSAGES])
    sequence = words(INSTRUCTION)
    assert shared.own_ngrams(sequence) == NO_BOILERPLATE.own_ngrams(sequence)
    assert len(shared.own_ngrams([*sequence, "so"])) == 1
    assert shared.own_ngrams(["so"]) == ["so"]


def test_a_small_sources_instruction_is_found_beside_a_large_source() -> None:
    shared = boilerplate(SEEDS, [f"{INSTRUCTION} {text}" for text in MESSAGES[:15]])
    assert len(shared.own_ngrams(words(f"{INSTRUCTION} {MESSAGES[99]}"))) < 60


@pytest.mark.parametrize("size", [5, 200, 300])
def test_a_sample_does_not_depend_on_order_or_on_copies(size: int) -> None:
    keys = [str(n) for n in range(200)]
    samples = [Sample[str](size) for _ in range(2)]
    for sample, order in zip(samples, (keys, [*reversed(keys), *keys]), strict=True):
        for key in order:
            sample.add("a", key, key)
    [first], [second] = (list(sample.by_source()) for sample in samples)
    assert first == second
    assert len(set(first)) == len(first) == min(size, 200)
