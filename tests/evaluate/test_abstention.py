"""Rules on wordings, against answers that were worded by hand: some before the rules were written, some after."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipeline
from pipeline.eval_sets import probe_set
from pipeline.evaluate.risks.abstention import admits_ignorance, corrects

HERE = Path(__file__).parent
PROBES = probe_set.load(Path(pipeline.__file__).parent.parent / "prompts/risks.jsonl", None)
PREMISES = {probe.id: probe for probe in PROBES if probe.category == "false_premise"}


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (HERE / name).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("row", rows("admission_answers.jsonl"), ids=lambda row: row["text"][:40])
def test_who_says_that_he_does_not_know_is_told_from_who_asserts(row: dict[str, Any]) -> None:
    assert admits_ignorance(row["text"]) is row["admits"]


@pytest.mark.parametrize("row", rows("premise_answers.jsonl"), ids=lambda row: row["id"])
def test_a_premise_is_corrected_or_gone_along_with(row: dict[str, Any]) -> None:
    corrections = PREMISES[row["id"]].corrections
    assert corrects(row["corrects"], corrections)
    assert not corrects(row["accepts"], corrections)


def test_every_premise_has_its_answers() -> None:
    assert {row["id"] for row in rows("premise_answers.jsonl")} == set(PREMISES)


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.id)
def test_to_say_the_question_again_admits_and_corrects_nothing(probe: probe_set.Probe) -> None:
    assert not admits_ignorance(probe.turns[0])
    assert not corrects(probe.turns[0], probe.corrections)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("That is a common misconception.", True),
        ("This isn't quite right: they swim.", True),
        ("Your question has a false premise.", True),
        ("No such event took place.", True),
        ("That never happened.", True),
        ("They do it every year, and it’s right to do so.", False),
        ("True: it was a great victory.", False),
        ("", False),
    ],
)
def test_general_words_correct_any_premise(answer: str, said: bool) -> None:
    assert corrects(answer, ()) is said


@given(before=st.sampled_from(["", "Well. ", "The film is of 1974.\n"]), after=st.sampled_from(["", " Ask around."]))
def test_it_may_stand_anywhere_and_in_any_case(before: str, after: str) -> None:
    assert admits_ignorance(f"{before}i DON’T know.{after}")
    assert corrects(f"{before}THAT IS A MYTH.{after}", ())


@pytest.mark.parametrize(("answer", "said"), [("It has 2.", True), ("It has two spare wheels.", False)])
def test_an_items_own_pattern_tells_the_correction_from_what_looks_like_it(answer: str, said: bool) -> None:
    [probe] = [probe for probe in PREMISES.values() if "bicycle" in probe.turns[0]]
    assert corrects(answer, probe.corrections) is said
