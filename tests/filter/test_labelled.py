"""The rules as shipped, on answers that were written or read, and labelled, by hand; labelled.py prints each figure."""

import pytest
from support.labelled import FAMILIES, Row, dropped, measure, rows

from pipeline.filter.rules import RULES

# At least so many of the answers named for a rule are found by it; the others by another of its family, or not at all.
RECALL = 0.9
RECALLS = {"confident_loop": 0.6}  # of three: a loop of two words, each of a probability just below 0.9, is missed


@pytest.fixture(scope="module")
def labelled() -> list[Row]:
    return rows()


def test_there_are_good_and_bad_answers_of_many_kinds_and_no_two_alike(labelled: list[Row]) -> None:
    assert len(labelled) >= 300
    assert sum(not row["reasons"] for row in labelled) >= 150
    assert len({(row["prompt"], row["answer"]) for row in labelled}) == len(labelled)
    kinds = {row["category"] for row in labelled}
    assert {"prose", "code", "maths", "list", "table", "json", "lang-zh", "lang-ar", "lang-hi", "lang-ru"} <= kinds
    named = {reason for row in labelled for reason in row["reasons"]}
    assert named == set(RULES)


def test_no_rule_is_wrong_in_more_than_a_tenth_of_what_it_drops(labelled: list[Row]) -> None:
    measured = measure(labelled)
    assert {name: m.precision for name, m in measured.items() if m.precision is not None and m.precision < 0.9} == {}
    assert [name for name, m in measured.items() if m.precision is None] == []


def test_good_answers_lose_less_than_two_in_a_hundred(labelled: list[Row]) -> None:
    good = [row for row in labelled if not row["reasons"]]
    lost = [row["answer"] for row in good if dropped(row)]
    assert len(lost) < 0.02 * len(good), lost


def test_bad_answers_are_found(labelled: list[Row]) -> None:
    measured = measure(labelled)
    recalls = {name: m.recall for name, m in measured.items() if m.recall is not None}
    assert {name: recall for name, recall in recalls.items() if recall < RECALLS.get(name, RECALL)} == {}
    missed = [row["answer"] for row in labelled if row["reasons"] and not dropped(row)]
    assert len(missed) <= 0.02 * len(labelled), missed


def test_families_are_of_rules_that_exist() -> None:
    assert set().union(*FAMILIES) <= set(RULES)
