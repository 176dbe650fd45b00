"""The shipped prompts: enough of them, well formed, and none asked in training that evaluation asks again."""

import re
from collections import Counter
from typing import Any

import pytest
from support.shipped_prompts import PROMPTS, load, near_pairs, words

from pipeline.config import Source
from pipeline.corpora import BadRowError, read
from pipeline.prepare.sources import prompt_of

NUM_CATEGORIES = 8


@pytest.fixture(scope="module")
def seeds() -> list[str]:
    """The user's text of each seed."""
    source = Source(path=str(PROMPTS / "seeds.jsonl"))
    rows = [row for _, row in read(source) if not isinstance(row, BadRowError)]
    return ["\n".join(m["content"] for m in prompt_of(row, source, None) if m["role"] == "user") for row in rows]


@pytest.fixture(scope="module")
def items() -> list[dict[str, Any]]:
    return load("chat_eval.jsonl")


@pytest.mark.parametrize(
    ("one", "other", "near"),
    [
        ("Write a short poem about the sea.", "write a short poem, about the SEA", True),
        ("Write a short poem about the sea.", "Write a short poem about the sea at night.", True),
        ("Hi there!", "hi there", True),
        ("Write a short poem about the sea.", "Explain how tides follow the moon.", False),
    ],
)
def test_the_measure_finds_near_duplicates(one: str, other: str, near: bool) -> None:
    assert bool(near_pairs([one], [other])) is near


def test_there_are_at_least_four_hundred_seeds(seeds: list[str]) -> None:
    assert len(seeds) >= 400
    assert len(seeds) == len(load("seeds.jsonl"))


def test_every_seed_has_a_category_and_messages_alone() -> None:
    assert {tuple(row) for row in load("seeds.jsonl")} == {("messages", "category")}


def test_no_seed_is_there_twice(seeds: list[str]) -> None:
    assert [text for text, times in Counter(" ".join(words(text)) for text in seeds).items() if times > 1] == []


def test_there_are_at_least_eighty_items_over_eight_categories(items: list[dict[str, Any]]) -> None:
    categories = Counter(item["category"] for item in items)
    assert len(items) >= 80
    assert len(categories) == NUM_CATEGORIES
    assert min(categories.values()) >= 8


def test_items_have_an_id_of_their_own_a_category_and_one_or_two_turns(items: list[dict[str, Any]]) -> None:
    assert len({item["id"] for item in items}) == len(items)
    for item in items:
        assert {"id", "category", "turns"} <= set(item) <= {"id", "category", "turns", "system"}
        assert item.get("system", "x").strip()
        assert item["id"].startswith(item["category"])
        assert len(item["turns"]) in (1, 2)
        assert all(isinstance(turn, str) and turn.strip() == turn != "" for turn in item["turns"])


def test_there_are_two_turn_items_in_several_categories(items: list[dict[str, Any]]) -> None:
    two = Counter(item["category"] for item in items if len(item["turns"]) == 2)
    assert sum(two.values()) >= 16
    assert len(two) >= NUM_CATEGORIES / 2


def test_no_first_question_is_there_twice(items: list[dict[str, Any]]) -> None:
    firsts = [item["turns"][0] for item in items]
    assert near_pairs(firsts, firsts) == []


def test_no_seed_is_near_to_an_item(seeds: list[str], items: list[dict[str, Any]]) -> None:
    turns = [turn for item in items for turn in item["turns"]]
    assert near_pairs(seeds, turns) == []


def test_seeds_cover_every_category_that_is_evaluated(items: list[dict[str, Any]]) -> None:
    assert {item["category"] for item in items} <= {row["category"] for row in load("seeds.jsonl")}


def test_no_prompt_has_a_replacement_or_control_character(seeds: list[str], items: list[dict[str, Any]]) -> None:
    texts = [*seeds, *(turn for item in items for turn in item["turns"])]
    assert [text for text in texts if re.search(r"[\ufffd\x00-\x08\x0b-\x1f\x7f]", text)] == []
