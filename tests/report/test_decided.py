"""Why one answer was kept or dropped, and examples of what was."""

from typing import Any

import pytest
from support.fabricated_run import DROPS, PLANTED

from pipeline.errors import UserError
from pipeline.report import ids
from pipeline.report.tables import decided
from pipeline.run.rundir import RunDir
from pipeline.screening import presidio


def test_a_dropped_answer_is_explained_rule_by_rule(filtered_run_dir: RunDir) -> None:
    text = decided.explain(filtered_run_dir, "prompt1-0")
    assert "FILTER dropped: repeated ngrams" in text
    table = [" ".join(line.split()) for line in text.splitlines()]
    assert "repeated ngrams 0.61 share drop max_duplicate_ngram_frac = 0.35" in table
    assert "truncated 0 1 = cut off keep on" in table
    assert "Answer 1: " in text
    assert "Say 1." in text
    assert PLANTED in text
    assert "\x1b" not in text


def test_a_kept_answer_is_explained_too_and_rules_without_a_score(filtered_run_dir: RunDir) -> None:
    text = decided.explain(filtered_run_dir, "prompt2-0")
    assert "FILTER kept" in text
    [line] = [line for line in text.splitlines() if line.startswith("  control tokens")]
    assert line.split() == ["control", "tokens", "–", "on"]


def test_an_unknown_response_is_refused(filtered_run_dir: RunDir) -> None:
    with pytest.raises(UserError, match=r"no response or prompt has the id 'nowhere-0'; ids are in .*/generate"):
        decided.explain(filtered_run_dir, "nowhere-0")


@pytest.mark.parametrize("given", ["prompt1", "prompt1-", "prompt1-0"])
def test_a_prompts_id_or_how_an_id_begins_will_do(filtered_run_dir: RunDir, given: str) -> None:
    assert decided.explain(filtered_run_dir, given) == decided.explain(filtered_run_dir, "prompt1-0")


def test_the_beginning_of_several_ids_is_told_with_some_of_them(filtered_run_dir: RunDir) -> None:
    with pytest.raises(
        UserError, match=r"6 ids begin with 'prompt': prompt0, prompt1, prompt2, \.\.\.; give more of the id"
    ):
        decided.explain(filtered_run_dir, "prompt")


def test_all_answers_to_a_prompt_are_explained(filtered_run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = [decided.explain(filtered_run_dir, name) for name in ("prompt1-0", "prompt2-0")]
    monkeypatch.setattr(ids, "named", lambda *_: ids.Named("prompt1", ["prompt1-0", "prompt2-0"]))
    assert decided.explain(filtered_run_dir, "prompt1") == "\n".join(alone)


def test_filter_must_have_finished(filtered_run_dir: RunDir) -> None:
    (filtered_run_dir.path / "filter" / "manifest.json").unlink()
    for ask in (
        lambda: decided.explain(filtered_run_dir, "prompt1-0"),
        lambda: decided.sample(filtered_run_dir, "truncated", 1),
    ):
        with pytest.raises(UserError, match="filter has not finished"):
            ask()


def test_a_sample_of_what_a_rule_dropped(filtered_run_dir: RunDir) -> None:
    text = decided.sample(filtered_run_dir, "truncated", 5)
    assert text.startswith("1 of 1 answer: truncated\n\nprompt0-0 · truncated · writing\n")
    assert "Q: Say 0." in text
    assert "A: Answer 0: " in text
    assert "\x1b" not in text


@pytest.mark.parametrize(("num", "shown"), [(1, 1), (3, 3), (9, 4)])
def test_a_sample_of_what_was_kept(filtered_run_dir: RunDir, num: int, shown: int) -> None:
    text = decided.sample(filtered_run_dir, "kept", num)
    assert text.startswith(f"{shown} of 4 answers: kept\n")
    assert text.count("Q: ") == shown
    assert text == decided.sample(filtered_run_dir, "kept", num)
    assert "prompt0-0" not in text


def test_a_rule_that_dropped_nothing_has_no_sample(filtered_run_dir: RunDir) -> None:
    assert decided.sample(filtered_run_dir, "empty", 2) == "0 of 0 answers: empty\n"


def test_a_reason_that_is_none_is_refused_with_those_that_are(filtered_run_dir: RunDir) -> None:
    with pytest.raises(
        UserError, match=r"'ugly' is not a reason .* dropped for: truncated, repeated_ngrams \('kept' for"
    ):
        decided.sample(filtered_run_dir, "ugly", 2)


def test_examples_of_every_reason_are_cut_to_one_line(filtered_run_dir: RunDir) -> None:
    found = decided.examples(filtered_run_dir, 2, 12)
    assert set(found) == {reason for reason, dropped in DROPS.items() if dropped}
    [example] = found["truncated"]
    assert example == {
        "response_id": "prompt0-0",
        "earlier": [{"role": "system", "text": "Be brief."}],
        "turns": [{"role": "user", "text": r"Say 0.\x1b[2J…"}],
        "text": r"Answer 0: \x1b…",
    }


def test_an_example_has_the_whole_conversation(filtered_run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = decided._rows
    call = {"role": "assistant", "content": None, "tool_calls": '[{"function": "look"}]'}
    said = [("system", "Be kind."), ("user", "One"), ("assistant", "I mailed ada@acme.io."), ("user", "Two")]
    messages = [{"role": role, "content": text, "tool_calls": None} for role, text in said]

    def talked(*arguments: Any) -> list[dict[str, Any]]:
        return [row | {"messages": [*messages, call]} for row in taken(*arguments)]

    monkeypatch.setattr(decided, "_rows", talked)
    [example] = decided.examples(filtered_run_dir, 1, 40)["truncated"]
    assert [each["text"] for each in example["earlier"]] == ["Be kind.", "One", "I mailed <EMAIL>."]
    assert [each["text"] for each in example["turns"]] == ["Two", '[{"function": "look"}]']


def test_personal_data_in_an_example_stays_out_of_the_report(
    filtered_run_dir: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = decided._rows

    def with_address(*arguments: Any) -> list[dict[str, Any]]:
        return [row | {"text": "Write to anna.k@posteo.de then."} for row in taken(*arguments)]

    monkeypatch.setattr(decided, "_rows", with_address)
    shown = [each["text"] for listed in decided.examples(filtered_run_dir, 2, 80).values() for each in listed]
    assert set(shown) == {"Write to <EMAIL> then."}


def test_a_name_in_an_example_stays_out_wherever_it_stands(
    filtered_run_dir: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tagger finds it in the reasoning alone; of another it was found among the tokens alone."""
    taken, span = decided._rows, {"start": 0, "end": 1, "kind": "person"}

    def with_name(*arguments: Any) -> list[dict[str, Any]]:
        asked = [{"role": "user", "content": "Who? Ann Lee?", "tool_calls": None}]
        told = {"messages": asked, "text": "By Ann Lee.", "reasoning": "It was Ann Lee", "masked_spans": [span] * 2}
        unseen = {"text": "By Bo.", "reasoning": None, "masked_spans": [span]}
        return [row | (unseen if n else told) for n, row in enumerate(taken(*arguments))]

    def find(text: str, settings: Any) -> list[tuple[int, int, str]]:
        return [(7, 14, "person")] if text.startswith("It was") else []

    monkeypatch.setattr(presidio, "find", find)
    monkeypatch.setattr(decided, "_rows", with_name)
    shown = [each for listed in decided.examples(filtered_run_dir, 2, 80).values() for each in listed]
    assert shown[0]["turns"][0]["text"] == "Who? <PERSON>?"
    assert [each["text"] for each in shown] == ["By <PERSON>.", *["(personal data)"] * (len(shown) - 1)]
    assert len(shown) > 1


def test_decisions_about_other_answers_are_refused(filtered_run_dir: RunDir) -> None:
    manifest = filtered_run_dir.path / "filter" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(filtered_run_dir.output_hash("generate"), "0" * 64))
    with pytest.raises(UserError, match="decided about other answers"):
        decided.sample(filtered_run_dir, "kept", 2)


def test_a_damaged_file_of_answers_is_named(filtered_run_dir: RunDir) -> None:
    path = filtered_run_dir.path / "generate/responses-00001.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"responses-00001\.parquet: damaged"):
        decided.sample(filtered_run_dir, "kept", 9)
