"""Tasks asked of arms, scored, compared and told: with arms whose answers are written down here."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline import evaluate
from pipeline.config import Evaluate
from pipeline.eval_sets import task_set
from pipeline.eval_sets.task_set import Check, TaskItem
from pipeline.evaluate import answered, tasks, verdict
from pipeline.evaluate.asked import Questions
from pipeline.evaluate.tasks import chat
from pipeline.evaluate.tasks.chat import ChatFormat
from pipeline.models.tokenizer.chat_template import ChatTemplate
from pipeline.records import ARMS, TASKS
from pipeline.run.rundir import RunDir
from pipeline.statistics import Figure

ITEMS = [
    TaskItem(id="two", category="multi_turn", turns=("Shout a colour.", "Another."), checks=(
        Check(kind="upper_case", turn=0),
        Check(kind="upper_case"),
        Check(kind="same_words", earlier=0),
    )),
    TaskItem(id="one", category="writing", turns=("Name a fruit.",), reference="a ripe fig", checks=(
        Check(kind="num_words", args={"high": 3}),
        Check(kind="includes", args={"words": ["fig"]}),
    )),
    TaskItem(id="sum", category="arithmetic", turns=("2 + 2?",), checks=(Check(kind="number", args={"value": 4.0}),)),
]  # fmt: skip


class Scripted:
    """Stands in for a served arm: its answers, by item and turn; a token is the place of an answer in its script."""

    context_tokens = 1000

    def __init__(self, name: str, **script: list[str]) -> None:
        self.name, self.script, self.asked = name, script, 0

    def ask(self, requests: list[dict[str, Any]], timed: bool = False) -> Any:
        self.asked += 1
        places = [self._text(request["request_id"]) for request in requests]
        return {"answers": [{"token_ids": list(map(ord, text)), "finish_reason": "stop"} for text in places]}

    def _text(self, item: str) -> str:
        return self.script[item].pop(0)


class Letters:
    """A tokenizer whose tokens are characters, and whose template is a line for each message."""

    chat_template = "x"

    def apply_chat_template(self, messages: list[dict[str, str]], tokenize: bool, **_: object) -> Any:
        text = "\n".join(message["content"] for message in messages)
        return list(map(ord, text)) if tokenize else text

    def decode(self, ids: list[int], **_: object) -> str:
        return "".join(map(chr, ids))

    def encode(self, text: str, **_: object) -> list[int]:
        return list(map(ord, text))

    def convert_tokens_to_ids(self, token: str) -> None:
        return None

    unk_token_id = None


def rows(arm: str, **script: list[str]) -> Any:
    return chat.answer(Scripted(arm, **script), ITEMS, ChatFormat(ChatTemplate(Letters())), Evaluate())  # type: ignore[arg-type]


GOOD = {"two": ["RED", "RED"], "one": ["A fig"], "sum": ["4"]}
WEAK = {"two": ["RED", "blue"], "one": ["Here is a fruit:\nfig"], "sum": ["It makes 5."]}


def fresh(script: dict[str, list[str]]) -> dict[str, list[str]]:
    return {item: list(answers) for item, answers in script.items()}


def test_an_item_is_scored_check_by_check_with_the_answer_of_its_turn() -> None:
    scored = tasks.scores(ITEMS, rows("student", **fresh(WEAK)))
    assert [each.passed for each in scored] == [(True, False, False), (False, True), (False,)]
    assert [each.passed_loosely for each in scored] == [(True, False, False), (True, True), (False,)]
    assert scored[0].rouge_l is scored[0].chrf is None
    assert scored[1].rouge_l == pytest.approx(2 * 2 / (5 + 3))


def test_an_answer_that_was_never_given_passes_nothing() -> None:
    only_first = [row for row in rows("student", **fresh(GOOD)) if row["turn"] == 0]
    assert tasks.scores(ITEMS, only_first)[0].passed == (True, False, False)
    assert [each.passed for each in tasks.scores(ITEMS, [])] == [(False,) * 3, (False,) * 2, (False,)]


def test_figures_are_means_over_items_and_by_category() -> None:
    figures = tasks.figures(tasks.scores(ITEMS, rows("student", **fresh(WEAK))), 200, 0)
    assert figures["task_pass_frac"]["value"] == 0
    assert figures["task_loose_pass_frac"]["value"] == pytest.approx(1 / 3)
    assert figures["task_check_frac"]["value"] == pytest.approx(
        (1 / 3 + 1 / 2 + 0) / 3
    )  # items weigh alike, not checks
    assert figures["task_check_frac"]["num"] == 3
    assert figures["task_arithmetic_pass_frac"] == {"value": 0, "low": None, "high": None, "num": 1}
    assert figures["task_rouge_l"]["num"] == figures["task_chrf"]["num"] == 1
    assert tasks.figures([], 200, 0) == {}


def test_rows_are_written_with_the_checks_of_their_turn() -> None:
    answered = rows("student", **fresh(WEAK))
    checked = tasks.checked_rows(ITEMS, answered, tasks.scores(ITEMS, answered))
    table = pa.Table.from_pylist(checked, schema=TASKS)
    by_turn = {(row["item_id"], row["turn"]): row["checks"] for row in table.to_pylist()}
    assert by_turn["two", 0] == [{"kind": "upper_case", "passed": True}]
    assert by_turn["two", 1] == [{"kind": "upper_case", "passed": False}, {"kind": "same_words", "passed": False}]
    assert sum(map(len, by_turn.values())) == sum(len(item.checks) for item in ITEMS)


def test_reasoning_is_no_part_of_the_answer_nor_of_the_next_turn() -> None:
    arm = Scripted("student", two=["<think>red?</think>RED", "RED"], one=["fig"], sum=["<think>4</think>5"])
    answered = chat.answer(arm, ITEMS, ChatFormat(ChatTemplate(Letters()), ("<think>", "</think>")), Evaluate())  # type: ignore[arg-type]
    scored = {item.id: each.passed for item, each in zip(ITEMS, tasks.scores(ITEMS, answered), strict=True)}
    assert scored == {"two": (True, True, True), "one": (True, True), "sum": (False,)}
    [second] = [row for row in answered if row["turn"] == 1]
    assert "think" not in Letters().decode(second["prompt_token_ids"])


def test_a_stopped_try_is_not_asked_again(tmp_path: Path) -> None:
    stage = RunDir(tmp_path / "run").begin("evaluate", evaluate.Config(name="run"), {})
    chat_formats: dict[str, ChatFormat] = dict.fromkeys(ARMS, ChatFormat(ChatTemplate(Letters())))
    asked = Questions([], ITEMS, chat_formats, {}, evaluate.risks.Probes([], [], chat_formats, Evaluate()))
    first, second = Scripted("teacher", **fresh(GOOD)), Scripted("student", **fresh(WEAK))
    done = answered._answers("task answers", "task-answers", ITEMS, Evaluate(), stage, [first], asked)  # type: ignore[list-item]
    again = answered._answers("task answers", "task-answers", ITEMS, Evaluate(), stage, [first, second], asked)  # type: ignore[list-item]
    assert (first.asked, second.asked) == (2, 2)  # two turns each, once
    assert [row["answer"] for row in again if row["arm"] == "teacher"] == [row["answer"] for row in done]
    assert {row["arm"] for row in again} == {"teacher", "student"}


def passing(*outcomes: int) -> list[tasks.Score]:
    return [tasks.Score("c", (bool(passed), True), (True, True), None, None) for passed in outcomes]


def test_the_student_is_compared_item_by_item() -> None:
    scored = {
        "teacher": passing(*[1] * 60, *[0] * 20),
        "student": passing(*[1] * 45, *[0] * 35),
        "sft_only": passing(*[1] * 44, 0, *[0] * 30, 1, 1, 1, 1, 1),
        "untrained": passing(*[1] * 10, *[0] * 70),
    }
    compared = tasks.comparisons(scored, 2000, 0)
    assert value(compared, "retained_quality") == pytest.approx(45 / 60)
    assert value(compared, "gap_closed") == pytest.approx(35 / 50)
    assert value(compared, "task_difference_from_sft_only") == pytest.approx(-4 / 80)
    assert number(compared, "task_p_teacher") == 15  # pairs that differ
    # exact: 2 / 2^15 and 2 / 2^35 and, of 6 with 1 to 5, 14 / 64; by Holm × 2, × 3 and × 1
    assert value(compared, "task_p_teacher") == pytest.approx(2 * 2 / 2**15)
    assert value(compared, "task_p_untrained") == pytest.approx(3 * 2 / 2**35)
    assert value(compared, "task_p_sft_only") == pytest.approx(14 / 64)
    # of 80 pairs, 6 of which differ, at 5 % ÷ 3
    assert value(compared, "task_detectable_difference_sft_only") == pytest.approx(0.112, abs=0.002)


def test_what_is_not_defined_is_none_and_said_so() -> None:
    same = passing(1, 0, 1, 0)
    compared = tasks.comparisons({"teacher": same, "student": same, "untrained": same}, 500, 0)
    assert compared["gap_closed"] is None
    assert compared["task_detectable_difference_teacher"] is None
    none = passing(0, 0, 0, 0)
    assert tasks.comparisons({"teacher": none, "student": same}, 500, 0)["retained_quality"] is None
    told = " ".join(verdict._tasks(arms(same, same), compared))
    assert "so there is no gap to close" in told


def test_the_verdict_says_what_was_shown_and_what_was_not() -> None:
    scored = {
        "teacher": passing(*[1] * 60, *[0] * 20),
        "student": passing(*[1] * 45, *[0] * 35),
        "sft_only": passing(*[1] * 44, 0, *[0] * 30, 1, 1, 1, 1, 1),
        "untrained": passing(*[1] * 10, *[0] * 70),
    }
    told = verdict._tasks(arms(scored["student"], scored["teacher"]), tasks.comparisons(scored, 2000, 0))
    assert told[0] == "Of 80 checked tasks the student passes 45 (56%), the teacher 60 (75%)."
    assert told[1].startswith("By these tasks the student retains 75% (")
    assert told[2].startswith("Training closed 70% (")
    assert told[3].startswith("The student passes fewer tasks than the teacher (-19 points, ")
    assert told[4].startswith("No difference in tasks from the SFT-only student was shown (-5 points, ")
    assert "11 points would show four times in five" in told[4]
    assert told[5].startswith("The student passes more tasks than the untrained student (+44 points, ")
    assert verdict._tasks({"student": {"quality": {}}, "teacher": {"quality": {}}}, {}) == []


def arms(student: list[tasks.Score], teacher: list[tasks.Score]) -> Any:
    scored = {"student": student, "teacher": teacher}
    return {arm: {"quality": tasks.figures(each, 2000, 0)} for arm, each in scored.items()}


def value(compared: dict[str, Figure | None], name: str) -> float:
    figure = compared[name]
    assert figure is not None
    assert np.isfinite(figure["value"])
    return figure["value"]


def number(compared: dict[str, Figure | None], name: str) -> int:
    figure = compared[name]
    assert figure is not None
    return figure["num"]


def test_the_set_that_ships_is_found_from_its_default() -> None:
    path = Path(evaluate.__file__).parents[2] / (Evaluate().tasks.path or "")
    assert len(task_set.load(path, None)) > 200
