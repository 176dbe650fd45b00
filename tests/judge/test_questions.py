import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import config as config_module
from pipeline.config import Judge
from pipeline.errors import UserError
from pipeline.evaluate.judge.turns import pairs, replies
from pipeline.judge.ledger import JudgeVerdict, Ledger
from pipeline.judge.questions import Asker, JudgeRequest, Kind, Pair, read, request_hash

SETTINGS = Judge(url="http://127.0.0.1:1", model="fake")


@pytest.mark.parametrize(
    ("kind", "reply", "verdict"),
    [
        ("pairwise", "A is right.\n\nVerdict: A", "A"),
        ("pairwise", "Verdict: b\n", "B"),
        ("pairwise", "So.\n**Verdict: Tie**", "tie"),
        ("pairwise", "**Verdict:** [[B]].", "B"),
        ("pairwise", "<think>\nVerdict: A\n</think>\nNo: B.\nVerdict: B", "B"),
        ("pairwise", "Verdict: A\nand that is that", None),  # not the last line
        ("pairwise", "Verdict: A\nVerdict: B", None),  # two
        ("pairwise", "Verdict: A or B", None),
        ("pairwise", "Verdict: A, since it is right", None),
        ("pairwise", "A", None),
        ("pairwise", "", None),
        ("pairwise", "Verdict: C", None),
        ("pairwise", "Grade: 7", None),
        ("single", "Good.\nGrade: 7", 7.0),
        ("single", "Grade: 7.5/10", 7.5),
        ("single", "`Grade: 10`", 10.0),
        ("single", "Grade: 11", None),
        ("single", "Grade: 0", None),
        ("single", "Grade: 3-4", None),
        ("single", "Grade: -3", None),
        ("single", "Grade: seven", None),
        ("single", "Verdict: A", None),
    ],
)
def test_a_verdict_is_a_last_line_or_there_is_none(kind: Kind, reply: str, verdict: object) -> None:
    assert read(kind, reply) == verdict


@given(st.text())
def test_no_text_is_taken_for_a_verdict_that_does_not_end_with_one(text: str) -> None:
    got = read("pairwise", text)
    assert got is None or "verdict:" in text.lower()
    assert read("pairwise", f"{text.replace(':', '')}\nVerdict: B") == "B"


def row(arm: str, answer: str, turn: int = 0, item: str = "i", **more: Any) -> Any:
    return {
        "item_id": item,
        "category": "c",
        "turn": turn,
        "arm": arm,
        "question": f"q{turn}",
        "answer": answer,
        **more,
    }


ROWS = [
    row("student", "s1", 1, system="Be kind.", reference="Right it is."),
    row("student", "s0"),
    row("teacher", "t0"),
    row("teacher", "t1", 1),
    row("teacher", "t2", 2),
    row("untrained", "u0"),
]


def test_turns_that_both_answered_are_paired_each_with_its_own_history() -> None:
    found = pairs("over_teacher", replies(ROWS, "student"), replies(ROWS, "teacher"))
    assert [(p.one.turn, p.one.answer, p.other.answer) for p in found] == [(0, "s0", "t0"), (1, "s1", "t1")]
    assert (found[1].one.history, found[1].other.history) == ((("q0", "s0"),), (("q0", "t0"),))


def test_the_shipped_templates_show_all_there_is_and_the_orders_differ_in_places_alone() -> None:
    [_, pair] = pairs("over_teacher", replies(ROWS, "student"), replies(ROWS, "teacher"))
    there, back = (Asker(SETTINGS).pairwise(pair, order) for order in (0, 1))
    for text in (there.text, back.text):
        for shown in ("s0", "s1", "t0", "t1", "q0", "q1", "Be kind.", "Right it is.", "Verdict: tie"):
            assert shown in text
        assert "student" not in text
        assert "teacher" not in text
    assert there.text.index("\ns1\n") < there.text.index("\nt1\n")
    assert back.text.index("\nt1\n") < back.text.index("\ns1\n")
    assert sorted(there.text) == sorted(back.text)
    assert there.key != back.key
    graded = Asker(SETTINGS).single("student", pair.one).text
    assert "s1" in graded
    assert "t1" not in graded
    assert "Grade:" in graded


def test_what_changes_a_verdict_changes_its_key(tmp_path: Path) -> None:
    [pair, _] = pairs("over_teacher", replies(ROWS, "student"), replies(ROWS, "teacher"))
    (tmp_path / "pairwise.jinja").write_text("{{ question }} {{ first.answer }} {{ second.answer }}")
    (tmp_path / "single.jinja").write_text("{{ question }} {{ given.answer }}")
    others = [
        SETTINGS.model_copy(update={"model": "other"}),
        SETTINGS.model_copy(update={"max_tokens": 99}),
        SETTINGS.model_copy(update={"request": {"seed": 3}}),
        SETTINGS.model_copy(update={"templates": str(tmp_path)}),
    ]
    keys = {Asker(settings).pairwise(pair, 0).key for settings in [SETTINGS, *others]}
    assert len(keys) == 5
    same = SETTINGS.model_copy(update={"url": "http://127.0.0.1:2", "concurrency": 3, "max_cost": 3.0, "retries": 9})
    assert Asker(same).pairwise(Pair("other name", pair.one, pair.other), 0).key in keys


def test_a_template_that_can_not_be_used_is_told_with_its_path(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"templates": str(tmp_path)})
    with pytest.raises(UserError, match=r"pairwise\.jinja: no such prompt template"):
        Asker(settings)
    (tmp_path / "pairwise.jinja").write_text("{% if %}")
    with pytest.raises(UserError, match=r"pairwise\.jinja: malformed"):
        Asker(settings)
    (tmp_path / "pairwise.jinja").write_text("{{ nothing }}")
    (tmp_path / "single.jinja").write_text("{{ question }}")
    [pair, _] = pairs("x", replies(ROWS, "student"), replies(ROWS, "teacher"))
    with pytest.raises(UserError, match=r"pairwise\.jinja: 'nothing' is undefined"):
        Asker(settings).pairwise(pair, 0)


def verdict(key: str, choice: Any = "A", tries: int = 1) -> JudgeVerdict:
    return JudgeVerdict(
        key=key,
        kind="pairwise",
        choice=choice,
        tries=tries,
        prompt_tokens=10,
        completion_tokens=3,
        reply="Verdict: Å\n\u2028",
        about={"item_id": "i"},
    )


def question(key: str) -> JudgeRequest:
    return JudgeRequest("pairwise", "text", key, {})


def test_a_ledger_cut_anywhere_keeps_every_whole_line_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    ledger = Ledger(path)
    for key in "abc":
        ledger.add(verdict(key, {"a": "A", "b": 7.5, "c": None}[key]))
    whole = path.read_bytes()
    ends = [n + 1 for n, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        again = Ledger(path)
        kept = sum(end - 1 <= cut for end in ends)  # a line that lacks its end alone is whole
        assert len(again.missing(map(question, "abc"), tries=1)) == 3 - kept
        assert again.tokens(None).prompt == 10 * kept
        again.add(verdict("d", "tie"))
        assert Ledger(path).choice(question("d")) == "tie"
        assert Ledger(path).tokens(None).prompt == 10 * (kept + 1)


def test_choices_come_back_as_they_were(tmp_path: Path) -> None:
    for choice in ("A", "B", "tie", 7.5, 1.0, None):
        Ledger(tmp_path / "v.jsonl").add(verdict("k", choice))
        assert Ledger(tmp_path / "v.jsonl").choice(question("k")) == choice


def test_tokens_and_answers_are_told_apart_by_judge_and_a_line_of_an_earlier_version_is_nobodys(tmp_path: Path) -> None:
    path, other = tmp_path / "v.jsonl", SETTINGS.model_copy(update={"request": {"seed": 1}})
    whose = {"model": SETTINGS.model, "request": request_hash(SETTINGS)}
    path.write_text(verdict("old").model_dump_json(exclude={"model", "request"}) + "\n")
    assert not Ledger(path).has_answers(SETTINGS)
    Ledger(path).add(verdict("refused", None, tries=0).model_copy(update=whose))
    assert not Ledger(path).has_answers(SETTINGS)
    Ledger(path).add(verdict("k").model_copy(update=whose))
    ledger = Ledger(path)
    assert (ledger.has_answers(SETTINGS), ledger.has_answers(other)) == (True, False)
    assert (ledger.tokens("fake"), ledger.tokens("other")) == ((20, 6), (0, 0))
    assert ledger.tokens_on([question("k"), question("old")]) == (20, 6)


def test_an_invalid_verdict_is_asked_again_when_more_tries_are_allowed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "v.jsonl")
    ledger.add(verdict("k", None, tries=2))
    assert ledger.missing([question("k")], tries=2) == []
    assert ledger.missing([question("k"), question("k")], tries=3) == [question("k")]
    ledger.add(verdict("k", "B", tries=1))
    assert ledger.missing([question("k")], tries=3) == []
    assert ledger.tokens_on([question("k")] * 2).completion == 6  # both were paid for


@pytest.mark.parametrize(
    ("judge", "said"),
    [
        ({"url": "http://127.0.0.1:1"}, "url and model go together"),
        ({"url": "127.0.0.1", "model": "x"}, "written like"),
        ({"url": "http://me:hunter2@host", "model": "x"}, "without a name or password"),
        ({"key_variable": "sk-very-secret"}, "not the key"),
        ({"request": {"messages": []}}, "messages can't be set there"),
        ({"price_in": -1}, "price_in"),
    ],
)
def test_settings_that_can_not_be_are_refused_and_no_secret_repeated(judge: dict, said: str) -> None:
    with pytest.raises(UserError) as caught:
        config_module.validate({"name": "x", "evaluate": {"judge": judge}}, "test")
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_addresses_and_prices_are_no_part_of_the_fingerprint_and_templates_are(tmp_path: Path) -> None:
    from pipeline import judge

    (tmp_path / "pairwise.jinja").write_text("{{ question }}")
    (tmp_path / "single.jinja").write_text("{{ question }}")
    assert judge.fingerprint(Judge()) is None
    first = judge.fingerprint(SETTINGS)
    assert judge.fingerprint(SETTINGS.model_copy(update={"url": "http://b", "max_cost": 1.0, "price_in": 2.0})) == first
    assert judge.fingerprint(SETTINGS.model_copy(update={"retries": 7})) != first
    moved = SETTINGS.model_copy(update={"templates": str(tmp_path)})
    one = judge.fingerprint(moved)
    (tmp_path / "single.jinja").write_text("{{ question }}!")
    assert judge.fingerprint(moved) != one
    assert "127.0.0.1" not in json.dumps(first)
