"""prepare as a whole: ids, split, rendering, what is refused and what is counted."""

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import config as config_module
from pipeline import prepare
from pipeline.errors import UserError
from pipeline.models import lookup
from pipeline.prepare.conversations import prompt_id
from pipeline.records import is_held_out

USER = {"role": "user", "content": "Hi"}
ROOT = Path(prepare.__file__).parent.parent.parent
LONG = "x" * 200


def numbered(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"Prompt number {n}"} for n in range(count)]


def plain(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Stored messages without the fields that are null."""
    return [{key: value for key, value in message.items() if value is not None} for message in messages]


# --- rows


def test_a_prompt_is_rendered_as_the_teacher_will_see_it(prepared: Any) -> None:
    prepared.do(prepared.lines({"prompt": "Hi 🙂", "category": "chat"}))
    [row] = prepared.rows()
    tokenizer = lookup.find(str(prepared.teacher)).tokenizer()
    seen = "<|im_start|>user\nHi 🙂<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(row["prompt_token_ids"]) == seen
    assert plain(row["messages"]) == [{"role": "user", "content": "Hi 🙂"}]
    assert row["completion_token_ids"] is row["tools"] is None
    assert (row["category"], row["split"]) == ("chat", "train")
    assert row["source"] == f"{prepared.folder}/a.jsonl:1"


def test_a_prompt_without_a_category_is_uncategorised(prepared: Any) -> None:
    prepared.do(prepared.lines({"prompt": "a"}, {"prompt": "b", "category": None}, {"prompt": "c", "category": "x"}))
    assert [row["category"] for row in prepared.rows()] == ["uncategorised", "uncategorised", "x"]


def test_template_kwargs_reach_the_chat_template(prepared: Any, other_teacher: Callable[[str], Path]) -> None:
    prepared.teacher = other_teacher("{{ messages[0].content }}|{{ mood }}")
    config = prepared.config(prepared.lines({"prompt": "Hi"}))
    teacher = config.teacher.model_copy(update={"chat_template_kwargs": {"mood": "calm"}})
    prepare.run(config.model_copy(update={"teacher": teacher}), prepared.run_dir)
    tokenizer = lookup.find(str(prepared.teacher)).tokenizer()
    assert tokenizer.decode(prepared.rows()[0]["prompt_token_ids"]) == "Hi|calm"


def test_sources_follow_one_another(prepared: Any) -> None:
    sources = [prepared.lines({"prompt": "a"}), prepared.file("b.csv", "prompt\nb\n"), prepared.file("c.txt", "c\n")]
    assert prepared.do(*sources)["prompts"] == 3
    assert [row["messages"][0]["content"] for row in prepared.rows()] == ["a", "b", "c"]


@pytest.mark.parametrize(("shard_prompts", "lengths"), [(1, [1] * 5), (2, [2, 2, 1]), (5, [5]), (9, [5])])
def test_prompts_are_cut_into_files_in_order(prepared: Any, shard_prompts: int, lengths: list[int]) -> None:
    prepared.do(prepared.lines(*numbered(5)), shard_prompts=shard_prompts)
    assert [f["rows"] for f in prepared.run_dir.manifest("prepare")["files"]] == lengths
    assert [row["messages"][0]["content"] for row in prepared.rows()] == [row["prompt"] for row in numbered(5)]


def test_the_same_conversation_is_taken_once_and_the_others_counted(prepared: Any) -> None:
    rows = [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "a"}, {"messages": [{"role": "user", "content": "a"}]}]
    counts = prepared.do(prepared.lines(*rows), prepared.lines({"prompt": "b"}, name="b.jsonl"))
    assert (counts["prompts"], counts["duplicates"], counts["near_duplicates"]) == (2, 3, 0)
    assert len({row["prompt_id"] for row in prepared.rows()}) == 2


def test_no_more_distinct_prompts_than_wanted(prepared: Any) -> None:
    counts = prepared.do(prepared.lines({"prompt": "a"}, {"prompt": "a"}, *numbered(5)), max_prompts=3)
    assert (counts["prompts"], counts["duplicates"]) == (3, 1)


def test_done_is_not_done_again(prepared: Any) -> None:
    source = prepared.lines(*numbered(3))
    prepared.do(source)
    before = {path: path.stat().st_mtime_ns for path in (prepared.run_dir.path / "prepare").iterdir()}
    prepared.do(source)
    assert {path: path.stat().st_mtime_ns for path in (prepared.run_dir.path / "prepare").iterdir()} == before


def test_another_chat_template_is_refused_by_name(prepared: Any, other_teacher: Callable[[str], Path]) -> None:
    source = prepared.lines(*numbered(3))
    prepared.do(source)
    prepared.teacher = other_teacher("{{ messages[0].content }}")
    with pytest.raises(UserError, match=r"teacher\.chat_template was .*teacher\.model was "):
        prepared.do(source)


# --- ids and the held-out side


def test_an_id_is_sixteen_hexadecimal_digits_of_the_conversation_alone(prepared: Any) -> None:
    prepared.do(prepared.lines({"prompt": "Hi", "category": "x"}))
    [row] = prepared.rows()
    assert row["prompt_id"] == prompt_id([USER])
    assert re.fullmatch("[0-9a-f]{16}", row["prompt_id"])


def test_an_id_is_the_same_in_every_release() -> None:
    """Runs refer to prompts by these: a change here would orphan them."""
    assert prompt_id([USER]) == "c5477e859d73a158"
    assert (
        prompt_id([{"role": "system", "content": "Kurz."}, {"role": "user", "content": "你好"}]) == "6fb95270d43f55a7"
    )


@pytest.mark.parametrize(
    "other",
    [
        [{"role": "user", "content": "hi"}],
        [{"role": "user", "content": "Hi "}],
        [{"role": "system", "content": "Hi"}],
        [USER, USER],
    ],
)
def test_another_conversation_has_another_id(other: list[dict[str, str]]) -> None:
    assert prompt_id(other) != prompt_id([USER])


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9])
def test_the_held_out_share_is_about_what_was_asked(share: float) -> None:
    held_out = sum(is_held_out(prompt_id([{"role": "user", "content": str(n)}]), share) for n in range(4000))
    assert held_out / 4000 == pytest.approx(share, abs=0.03)


def test_no_share_holds_out_no_prompt() -> None:
    assert not any(is_held_out(str(n), 0) for n in range(1000))


@settings(max_examples=200, deadline=None, database=None)
@given(identifier=st.text(max_size=20), shares=st.lists(st.floats(0, 0.999), min_size=2, max_size=2))
def test_a_larger_share_only_adds_to_the_held_out_side(identifier: str, shares: list[float]) -> None:
    smaller, larger = sorted(shares)
    assert is_held_out(identifier, larger) or not is_held_out(identifier, smaller)


def test_a_prompt_keeps_its_side_when_the_corpus_grows(prepared: Any) -> None:
    def sides(*rows: dict[str, Any]) -> dict[str, str]:
        prepared.run_dir.discard_from("prepare")
        prepared.do(prepared.lines(*rows), held_out_frac=0.3)
        return {row["prompt_id"]: row["split"] for row in prepared.rows()}

    before = sides(*numbered(40))
    after = sides(*numbered(120)[::-1])
    assert set(before.values()) == {"train", "held_out"}
    assert len(after) == 120
    assert before == {identifier: after[identifier] for identifier in before}


def test_the_held_out_are_counted(prepared: Any) -> None:
    counts = prepared.do(prepared.lines(*numbered(60)), held_out_frac=0.3)
    held_out = [row for row in prepared.rows() if row["split"] == "held_out"]
    assert counts["held_out"] == len(held_out) > 0


def test_a_larger_share_of_a_source_keeps_all_that_a_smaller_one_took(prepared: Any) -> None:
    rows = numbered(60)
    taken = []
    for weight in (0.2, 0.5, 1.0):
        prepared.do(prepared.lines(*rows) | {"weight": weight}, held_out_frac=0.3)
        taken.append({row["prompt_id"]: row["split"] for row in prepared.rows()})
        prepared.run_dir.discard_from("prepare")
    few, half, whole = taken
    assert 0 < len(few) < len(half) < len(whole) == 60
    assert few.items() <= half.items() <= whole.items(), "on the same side of the split"
    assert 18 < len(half) < 42
    assert {"train", "held_out"} == set(half.values()), "the share is no part of the split"


def test_all_answers_of_a_conversation_are_in_the_share_or_none(prepared: Any) -> None:
    chats = [
        {"messages": [{"role": role, "content": f"{role} {n}"} for role in ("user", "assistant", "user", "assistant")]}
        for n in range(40)
    ]
    config = prepared.config(prepared.lines(*chats) | {"weight": 0.4})
    scored = config.model_copy(update={"generate": config.generate.model_copy(update={"mode": "score"})})
    prepare.run(scored, prepared.run_dir)
    turns = Counter(row["conversation_id"] for row in prepared.rows())
    assert set(turns.values()) == {2}
    assert 0 < len(turns) < 40


def test_prepare_says_how_large_the_share_is(prepared: Any, capsys: pytest.CaptureFixture[str]) -> None:
    num = prepared.do(prepared.lines(*numbered(20)) | {"weight": 0.5})["prompts"]
    assert f"a.jsonl: {num} of its 20 prompts are in the share that `weight` takes" in capsys.readouterr().err


@pytest.mark.parametrize("weight", [0, -1, 1.5])
def test_a_share_is_more_than_nothing_and_at_most_all(prepared: Any, weight: float) -> None:
    with pytest.raises(UserError, match=r"weight"):
        prepared.config(prepared.lines({"prompt": "Hi"}) | {"weight": weight})


def test_a_folder_of_files_is_part_of_the_fingerprint(prepared: Any) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        prepared.lines({"prompt": f"in {name}"}, name=name)
    source = {"path": f"{prepared.folder}/*.jsonl"}
    assert prepared.do(source)["prompts"] == 2
    fingerprint = prepared.run_dir.manifest("prepare")["fingerprint"]
    assert {f"prepare.file.{prepared.folder}/{name}.jsonl" for name in "ab"} <= fingerprint.keys()
    prepared.lines({"prompt": "in b.jsonl"}, {"prompt": "another"}, name="b.jsonl")
    assert prepared.do(source)["prompts"] == 3


# --- bad rows

BAD_LINES = {
    "malformed": ('{"prompt": "Hi', "malformed JSON"),
    "no prompt column": ('{"text": "Hi"}', r"no prompt is found in it \(it has: text \(text\)\)"),
    "empty": ('{"prompt": " "}', "empty prompt"),
    "too long": (
        json.dumps({"prompt": LONG}),
        r"prompt too long: its \d+ tokens .*generate\.max_tokens=8 .*context of 160",
    ),
    "role": ('{"messages": [{"role": "narrator", "content": "Hi"}]}', "role must be one of"),
    "nothing to answer": ('{"messages": [{"role": "assistant", "content": "Hi"}]}', "no user message to answer"),
    "half a character": ('{"prompt": "Hi \\ud83d"}', "a.jsonl:2: "),
}


@pytest.mark.parametrize(("line", "said"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_row_is_told_with_file_line_and_way_out(prepared: Any, line: str, said: str) -> None:
    source = prepared.file("a.jsonl", '{"prompt": "good"}\n' + line + "\n")
    with pytest.raises(UserError, match=said) as caught:
        prepared.do(source)
    assert str(caught.value).startswith(f"{prepared.folder}/a.jsonl:2: ")
    assert "prepare.bad_rows=skip" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("line", "said"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_row_is_counted_where_rows_are_skipped(prepared: Any, line: str, said: str) -> None:
    source = prepared.file("a.jsonl", f'{{"prompt": "good"}}\n{line}\n{line}\n{{"prompt": "better"}}\n')
    counts = prepared.do(source, bad_rows="skip")
    assert (counts["prompts"], counts["duplicates"], counts["bad_rows"]) == (2, 0, 2)


def test_a_prompt_that_fills_the_context_to_the_last_token_is_taken(prepared: Any) -> None:
    prepared.do(prepared.lines({"prompt": "x"}))
    room = 160 - 8 - len(prepared.rows()[0]["prompt_token_ids"]) + 1
    prepared.run_dir.discard_from("prepare")
    rows = [{"prompt": "x" * room}, {"prompt": "x" * (room + 1)}]
    assert prepared.do(prepared.lines(*rows), bad_rows="skip")["bad_rows"] == 1
    assert [len(row["messages"][0]["content"]) for row in prepared.rows()] == [room]


def test_the_engines_own_shorter_context_counts(prepared: Any) -> None:
    config = prepared.config(prepared.lines({"prompt": "x" * 40}))
    teacher = config.teacher.model_copy(update={"engine": {"max_model_len": 64}})
    with pytest.raises(UserError, match="exceed the teacher's context of 64"):
        prepare.run(config.model_copy(update={"teacher": teacher}), prepared.run_dir)


@pytest.mark.parametrize("lines", ["", "\n\n"], ids=["empty", "blank"])
def test_a_source_without_prompts_is_refused(prepared: Any, lines: str) -> None:
    with pytest.raises(UserError, match=r"the sources hold no prompt .*: there is no row in .*a\.jsonl$"):
        prepared.do(prepared.file("a.jsonl", lines))


def test_a_source_of_which_every_row_is_skipped_says_why(prepared: Any) -> None:
    rows = [
        {"prompt": None},
        {"prompt": " "},
        {"prompt": "x" * 300},
        {"prompt": "x" * 200},
        {"text": "Hi"},
        {"prompt": 5},
    ]
    with pytest.raises(UserError, match="the sources hold no prompt") as caught:
        prepared.do(prepared.lines(*rows), bad_rows="skip")
    line = str(caught.value).replace(f"{prepared.folder}/", "")
    assert (
        ": 6 rows were read, and all left out: 6 bad rows (2 × empty prompt: there is nothing in column 'prompt'"
        in line
    )
    assert "(a.jsonl:3); 1 × no prompt is found in it" in line
    assert line.endswith("(a.jsonl:5); 1 × other reasons)")


def test_rows_that_are_skipped_are_told_with_their_reasons(prepared: Any, capsys: pytest.CaptureFixture[str]) -> None:
    prepared.do(prepared.lines({"prompt": "Hi"}, {"prompt": ""}), bad_rows="skip")
    assert "prepare: 1 row skipped: 1 × empty prompt" in capsys.readouterr().err


def test_a_named_column_that_no_row_has_is_told(prepared: Any, capsys: pytest.CaptureFixture[str]) -> None:
    source = prepared.lines({"prompt": "a", "topic": "x"}, {"prompt": "b"})
    prepared.do({**source, "category": "topics"})
    assert "no row has the column 'topics' that `category` names, only prompt, topic; did you mean topic?" in (
        capsys.readouterr().err.replace("\n", " ")
    )
    prepared.run_dir.discard_from("prepare")
    prepared.do({**source, "category": "topic"})
    assert "no row has" not in capsys.readouterr().err


def test_a_template_of_a_parquet_file_meets_nulls_and_dates_that_python_lacks(prepared: Any) -> None:
    table = {"ask": ["Why?", "How?"], "note": [None, "Briefly."], "time": pa.array([10**18] * 2, pa.timestamp("us"))}
    pq.write_table(pa.table(table), prepared.folder / "a.parquet")
    (prepared.folder / "t.jinja").write_text("{{ ask }}|{{ note }}")
    prepared.do({"path": f"{prepared.folder}/a.parquet", "template": f"{prepared.folder}/t.jinja"})
    assert [row["messages"][0]["content"] for row in prepared.rows()] == ["Why?|", "How?|Briefly."]


@pytest.mark.parametrize(
    ("num", "share", "told"),
    [
        (40, 0.1, "raise prepare.held_out_frac from 0.1 to 0.5, or give more prompts"),
        (15, 0.1, "give more prompts, about 200 at prepare.held_out_frac=0.1"),
        (
            40,
            0.0,
            "none of its 40 prompts is held out, and intervals need about 20; raise prepare.held_out_frac from 0",
        ),
        (200, 0.3, ""),
    ],
)
def test_too_few_held_out_prompts_are_told_with_what_helps(
    prepared: Any, capsys: pytest.CaptureFixture[str], num: int, share: float, told: str
) -> None:
    prepared.do(prepared.lines(*numbered(num)), held_out_frac=share)
    said = " ".join(capsys.readouterr().err.split())
    assert told in said
    assert ("intervals need" in said) == bool(told)
    assert "1 prompts" not in said


def test_the_shipped_prompts_are_not_taken_in_silence(
    prepared: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup.Model, "context_tokens", lambda self: 1 << 16)
    config = prepared.config(
        {"path": "prompts/seeds.jsonl", "licence": "apache-2.0"}, max_prompts=30, held_out_frac=0.5
    )
    prepare.run(config, prepared.run_dir)
    assert "the prompts are the shipped ones, prompts/seeds.jsonl; name your own in prepare.sources" in " ".join(
        capsys.readouterr().err.split()
    )


def test_a_corpus_that_is_held_out_altogether_is_refused(prepared: Any) -> None:
    with pytest.raises(UserError, match=r"none is left to train on; .*prepare\.held_out_frac"):
        prepared.do(prepared.lines({"prompt": "Hi"}), held_out_frac=0.999999)


@pytest.mark.parametrize("missing", [{"path": "none.jsonl"}, {"path": "a.jsonl", "template": "none.jinja"}])
def test_a_missing_file_is_named_before_anything_is_written(prepared: Any, missing: dict[str, str]) -> None:
    prepared.lines({"prompt": "Hi"})
    source = {key: str(prepared.folder / name) for key, name in missing.items()}
    with pytest.raises(UserError, match=r"none\.\w+: no such"):
        prepared.do(source)
    assert not prepared.run_dir.path.exists()


def test_a_prompt_that_the_chat_template_refuses_is_told_with_its_place(
    prepared: Any, other_teacher: Callable[[str], Path]
) -> None:
    refusing = "{% if messages[0].content == 'Hi' %}{{ raise_exception('Say more!') }}{% endif %}"
    prepared.teacher = other_teacher(refusing + "{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(UserError, match=r"chat template refuses a prompt: Say more!") as caught:
        prepared.do(prepared.lines({"prompt": "Hi"}))
    assert f"{prepared.folder}/a.jsonl:1: " in str(caught.value)


@pytest.mark.parametrize("bad_rows", ["error", "skip"])
def test_a_teacher_without_a_chat_template_is_no_fault_of_the_rows(
    prepared: Any, other_teacher: Callable[[str], Path], bad_rows: str
) -> None:
    prepared.teacher = other_teacher("")
    with pytest.raises(UserError, match="no chat template; use an instruction-tuned model") as caught:
        prepared.do(prepared.lines({"prompt": "Hi"}), bad_rows=bad_rows)
    assert "prepare.bad_rows=skip" not in str(caught.value)


def test_a_mended_source_goes_on_with_the_same_command(prepared: Any) -> None:
    with pytest.raises(UserError, match="malformed JSON"):
        prepared.do(prepared.file("a.jsonl", '{"prompt": "Hi'))
    assert prepared.do(prepared.lines({"prompt": "Hi"}))["prompts"] == 1


def test_the_way_out_that_a_bad_row_names_is_one(prepared: Any) -> None:
    source = prepared.file("a.jsonl", '{"prompt": "Hi"}\n{"prompt": "')
    with pytest.raises(UserError, match=r"prepare\.bad_rows=skip leaves such rows out"):
        prepared.do(source)
    assert prepared.do(source, bad_rows="skip")["prompts"] == 1


# --- as a user runs it


def retort(prepared: Any, *sources: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    path = prepared.folder / "trial.yaml"
    path.write_text(config_module.dump(prepared.config(*sources)), encoding="utf-8")
    command = [sys.executable, "-m", "pipeline", "prepare", str(path)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_malformed_line_is_one_line_for_the_user(prepared: Any) -> None:
    refused = retort(prepared, prepared.file("a.jsonl", '{"prompt": "Hi"}\n{"prompt": "'))
    assert refused.returncode == 2
    [line] = refused.stderr.splitlines()
    assert line.startswith(f"error: {prepared.folder}/a.jsonl:2: malformed JSON")
    assert not refused.stdout
    assert {path.name for path in prepared.run_dir.path.iterdir()} == {".lock", "config.yaml", "prepare"}
