"""best_of by a judge: what stays, what is asked and what is not, and what a judge that fails leaves behind."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.captured import Filtered, Row, reasons, response
from support.fake_judge import KEY, FakeJudge, first_place

import pipeline
from pipeline.config import dump, validate
from pipeline.errors import UserError
from pipeline.filter.selection import best_of_n
from pipeline.report.tables import decided

ROOT = Path(pipeline.__file__).parent.parent
CUT = {"finish_reason": "length", "token_ids": [2, 3]}
OFF = {"near_duplicates": None, "drop_exact_duplicates": False, "worst_nll_frac": None}


def answered(name: str, text: str, nats: float = 1.0, **changes: Any) -> Row:
    return response(name, text, token_logprobs=[-nats] * 3, **changes)


def gold(question: str, answer: str) -> float:
    """Grade of a judge that likes gold: one point for each, above 1."""
    return 1 + answer.count("gold")


def by_judge(fake: FakeJudge, best_of: int = 1, **judge: Any) -> Row:
    return {"best_of": best_of, "best_by": "judge", "judge": {"url": fake.url, "model": "fake", **judge}}


def again(filtered: Filtered, **settings: Any) -> dict[str, Row]:
    """Filter anew, as `--fresh` does."""
    filtered.run_dir.discard_from("filter")
    return filtered.do(**OFF, **settings)


def score(decision: Row) -> float | None:
    return dict(decision["scores"]).get("best_of_n")


def verdicts(filtered: Filtered) -> list[Row]:
    path = filtered.run_dir.path / "grades.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def graded(filtered: Filtered) -> Row:
    return filtered.run_dir.manifest("filter")["graded"]


ROWS = (
    [answered("a-0", "plain lead", 0.1), answered("a-1", "some gold", 0.9)],
    [
        answered("a-2", "gold and gold", 0.5),
        answered("a-3", "all the gold gold gold", **CUT),
        answered("b-0", "one alone", 2.0),
        answered("c-0", "gold gold gold", **CUT),
        answered("c-1", "what is left of it"),
        answered("d-0", "held out", split="held_out"),
        answered("d-1", "held out gold", split="held_out"),
    ],
)


def test_the_answers_of_the_highest_grade_stay_and_no_other_is_asked_about(filtered: Filtered) -> None:
    with FakeJudge(first_place, grade=gold) as fake:
        decisions = filtered.captured(*ROWS).do(selection=by_judge(fake), **OFF)
        assert reasons(decisions) == {
            "a-0": ["best_of_n"],
            "a-1": ["best_of_n"],
            "a-2": [],
            "a-3": ["truncated"],
            "b-0": [],
            "c-0": ["truncated"],
            "c-1": [],
            "d-0": [],
            "d-1": [],
        }
        shown = sorted(re.findall(r"=== Answer ===\n(.*)\n=== End", text)[0] for text in fake.asked)
        assert shown == ["gold and gold", "plain lead", "some gold"]
        assert all("What of a?" in text for text in fake.asked)
    assert {name: score(row) for name, row in decisions.items() if score(row)} == {"a-0": 1, "a-1": 2, "a-2": 3}
    assert graded(filtered) == {
        "model": "fake",
        "answers": 3,
        "invalid": 0,
        "prompt_tokens": 300,
        "completion_tokens": 30,
        "cost": 0,
    }
    assert {verdict["about"]["item_id"] for verdict in verdicts(filtered)} == {"a-0", "a-1", "a-2"}
    [step] = [s for s in filtered.run_dir.manifest("filter")["waterfall"] if s["reason"] == "best_of_n"]
    assert (step["dropped"], step["alone"]) == (2, 4)
    told = decided.explain(filtered.run_dir, "a-1")
    assert re.search(r"best of n +2 grade, 1-10 +drop +selection\.best_of = 1", told)


def test_one_grade_goes_by_likelihood_and_then_by_place(filtered: Filtered) -> None:
    rows = [answered(f"a-{n}", f"gold number {n}", nats) for n, nats in enumerate((0.9, 0.2, 0.5, 0.2))]
    with FakeJudge(first_place, grade=gold) as fake:
        decisions = filtered.captured(rows).do(selection=by_judge(fake, 1), **OFF)
        assert [name for name, row in decisions.items() if row["kept"]] == ["a-1"]
        decisions = again(filtered, selection=by_judge(fake, 2))
        assert [name for name, row in decisions.items() if row["kept"]] == ["a-1", "a-3"]
        assert fake.num_asked == 4


def test_what_is_decided_anew_asks_only_what_was_not_asked(filtered: Filtered) -> None:
    with FakeJudge(first_place, grade=gold) as fake:
        filtered.captured(*ROWS).do(selection=by_judge(fake), **OFF)
        decisions = again(filtered, selection=by_judge(fake, 2), max_refusal_frac=0.5)
        assert reasons(decisions)["a-1"] == []
        assert fake.num_asked == 3
        decisions = again(filtered, selection=by_judge(fake), drop_truncated=False)
        assert reasons(decisions)["c-1"] == ["best_of_n"]
        assert fake.num_asked == 6
        again(filtered, selection=by_judge(fake, max_tokens=9))  # another question is another verdict
        assert fake.num_asked == 9
    assert again(filtered, selection={"best_of": 1})["a-0"]["kept"]


def test_by_likelihood_nothing_is_asked_and_a_run_made_before_judges_is_complete(filtered: Filtered) -> None:
    with FakeJudge(first_place, grade=gold) as fake:
        unused = {"best_of": 1, "judge": {"url": fake.url, "model": "fake"}}
        decisions = filtered.captured(*ROWS).do(selection=unused, **OFF)
        assert fake.num_asked == 0
    assert decisions["a-0"]["kept"]
    assert verdicts(filtered) == []
    manifest = filtered.run_dir.manifest("filter")
    assert manifest["graded"] is None
    assert manifest["fingerprint"].pop("filter.selection.judge") is None
    assert set(manifest["fingerprint"]["filter.selection"]) == {
        "best_of",
        "max_category_frac",
        "max_length_frac",
        "max_difficulty_frac",
        "seed",
    }
    path = filtered.run_dir.path / "filter" / "manifest.json"
    path.write_text(json.dumps(manifest))
    filtered.do(selection={"best_of": 1}, **OFF)
    assert json.loads(path.read_text())["finished"] == manifest["finished"]


def test_another_judge_is_another_filter_and_another_address_is_not(filtered: Filtered, tmp_path: Path) -> None:
    (tmp_path / "single.jinja").write_text("=== Question ===\n{{ question }}\n=== Answer ===\n{{ given.answer }}")
    with FakeJudge(first_place, grade=gold) as fake:
        filtered.captured(*ROWS).do(selection=by_judge(fake), **OFF)
        moved = by_judge(fake, key_variable="MY_KEY", concurrency=1, max_cost=3)
        moved["judge"]["url"] = "http://127.0.0.1:9"
        filtered.do(selection=moved, **OFF)
        assert fake.num_asked == 3
        others: list[Row] = [{"model": "other"}, {"retries": 7}, {"templates": str(tmp_path)}]
        for other in others:
            with pytest.raises(UserError, match=r"filter\.selection\.judge\."):
                filtered.do(selection=by_judge(fake, **other), **OFF)
        with pytest.raises(UserError, match=r"filter\.selection\.judge was \{.*, is null"):
            filtered.do(selection={"best_of": 1}, **OFF)
    assert "127.0.0.1" not in json.dumps(filtered.run_dir.manifest("filter"))
    assert set(filtered.run_dir.manifest("filter")["fingerprint"]["filter.selection.judge"]["templates.hash"]) == {
        "single"
    }


def test_an_answer_without_a_grade_comes_last_and_is_told(
    filtered: Filtered, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [answered("a-0", "nothing here", 0.1), answered("a-1", "gold", 0.9), answered("a-2", "garbled", 0.2)]
    with FakeJudge(first_place, grade=lambda q, answer: 0.0 if answer == "garbled" else gold(q, answer)) as fake:
        decisions = filtered.captured(rows).do(selection=by_judge(fake, 2, retries=1), **OFF)
        assert reasons(decisions) == {"a-0": [], "a-1": [], "a-2": ["best_of_n"]}
        assert score(decisions["a-2"]) is None
        assert graded(filtered)["invalid"] == 1
        said = " ".join(capfd.readouterr().err.split())
        assert "filter: of 3 answers that the judge was to grade 1 have no grade that could be read" in said
        assert fake.num_asked == 4
        again(filtered, selection=by_judge(fake, 1, retries=1))
        assert fake.num_asked == 4  # an invalid verdict is one
        decisions = again(filtered, selection=by_judge(fake, 1, retries=2))
        assert fake.num_asked == 7
    assert reasons(decisions) == {"a-0": ["best_of_n"], "a-1": [], "a-2": ["best_of_n"]}


def test_where_no_grade_can_be_read_nothing_is_decided(filtered: Filtered) -> None:
    with FakeJudge(first_place, grade=lambda question, answer: 0.0) as fake:
        for _ in range(2):  # what is on disk by then makes no difference
            with pytest.raises(UserError, match=r"none of 3 .*could be read.*max_tokens.*best_by=likelihood") as caught:
                filtered.captured(*ROWS).do(selection=by_judge(fake, retries=0), **OFF)
            assert "\n" not in str(caught.value)
            filtered.run_dir.discard_from("prepare")
        assert fake.num_asked == 3
    assert not filtered.run_dir.is_done("filter")


@pytest.mark.parametrize("fault", ["400", "413", "422"])
@pytest.mark.parametrize("changed", [{"model": "reasoner"}, {"max_tokens": 99}, {"request": {"seed": 1}}])
def test_a_judge_that_refuses_all_is_told_whatever_another_said_before(
    filtered: Filtered, changed: Row, fault: str
) -> None:
    with FakeJudge(first_place, grade=gold) as fake:
        filtered.captured(*ROWS).do(selection=by_judge(fake), **OFF)
        fake.always = fault
        with pytest.raises(UserError, match=rf"refuses .* with HTTP {fault}: .*filter\.selection\.judge\.url, model"):
            again(filtered, selection=by_judge(fake, **changed))
        assert fake.num_asked == 4


def test_what_a_judge_refused_may_be_refused_again(filtered: Filtered) -> None:
    with FakeJudge(first_place, grade=gold, refuses="plain lead") as fake:
        judge = by_judge(fake, request={"logit_bias": {50256: -100}})
        for num in (3, 4):
            filtered.run_dir.discard_from("prepare")
            filtered.captured(*ROWS).do(selection=judge, **OFF)
            assert graded(filtered)["invalid"] == 1
            assert fake.num_asked == num


def test_tokens_and_cost_are_those_of_the_judge_that_is_asked(filtered: Filtered) -> None:
    with FakeJudge(first_place, grade=gold, usage=(2_000_000, 1)) as fake:
        filtered.captured(*ROWS).do(selection=by_judge(fake), **OFF)
        assert graded(filtered)["prompt_tokens"] == 6_000_000
        fake.usage = (100, 10)
        again(filtered, selection=by_judge(fake, model="dear", price_in=5, max_cost=10))
        told = {"model": "dear", "answers": 3, "invalid": 0, "prompt_tokens": 300, "completion_tokens": 30}
        assert graded(filtered) == {**told, "cost": pytest.approx(0.0015)}
        again(filtered, selection=by_judge(fake, 2, model="dear"), drop_truncated=False)
        assert graded(filtered)["prompt_tokens"] == 400  # of the four that are asked about, c-0 with no other beside it


def test_prompts_with_no_more_answers_than_are_wanted_are_no_question(filtered: Filtered) -> None:
    with FakeJudge(first_place, grade=gold) as fake:
        decisions = filtered.captured(*ROWS).do(selection=by_judge(fake, 3), **OFF)
        assert fake.num_asked == 0
    assert "best_of_n" not in [reason for row in decisions.values() for reason in row["reasons"]]
    assert [score(row) for row in decisions.values()] == [None] * 9
    assert graded(filtered)["answers"] == 0


def test_a_judge_that_may_be_too_dear_is_not_asked(filtered: Filtered, capfd: pytest.CaptureFixture[str]) -> None:
    filtered.captured(*ROWS)
    price: Row = {"price_out": 1000.0, "max_tokens": 100}
    with FakeJudge(first_place, grade=gold) as fake:
        with pytest.raises(
            UserError, match=r"^filter\.selection\.judge: 3 verdicts may cost 0\.30 in all, above .*max_cost=0\.29;"
        ):
            filtered.do(selection=by_judge(fake, **price, max_cost=0.29), **OFF)
        assert fake.num_asked == 0
        assert "filter: judge fake: 3 of 3 verdicts to come" in " ".join(capfd.readouterr().err.split())
        filtered.do(selection=by_judge(fake, **price, max_cost=0.31), **OFF)
        assert graded(filtered)["cost"] == pytest.approx(0.03)
        again(filtered, selection=by_judge(fake, **price, max_cost=0.01))  # nothing is to come, so nothing to pay
        assert fake.num_asked == 3


def test_a_judge_that_gets_too_dear_is_stopped_and_what_was_paid_for_is_kept(filtered: Filtered) -> None:
    filtered.captured([answered(f"a-{n}", "gold " * (n + 1)) for n in range(9)])
    with FakeJudge(first_place, grade=gold, usage=(100, 5000)) as fake:
        dear: Row = {"price_out": 10.0, "concurrency": 1}
        with pytest.raises(UserError, match=r"its verdicts have cost 0\.20, above filter\.selection\.judge\.max_cost"):
            filtered.do(selection=by_judge(fake, **dear, max_cost=0.19), **OFF)
        assert len(verdicts(filtered)) == fake.num_asked == 4
        decisions = filtered.do(selection=by_judge(fake, **dear, max_cost=1), **OFF)
        assert fake.num_asked == 9
    assert [name for name, row in decisions.items() if row["kept"]] == ["a-8"]


def test_a_judge_that_stops_answering_is_one_line_and_its_verdicts_are_kept(filtered: Filtered) -> None:
    filtered.captured(*ROWS)
    with FakeJudge(first_place, grade=gold) as fake:
        fake.faults.extend(["", ""])
        fake.always = "401"
        with pytest.raises(UserError, match=r"RETORT_JUDGE_KEY \(filter\.selection\.judge\.key_variable\)") as caught:
            filtered.do(selection=by_judge(fake, concurrency=1), **OFF)
        assert "\n" not in str(caught.value)
        assert len(verdicts(filtered)) == 2
        assert not filtered.run_dir.is_done("filter")
        fake.always = ""
        decisions = filtered.do(selection=by_judge(fake), **OFF)
        assert fake.num_asked == 4
        gone = by_judge(fake, model="other", patience_s=0.2)
    assert decisions["a-2"]["kept"]
    with pytest.raises(UserError, match=r"does not answer \(no connection.*check filter\.selection\.judge\.url"):
        again(filtered, selection=gone)


CHILD = """
import sys
from pathlib import Path
from pipeline import config, filter
from pipeline.run.rundir import RunDir
loaded = config.load(Path(sys.argv[1]))
filter.run(loaded, RunDir(loaded.run_path))
"""


def test_a_killed_filter_asks_for_what_it_had_no_verdict_on(filtered: Filtered, tmp_path: Path) -> None:
    filtered.captured([answered(f"p{n // 4:02}-{n % 4}", "gold " * (n % 4) + f"of {n}") for n in range(80)])
    with FakeJudge(first_place, grade=gold, delay_s=0.05) as fake:
        selection = by_judge(fake, concurrency=2)
        path = tmp_path / "trial.yaml"
        path.write_text(dump(filtered.config(selection=selection, **OFF)))
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(path)], cwd=ROOT)
        began = time.monotonic()
        while fake.num_asked < 12 and time.monotonic() - began < 60:
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        before, kept = fake.num_asked, len(verdicts(filtered))
        assert before - 2 <= kept <= before < 80
        fake.delay_s = 0
        decisions = filtered.do(selection=selection, **OFF)
        assert fake.num_asked == before + 80 - kept
    assert [name for name, row in decisions.items() if row["kept"]] == [f"p{n:02}-3" for n in range(20)]


def test_the_judge_reads_all_that_the_teacher_read(filtered: Filtered) -> None:
    def said(role: str, content: str | None, **more: str) -> Row:
        return {"role": role, "content": content, **more}

    asked = [
        said("system", "Be brief."),
        said("user", "Hello?"),
        said("assistant", "Hi."),
        said("user", "Is it warm?"),
        said("assistant", None, tool_calls='[{"name": "weather"}]'),
        said("tool", "21 degrees", name="weather"),
    ]
    with FakeJudge(first_place, grade=gold) as fake:
        rows = [answered("a-0", "Warm."), answered("a-1", "Warm as gold.")]
        filtered.captured(rows, messages={"a": asked}).do(selection=by_judge(fake), **OFF)
        text = max(fake.asked)
    turns = re.findall(r"=== (.+) ===\n(.*)\n", text)
    assert turns[:6] == [
        ("Instructions that the assistant was given", "Be brief."),
        ("Earlier question", "Hello?"),
        ("The assistant answered", "Hi."),
        ("Earlier question", "Is it warm?"),
        ("The assistant answered", '[{"name": "weather"}]'),
        ("Question", "21 degrees"),
    ]


def test_the_judge_sees_the_tools_that_the_teacher_had(filtered: Filtered) -> None:
    tools = '[{"type": "function", "function": {"name": "weather"}}]'
    rows = [answered(f"{prompt}-{n}", f"gold number {n}") for prompt in "ab" for n in (0, 1)]
    with FakeJudge(first_place, grade=gold) as fake:
        filtered.captured(rows, tools={"a": tools}).do(selection=by_judge(fake), **OFF)
        of_a, of_b = (next(text for text in fake.asked if f"What of {prompt}?" in text) for prompt in "ab")
    assert re.findall(r"=== (.+) ===\n(.*)\n", of_a)[:2] == [
        ("Tools that the assistant could call", tools),
        ("Question", "What of a?"),
    ]
    assert "ools" not in of_b


def test_no_file_of_the_run_holds_the_key(filtered: Filtered, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETORT_JUDGE_KEY", KEY)
    with FakeJudge(first_place, grade=gold, needs_key=True) as fake:
        filtered.captured(*ROWS).do(selection=by_judge(fake), **OFF)
    files = [path for path in filtered.run_dir.path.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert all(KEY.encode() not in path.read_bytes() for path in files)


@pytest.mark.parametrize(
    "selection",
    [
        {"best_by": "judge", "best_of": 1},
        {"best_by": "judge", "judge": {"url": "http://127.0.0.1:1", "model": "x"}},
    ],
)
def test_a_choice_without_a_judge_or_without_a_number_is_refused(selection: Row) -> None:
    with pytest.raises(UserError, match=r"filter\.selection: best_by=judge needs best_of, judge\.url and judge\.model"):
        validate({"name": "x", "filter": {"selection": selection}}, "test")


def test_a_template_that_is_not_there_is_told_before_anything_is_decided(filtered: Filtered, tmp_path: Path) -> None:
    filtered.captured(*ROWS)
    with FakeJudge(first_place) as fake:
        with pytest.raises(UserError, match=r"single\.jinja: no such prompt template.*selection\.judge\.templates"):
            filtered.do(selection=by_judge(fake, templates=str(tmp_path)), **OFF)
        assert not filtered.run_dir.stage_path("filter").exists()


GRADED = st.tuples(st.integers(0, 3), st.sampled_from([None, 1.0, 7.5, 8.0]), st.sampled_from([0.1, 0.2, 0.5]))


@given(st.lists(GRADED, max_size=30), st.integers(1, 4))
def test_the_best_are_those_that_sorting_by_hand_gives(
    answers: list[tuple[int, float | None, float]], num: int
) -> None:
    places = range(len(answers))
    best: set[int] = set()
    for prompt in {answer[0] for answer in answers}:
        of_prompt = [place for place in places if answers[place][0] == prompt]
        with_grade = [place for place in of_prompt if answers[place][1] is not None]
        ranked = sorted(with_grade, key=lambda place: (-(answers[place][1] or 0), answers[place][2], place))
        without = sorted(set(of_prompt) - set(with_grade), key=lambda place: (answers[place][2], place))
        best.update([*ranked, *without][:num])
    grades_N = np.array([np.nan if grade is None else grade for _, grade, _ in answers], dtype=np.float64)
    prompts_N = np.array([prompt for prompt, _, _ in answers], dtype=np.int64)
    nll_N = np.array([nats for _, _, nats in answers], dtype=np.float64)
    assert set(np.flatnonzero(best_of_n(prompts_N, nll_N, num, grades_N))) == best
