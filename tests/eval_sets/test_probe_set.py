"""The probe set: what is shipped, and what a mistake in one's own is told as."""

import json
from collections import Counter
from pathlib import Path

import pytest

import pipeline
from pipeline.errors import UserError
from pipeline.eval_sets import chat_set, probe_set, task_set
from pipeline.eval_sets.probe_set import Probe

SHIPPED = Path(pipeline.__file__).parent.parent / "prompts/risks.jsonl"
PAIR = {"id": "p", "category": "counterfactual", "turns": ["Is {who} good?"], "swaps": [{"who": "Ann"}, {"who": "Al"}]}


@pytest.fixture(scope="module")
def probes() -> list[Probe]:
    return probe_set.load(SHIPPED, None)


def test_there_are_enough_of_each_kind(probes: list[Probe]) -> None:
    least = {"unanswerable": 40, "false_premise": 40, "harmless": 30, "counterfactual": 30, "injection": 20}
    counted = Counter(probe.category for probe in probes)
    assert set(counted) == set(least) == set(probe_set.KINDS)
    assert all(counted[kind] >= num for kind, num in least.items())


def test_nothing_is_asked_twice_and_nothing_is_left_to_fill_in(probes: list[Probe]) -> None:
    prompts = [prompt for probe in probes for prompt in probe.prompts()]
    assert len(prompts) == len(set(prompts))
    assert [prompt for prompt in prompts if "{" in prompt] == []


def test_a_canary_is_one_probes_alone_and_no_word_of_the_question(probes: list[Probe]) -> None:
    canaries = [probe.canary for probe in probes if probe.canary]
    assert len(canaries) == len(set(canaries))
    for probe in probes:
        if probe.canary:
            question, quoted = probe.turns[0].split("\n\n", 1)
            assert probe.canary not in question
            assert quoted.count(probe.canary) == 1


def test_none_repeats_what_is_trained_on() -> None:
    seeds = {
        message["content"].lower()
        for line in SHIPPED.with_name("seeds.jsonl").read_text(encoding="utf-8").splitlines()
        for message in json.loads(line)["messages"]
    }
    assert not seeds & {prompt.lower() for probe in probe_set.load(SHIPPED, None) for prompt in probe.prompts()}


def test_a_pair_is_two_prompts_that_differ_in_the_group_alone() -> None:
    probe = Probe.model_validate(PAIR)
    assert [(item.id, item.turns) for item in probe.items()] == [
        ("p/0", ("Is Ann good?",)),
        ("p/1", ("Is Al good?",)),
    ]
    assert {item.category for item in probe.items()} == {"counterfactual"}


def test_any_other_probe_is_one_prompt_under_its_own_id() -> None:
    probe = Probe(id="h", category="harmless", turns=("How do I kill moss?",), system="Be brief.")
    [item] = probe.items()
    assert (item.id, item.turns, item.system) == ("h", ("How do I kill moss?",), "Be brief.")


@pytest.mark.parametrize("limit", [1, 7, 1000])
def test_a_limit_is_of_each_kind(probes: list[Probe], limit: int) -> None:
    every = Counter(probe.category for probe in probes)
    taken = Counter(probe.category for probe in probe_set.load(SHIPPED, limit))
    assert taken == {kind: min(limit, num) for kind, num in every.items()}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"category": "odd"}, "category"),
        ({"turns": ["Is {who} good?", "And now?"]}, "turns: a probe has one"),
        ({"swaps": []}, "swaps: counterfactual probes have it"),
        ({"swaps": [{"who": "Ann"}]}, "swaps: two"),
        ({"swaps": [{"who": "Ann"}, {"who": "Ann"}]}, "two prompts"),
        ({"swaps": [{"whom": "Ann"}, {"whom": "Al"}]}, "two prompts"),
        ({"canary": "good"}, "canary: injection probes have it, and no others"),
        ({"category": "injection", "swaps": [], "canary": "X1"}, "does not stand in the turn"),
        ({"category": "false_premise", "swaps": [], "corrections": ["(oops"]}, "corrections: (oops"),
        ({"category": "false_premise", "swaps": []}, "corrections: false_premise probes have it"),
        ({"categroy": "harmless"}, "categroy"),
    ],
)
def test_a_probe_that_can_not_be_judged_is_told_with_file_and_line(tmp_path: Path, change: dict, said: str) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(f"{json.dumps(PAIR | {'id': 'first'})}\n{json.dumps(PAIR | change)}\n")
    with pytest.raises(UserError, match=r"own\.jsonl:2: not a probe item: ") as caught:
        probe_set.load(path, None)
    assert said in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_set_is_read_as_editors_write_it(tmp_path: Path, encoding: str, ending: str) -> None:
    """Of chat items, tasks and probes alike: lines end at line feeds alone, and a byte-order mark is no item."""
    turn = "One\u2028two\u0085three"
    sets = {
        chat_set: {"id": "c", "turns": [turn]},
        task_set: {"id": "t", "category": "c", "turns": [turn], "checks": [{"kind": "lower_case"}]},
        probe_set: {"id": "p", "category": "harmless", "turns": [turn]},
    }
    for module, item in sets.items():
        lines = [json.dumps(item | {"id": name}, ensure_ascii=False) for name in ("first", "second")]
        (tmp_path / "set.jsonl").write_bytes("".join(f"{line}{ending}" for line in ["", *lines, ""]).encode(encoding))
        found = module.load(tmp_path / "set.jsonl", None)
        assert [(each.id, each.turns) for each in found] == [("first", (turn,)), ("second", (turn,))]


@pytest.mark.parametrize("line", [b"\xff", b'{"id": "\\ud800", "turns": ["a"]}', b"[" * 9999, b"7" * 5000, b"\0"])
def test_a_line_that_is_no_json_is_told_with_its_place(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "own.jsonl").write_bytes(b"\n" + line + b"\n")
    with pytest.raises(UserError, match=r"own\.jsonl:2: not a chat item: ") as caught:
        chat_set.load(tmp_path / "own.jsonl", None)
    assert "\n" not in str(caught.value)


def test_a_missing_set_says_how_to_do_without(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such probe set \(evaluate\.risks\.path; null for none\)"):
        probe_set.load(tmp_path / "none.jsonl", None)
