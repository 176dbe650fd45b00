"""Prompts that prepare leaves out for what they are like, and the lists that name them."""

import json
import random
from typing import Any

import pytest
from support.planted import EDITS, ITEMS, SEEDS, change_a_word, prose

from pipeline.errors import UserError
from pipeline.models import lookup
from pipeline.text.words import words

ROOMY = 1 << 16  # of the teacher's context, in tokens that are bytes


@pytest.fixture(autouse=True)
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup.Model, "context_tokens", lambda self: ROOMY)


def listed(prepared: Any, name: str) -> list[dict[str, Any]]:
    path = prepared.run_dir.path / "prepare" / name
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def texts(prepared: Any, split: str | None = None) -> list[str]:
    return [row["messages"][-1]["content"] for row in prepared.rows() if split in (None, row["split"])]


def source(prepared: Any, prompts: list[str]) -> dict[str, Any]:
    return prepared.lines(*({"prompt": prompt} for prompt in prompts))


# --- near duplicates


def test_200_planted_near_duplicates_are_left_out_and_nothing_else(prepared: Any) -> None:
    draw = random.Random(4)
    originals = [prose(draw, draw.randint(90, 200)) for _ in range(200)]
    edited = [EDITS[n % len(EDITS)](draw, text) for n, text in enumerate(originals)]
    counts = prepared.do(source(prepared, [*originals, *SEEDS, *edited]))
    assert (counts["near_duplicates"], counts["prompts"]) == (200, 200 + len(SEEDS))
    assert texts(prepared) == [*originals, *SEEDS]
    ids = {row["messages"][-1]["content"]: row["prompt_id"] for row in prepared.rows()}
    rows = listed(prepared, "near_duplicates.jsonl")
    assert [row["text"] for row in rows] == edited
    assert [row["twin_id"] for row in rows] == [ids[text] for text in originals]
    assert all(row["jaccard"] >= 0.72 and not row["across_split"] for row in rows)
    assert rows[0]["source"] == f"{prepared.folder}/a.jsonl:{201 + len(SEEDS)}"


def test_no_prompt_to_train_on_is_nearly_a_held_out_one(prepared: Any) -> None:
    """Though some of the twins would be on the other side by their own hash; whichever comes first stays."""
    draw = random.Random(6)
    originals = [prose(draw, 100) for _ in range(120)]
    pairs = [text for original in originals for text in (original, change_a_word(draw, original))]
    counts = prepared.do(source(prepared, pairs), held_out_frac=0.3)
    assert counts["near_duplicates"] == 120
    assert texts(prepared) == originals
    assert any(row["across_split"] for row in listed(prepared, "near_duplicates.jsonl"))
    assert len(texts(prepared, "train")) < 120


def test_two_asks_about_one_passage_stay_where_both_are_on_one_side(prepared: Any) -> None:
    passages = [prose(random.Random(n), 90) for n in range(40)]
    asks = [f"{ask}:\n{passage}" for passage in passages for ask in ("Translate into German", "Translate into French")]
    together = source(prepared, asks)
    assert prepared.do(together)["near_duplicates"] == 0
    prepared.run_dir.discard_from("prepare")
    counts = prepared.do(together, held_out_frac=0.4)
    rows = listed(prepared, "near_duplicates.jsonl")
    assert 0 < counts["near_duplicates"] == len(rows) < 40
    assert all(row["across_split"] for row in rows)
    sides = {text.partition("\n")[2] for text in texts(prepared, "train")}
    assert sides.isdisjoint(text.partition("\n")[2] for text in texts(prepared, "held_out"))


@pytest.mark.parametrize("between", [" ", "\n\n"], ids=["one paragraph", "blank line"])
def test_one_instruction_before_every_message_leaves_all_of_them_on_both_sides(prepared: Any, between: str) -> None:
    draw = random.Random(6)
    instruction = prose(draw, 70)
    asked = [f"{instruction}{between}{prose(draw, draw.randint(15, 40))}" for _ in range(200)]
    copies = [asked[n].upper() for n in range(0, 200, 20)]
    counts = prepared.do(source(prepared, [*asked, *copies]), held_out_frac=0.1)
    assert (counts["prompts"], counts["near_duplicates"]) == (200, 10)
    assert counts["held_out"] >= 10


def test_what_prompts_share_is_told_in_any_order_of_the_rows(prepared: Any) -> None:
    draw = random.Random(6)
    instruction = prose(draw, 70)
    asked = [f"{instruction} {prose(draw, 20)}" for _ in range(60)]
    assert prepared.do(source(prepared, asked + SEEDS))["near_duplicates"] == 0
    prepared.run_dir.discard_from("prepare")
    assert prepared.do(source(prepared, SEEDS + asked[::-1]))["near_duplicates"] == 0


def test_no_row_is_read_for_what_prompts_share_that_is_not_needed(prepared: Any) -> None:
    given = prepared.file("a.jsonl", '{"prompt": "Why?"}\n{"prompt": "How?"}\nno JSON\n')
    assert prepared.do(given, max_prompts=2)["prompts"] == 2
    prepared.run_dir.discard_from("prepare")
    with pytest.raises(UserError, match=r"a\.jsonl:3: malformed JSON"):
        prepared.do(given)


def test_held_out_prompts_that_were_left_out_are_told_with_the_cause(
    prepared: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten copies but for punctuation of each of thirty prompts: all but one of each go."""
    texts = [f"{prose(random.Random(n), 30)}{'!' * k}" for n in range(30) for k in range(10)]
    prepared.do(prepared.lines(*({"prompt": text} for text in texts)), held_out_frac=0.2)
    lost = prepared.run_dir.manifest("prepare")["held_out_left_out"]["near_duplicates"]
    said = " ".join(capsys.readouterr().err.split())
    assert "270 of the 300 rows of" in said
    assert "(90%) are left out, as near duplicates of earlier prompts: prepare/near_duplicates.jsonl lists them" in said
    assert f"prepare left out {lost} as near duplicates of earlier prompts" in said
    assert lost > 40


def test_a_long_system_message_makes_no_duplicates(prepared: Any) -> None:
    prompts = source(prepared, ["Name a river.", "Which lake is deepest of all?"])
    assert prepared.do(prompts | {"system": prose(random.Random(1), 200)})["near_duplicates"] == 0


def test_another_question_after_the_same_turns_stays(prepared: Any) -> None:
    turns = [
        {"role": "user", "content": prose(random.Random(1), 60)},
        {"role": "assistant", "content": prose(random.Random(2), 90)},
    ]
    asked = [
        [*turns, {"role": "user", "content": text}] for text in ("Shorter, please.", "Now as a list.", "shorter please")
    ]
    counts = prepared.do(prepared.lines(*({"messages": messages} for messages in asked)))
    assert (counts["prompts"], counts["near_duplicates"]) == (2, 1)


def test_a_prompt_that_is_left_out_does_not_count_among_those_wanted(prepared: Any) -> None:
    text = prose(random.Random(1), 60)
    counts = prepared.do(source(prepared, [text, text + " Thanks.", "a", "b", "c"]), max_prompts=3)
    assert (counts["prompts"], counts["near_duplicates"]) == (3, 1)


def test_near_duplicates_stay_where_the_check_is_off(prepared: Any) -> None:
    text = prose(random.Random(1), 60)
    counts = prepared.do(source(prepared, [text, text + " Thanks."]), near_duplicates=None)
    assert (counts["prompts"], counts["near_duplicates"]) == (2, 0)
    assert prepared.run_dir.manifest("prepare")["files"][-1]["name"] == "prompts-00000.parquet"


def test_the_threshold_is_the_configs(prepared: Any) -> None:
    draw = random.Random(1)
    text = prose(draw, 100)
    both = source(prepared, [text, f"{text} {prose(draw, 14)}"])  # a Jaccard of 0.87
    assert prepared.do(both, near_duplicates=0.95)["near_duplicates"] == 0
    prepared.run_dir.discard_from("prepare")
    assert prepared.do(both)["near_duplicates"] == 1


# --- evaluation items


def leaked(draw: random.Random) -> list[str]:
    """50 of the shipped items inside longer prompts: half of them verbatim, half with a word changed."""
    long = [item for item in ITEMS if len(words(item)) >= 15]
    chosen = [*draw.sample(ITEMS, 25), *(change_a_word(draw, item) for item in draw.sample(long, 25))]
    return [f"{prose(draw, 30)} {item} {prose(draw, 30)}" for item in chosen]


def test_50_planted_evaluation_items_are_left_out_and_nothing_else(prepared: Any) -> None:
    planted = leaked(random.Random(8))
    counts = prepared.do(source(prepared, [*planted, *SEEDS]))
    assert (counts["contaminated"], counts["prompts"]) == (50, len(SEEDS))
    assert texts(prepared) == SEEDS
    rows = listed(prepared, "contamination.jsonl")
    assert {row["text"] for row in rows} == set(planted)
    assert {row["item_text"] for row in rows} <= set(ITEMS)
    assert rows[0]["source"] == f"{prepared.folder}/a.jsonl:1"
    assert rows[0]["item"].startswith("prompts/chat_eval.jsonl:")


def test_an_item_of_a_set_that_the_config_names_is_left_out(prepared: Any) -> None:
    question = "How many eggs does the farmer sell at the market on Tuesday if two are broken?"
    prepared.lines({"question": question, "answer": "12"}, name="benchmark.jsonl")
    sets = [{"path": str(prepared.folder / "benchmark.jsonl")}]
    prompts = source(prepared, [f"Hello! {question}", "How many eggs are in a dozen?"])
    assert prepared.do(prompts, decontaminate=sets)["contaminated"] == 1
    [row] = listed(prepared, "contamination.jsonl")
    assert (row["item_text"], row["covered_frac"]) == (question, 1)


def test_items_are_kept_where_no_set_is_held_against_them(prepared: Any) -> None:
    assert prepared.do(source(prepared, ITEMS[:20]), decontaminate=[])["contaminated"] == 0


def test_a_missing_set_is_told_before_anything_is_written(prepared: Any) -> None:
    with pytest.raises(UserError, match=r"none\.jsonl: no such file .*\(evaluation items, prepare\.decontaminate\)"):
        prepared.do(source(prepared, ["Hi"]), decontaminate=[{"path": "none.jsonl"}])
    assert not prepared.run_dir.path.exists()


def test_a_set_whose_content_changed_is_refused_by_name(prepared: Any) -> None:
    sets = [{"path": str(prepared.folder / "b.jsonl")}]
    prepared.lines({"question": "Why is it so?"}, name="b.jsonl")
    prompts = source(prepared, ["Hi"])
    prepared.do(prompts, decontaminate=sets)
    prepared.lines({"question": "Why is it not so?"}, name="b.jsonl")
    with pytest.raises(UserError, match=r"made with other settings: prepare\.decontaminate\..*b\.jsonl was "):
        prepared.do(prompts, decontaminate=sets)


def test_the_lists_are_files_of_the_stage_and_made_anew_with_it(prepared: Any) -> None:
    text = prose(random.Random(1), 60)
    prompts = source(prepared, [text, text + " Thanks.", ITEMS[0]])
    prepared.do(prompts)
    names = [record["name"] for record in prepared.run_dir.manifest("prepare")["files"]]
    assert names == ["prompts-00000.parquet", "contamination.jsonl", "near_duplicates.jsonl"]
    (prepared.run_dir.path / "prepare/prompts-00000.parquet").unlink()
    prepared.do(prompts)
    assert len(listed(prepared, "near_duplicates.jsonl")) == len(listed(prepared, "contamination.jsonl")) == 1
