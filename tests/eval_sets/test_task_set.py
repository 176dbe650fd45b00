"""The shipped tasks: well formed, answerable, not passed by an answer that says nothing, and none asked in training."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.shipped_prompts import PROMPTS, load, near_pairs

from pipeline.config import EvaluationSet, Prepare
from pipeline.errors import UserError
from pipeline.eval_sets import task_set
from pipeline.eval_sets.checkers import KINDS
from pipeline.eval_sets.task_set import TaskItem
from pipeline.evaluate import tasks
from pipeline.text import contamination
from pipeline.text.words import prompt_text, words

ANSWERS = Path(__file__).parents[1] / "evaluate/task_answers.jsonl"
CATEGORIES = {"instructions", "arithmetic", "extraction", "json", "multi_turn", "writing"}
BLAND = [
    "I don't know.",
    "I DON'T KNOW.",
    "i don't know",
    "Yes.",
    "",
    "42",
    "[]",
    "Sure! Here is what you asked for.",
    "I'm sorry, but I can't help with that.",
    "As an AI language model, I am happy to help you with whatever you need. Please tell me more about it!",
]


@pytest.fixture(scope="module")
def items() -> list[TaskItem]:
    return task_set.load(PROMPTS / "tasks.jsonl", None)


@pytest.fixture(scope="module")
def answers() -> dict[str, list[str]]:
    """A good answer for each turn of each item, by id."""
    rows = [json.loads(line) for line in ANSWERS.read_text(encoding="utf-8").splitlines()]
    return {row["id"]: row["answers"] for row in rows}


def passed(item: TaskItem, answers: list[str]) -> bool:
    return all(tasks.score(item, answers).passed)


def test_there_are_at_least_two_hundred_of_six_categories(items: list[TaskItem]) -> None:
    counts = Counter(item.category for item in items)
    assert counts.total() >= 200
    assert counts.keys() == CATEGORIES
    assert min(counts.values()) >= 20
    assert all(item.id.startswith(f"task-{item.category}-") for item in items)
    assert {item.id for item in items}.isdisjoint(item["id"] for item in load("chat_eval.jsonl"))


def test_every_kind_of_check_is_used(items: list[TaskItem]) -> None:
    assert len(KINDS) >= 20
    assert {check.kind for item in items for check in item.checks} == KINDS.keys()


def test_each_has_an_answer_that_passes_all_its_checks(items: list[TaskItem], answers: dict[str, list[str]]) -> None:
    assert [item.id for item in items] == list(answers)
    failed = {item.id: tasks.score(item, answers[item.id]) for item in items if not passed(item, answers[item.id])}
    assert failed == {}


def test_references_are_good_answers_too_and_not_the_same(items: list[TaskItem], answers: dict[str, list[str]]) -> None:
    with_reference = [item for item in items if item.reference]
    assert {item.category for item in with_reference} == {"writing"}
    assert len(with_reference) >= 20
    assert [item.id for item in with_reference if not passed(item, [item.reference or ""])] == []
    assert sum(item.reference != answers[item.id][-1] for item in with_reference) > len(with_reference) * 0.7


@pytest.mark.parametrize("bland", BLAND)
def test_no_item_is_passed_by_an_answer_that_says_nothing(items: list[TaskItem], bland: str) -> None:
    assert [item.id for item in items if passed(item, [bland] * len(item.turns))] == []


def test_no_item_is_passed_by_its_own_question(items: list[TaskItem]) -> None:
    assert [item.id for item in items if passed(item, list(item.turns))] == []


def test_no_item_is_passed_by_the_answer_to_another(items: list[TaskItem], answers: dict[str, list[str]]) -> None:
    """But for a few whose demand another item's answer happens to meet."""
    crossed = [
        (one.id, other.id)
        for one in items
        for other in items
        if one is not other
        and len(one.turns) == len(other.turns)
        and one.category != "arithmetic"  # equal results are no accident worth avoiding
        and passed(one, answers[other.id])
    ]
    assert len(crossed) <= 0.0025 * len(items) ** 2


def test_multi_turn_items_check_more_than_one_answer(items: list[TaskItem]) -> None:
    turns = {item.id: {item.turn_of(check) for check in item.checks} for item in items if len(item.turns) > 1}
    assert len(turns) >= 20
    assert sum(len(each) > 1 for each in turns.values()) >= 20


def test_several_languages_are_asked_for(items: list[TaskItem]) -> None:
    asked = {check.args.get("code") or check.args.get("script") for item in items for check in item.checks}
    assert len(asked - {None}) >= 8


def test_none_is_near_to_a_prompt_that_ships_or_to_another(items: list[TaskItem]) -> None:
    turns = [turn for item in items for turn in item.turns]
    seeds = [prompt_text(row["messages"]) for row in load("seeds.jsonl")]
    chat = [turn for item in load("chat_eval.jsonl") for turn in item["turns"]]
    assert near_pairs([*seeds, *chat], turns) == []
    assert near_pairs(turns, turns) == []


def test_no_seed_is_dropped_for_repeating_a_task() -> None:
    held_against = Prepare().decontaminate
    assert "prompts/tasks.jsonl" in [each.path for each in held_against]
    found = contamination.load([EvaluationSet(path=str(PROMPTS / "tasks.jsonl"))])
    assert [row for row in load("seeds.jsonl") if found.hits(words(prompt_text(row["messages"])))] == []


def test_a_prompt_that_repeats_a_task_is_found(items: list[TaskItem]) -> None:
    found = contamination.load([EvaluationSet(path=str(PROMPTS / "tasks.jsonl"))])
    turns = [turn for item in items for turn in item.turns]
    assert [turn for turn in turns if not found.hits(words(turn))] == []


GOOD = {"id": "a", "category": "c", "turns": ["q", "r"], "checks": [{"kind": "lower_case"}]}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"checks": []}, "checks"),
        ({"checks": [{"kind": "shouts"}]}, "no kind of check is called 'shouts'"),
        ({"checks": [{"kind": "num_words"}]}, "num_words: give low, high or both"),
        ({"checks": [{"kind": "num_words", "args": {"low": 5, "high": 2}}]}, "num_words: low is above high"),
        ({"checks": [{"kind": "num_words", "args": {"low": "5"}}]}, "num_words: low: input should be a valid integer"),
        ({"checks": [{"kind": "num_words", "args": {"least": 5}}]}, "num_words: least: unexpected keyword argument"),
        ({"checks": [{"kind": "matches", "args": {"pattern": "("}}]}, "matches: pattern: "),
        ({"checks": [{"kind": "choice", "args": {"choice": "x", "options": ["y"]}}]}, "choice: 'x' is not among"),
        ({"checks": [{"kind": "lower_case", "turn": 2}]}, "lower_case: there is no turn 2"),
        ({"checks": [{"kind": "same_words"}]}, "same_words: earlier: missing required argument"),
        ({"checks": [{"kind": "same_words", "earlier": 1}]}, "same_words: turn 1 is not earlier than turn 1"),
        ({"category": "Two words"}, "category"),
        ({"extra": 1}, "extra"),
    ],
)
def test_a_bad_item_is_one_line_that_names_file_line_and_fault(tmp_path: Path, change: Any, said: str) -> None:
    path = write(tmp_path / "tasks.jsonl", GOOD, {**GOOD, "id": "b", **change})
    with pytest.raises(UserError) as caught:
        task_set.load(path, None)
    line = str(caught.value)
    assert line.startswith(f"{path}:2: not a task item: ")
    assert said in line
    assert "\n" not in line


def test_a_limit_takes_from_every_category(items: list[TaskItem]) -> None:
    chosen = task_set.load(PROMPTS / "tasks.jsonl", 40)
    assert len(chosen) == 40
    assert {item.category for item in chosen} == CATEGORIES


def test_a_missing_set_says_how_to_do_without(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such task set \(evaluate.tasks.path; null for none\)"):
        task_set.load(tmp_path / "none.jsonl", None)


def test_a_set_without_an_item_or_with_one_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_text("\n")
    with pytest.raises(UserError, match=r"tasks\.jsonl: no .*item in it"):
        task_set.load(path, None)
    item = json.loads((PROMPTS / "tasks.jsonl").read_text(encoding="utf-8").splitlines()[0])
    path.write_text(f"{json.dumps(item)}\n" * 2)
    with pytest.raises(UserError, match=f"two items have the same id: {item['id']}"):
        task_set.load(path, None)
