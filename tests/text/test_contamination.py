"""Evaluation items that a text repeats: what is found, what is not, and how the items are read."""

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.planted import ITEMS, SEEDS, change_a_word, change_case, change_punctuation, prose

import pipeline
from pipeline.config import EvaluationSet, Privacy, validate
from pipeline.errors import UserError
from pipeline.eval_sets import probe_set
from pipeline.text.contamination import (
    MAX_NOTED,
    EvaluationItem,
    EvaluationItems,
    Hit,
    content_hashes,
    load,
    ngram_words,
    rows,
    sets_of,
)
from pipeline.text.words import words

PROBES = Path(pipeline.__file__).parent.parent / "prompts/risks.jsonl"
EDITABLE_WORDS = 15  # from here on an item is found with a word changed, whichever it is


def items(*texts: str) -> EvaluationItems:
    return EvaluationItems(EvaluationItem(f"eval:{number}", text) for number, text in enumerate(texts))


def hits(held: EvaluationItems, text: str) -> list[Hit]:
    return held.hits(words(text))


def rules(item: str, text: str) -> list[str]:
    return [hit.rule for hit in hits(items(item), text)]


def numbered(count: int) -> str:
    """So many words, none twice."""
    return " ".join(f"word{n}" for n in range(count))


# --- what is found


@pytest.mark.parametrize("edit", [None, change_punctuation, change_case], ids=["verbatim", "punctuation", "case"])
def test_every_shipped_item_is_found_inside_a_longer_text(edit: Any) -> None:
    draw = random.Random(1)
    held = items(*ITEMS)
    for number, item in enumerate(ITEMS):
        leaked = edit(draw, item) if edit else item
        told = hits(held, f"{prose(draw, 80)} {leaked} {prose(draw, 80)}")
        assert [hit.item.place for hit in told] == [f"eval:{number}"], item


def test_every_item_of_15_words_and_more_is_found_with_any_one_word_changed() -> None:
    long = [item for item in ITEMS if len(words(item)) >= EDITABLE_WORDS]
    assert len(long) >= 50
    held = items(*long)
    for number, item in enumerate(long):
        for place in range(len(item.split(" "))):
            pieces = item.split(" ")
            pieces[place] = "otherwise"
            assert f"eval:{number}" in [hit.item.place for hit in hits(held, "So: " + " ".join(pieces))], (item, place)


def test_no_shipped_prompt_is_taken_for_an_item() -> None:
    held = items(*ITEMS)
    assert [seed for seed in SEEDS if hits(held, seed)] == []


def test_prose_of_the_same_words_is_no_item() -> None:
    held, draw = items(*ITEMS), random.Random(2)
    assert [text for text in (prose(draw, 200) for _ in range(300)) if hits(held, text)] == []


@pytest.mark.parametrize(("shared", "found"), [(12, []), (13, ["13-gram"]), (40, ["13-gram"])])
def test_a_13_gram_is_enough_however_long_the_item(shared: int, found: list[str]) -> None:
    text = f"before {' '.join(numbered(200).split()[50 : 50 + shared])} after"
    assert rules(numbered(200), text) == found


@pytest.mark.parametrize(("num", "found"), [(9, []), (10, ["8-grams"])])
def test_half_of_the_8_grams_are_enough(num: int, found: list[str]) -> None:
    """107 words have 100 of them; a run of 12 words has 5, and no 13-gram."""
    pieces = numbered(107).split()
    assert rules(numbered(107), " x ".join(" ".join(pieces[5 * n : 5 * n + 12]) for n in range(num))) == found


@pytest.mark.parametrize(
    ("num_words", "length"), [(5, 5), (7, 7), (8, 8), (14, 8), (15, 5), (18, 6), (23, 7), (24, 8), (90, 8)]
)
def test_shorter_items_go_by_shorter_ngrams(num_words: int, length: int) -> None:
    assert ngram_words(num_words) == length


def test_an_item_of_five_to_seven_words_is_found_whole_or_not_at_all() -> None:
    item = "What is the capital of Australia?"
    assert rules(item, "Tell me: what is the capital of Australia, and why?") == ["6-grams"]
    assert rules(item, "What is the capital of Austria?") == []


def test_an_item_of_fewer_words_is_found_where_it_is_the_whole_text() -> None:
    assert rules("Why so?", "why so") == ["whole"]
    assert rules("Why so?", "Why so late?") == rules("Why so?", "But why so many, you ask?") == []
    assert hits(items("???"), "!!!") == []


def test_the_share_that_is_covered_is_told() -> None:
    [hit] = hits(items(numbered(107)), " ".join(numbered(107).split()[:57]))
    assert (hit.rule, hit.covered_frac) == ("8-grams", 0.5)
    [hit] = hits(items(numbered(107)), " ".join(numbered(107).split()[:27]))
    assert (hit.rule, hit.covered_frac) == ("13-gram", 0.2)
    assert hit.row() == {"item": "eval:0", "item_text": numbered(107), "rule": "13-gram", "covered_frac": 0.2}


def test_an_ngram_that_a_text_repeats_counts_once() -> None:
    pieces = numbered(30).split()
    assert rules(numbered(30), " x ".join([" ".join(pieces[:12])] * 9)) == []


def test_items_that_share_their_ngrams_are_both_told() -> None:
    assert len(hits(items(numbered(30), numbered(30) + " more"), numbered(30))) == 2


def test_without_items_nothing_is_found() -> None:
    assert len(items()) == 0
    assert hits(items(), numbered(50)) == []


# --- how items are read


def write(path: Path, *rows: dict[str, Any]) -> EvaluationSet:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return EvaluationSet(path=str(path))


def found(source: EvaluationSet, text: str) -> list[tuple[str, str]]:
    return [(hit.item.place.rpartition("/")[2], hit.item.text) for hit in hits(load([source]), text)]


ONE, TWO = (
    "Which river runs through the middle of Prague today?",
    "And which one runs through the middle of Vienna then?",
)


@pytest.mark.parametrize(
    "row",
    [
        {"turns": [ONE, TWO], "id": "a"},
        {
            "messages": [
                {"role": "user", "content": ONE},
                {"role": "assistant", "content": "x"},
                {"role": "user", "content": TWO},
            ]
        },
        {"question": ONE, "prompt": TWO},
    ],
    ids=["turns", "messages", "columns"],
)
def test_each_text_of_a_row_is_an_item(tmp_path: Path, row: dict[str, Any]) -> None:
    source = write(tmp_path / "a.jsonl", {"text": "Something else altogether, that no one asks."}, row)
    assert len(load([source])) == 3
    assert found(source, f"Well. {ONE}") == [("a.jsonl:2", ONE)]
    assert found(source, TWO) == [("a.jsonl:2", TWO)]


def test_an_assistants_message_is_no_item(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": ONE}, {"role": "assistant", "content": TWO}]}
    assert found(write(tmp_path / "a.jsonl", row), TWO) == []


def test_files_of_every_kind_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"{ONE}\n\n{TWO}\n")
    (tmp_path / "a.csv").write_text(f'question,answer\n"{TWO}",x\n')
    pq.write_table(pa.table({"turns": [[ONE], [TWO]]}), tmp_path / "a.parquet")
    read = load([EvaluationSet(path=str(tmp_path / f"a.{kind}")) for kind in ("txt", "csv", "parquet")])
    assert [hit.item.place.rpartition("/")[2] for hit in hits(read, TWO)] == ["a.txt:3", "a.csv:2", "a.parquet:2"]


def test_a_local_dataset_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "benchmark"
    folder.mkdir()
    write(folder / "test.jsonl", {"question": ONE})
    assert len(hits(load([EvaluationSet(dataset=str(folder))]), ONE)) == 1


def test_columns_and_limit_are_the_sets_own(tmp_path: Path) -> None:
    path = str(tmp_path / "a.jsonl")
    write(tmp_path / "a.jsonl", {"goal": ONE, "question": "unused"}, {"goal": TWO})
    held = load([EvaluationSet(path=path, columns=("goal",), limit=1)])
    assert (len(held), len(hits(held, ONE)), len(hits(held, TWO))) == (1, 1, 0)


def test_a_row_without_text_is_told_with_its_place_and_columns(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", {"question": ONE}, {"goal": TWO, "question": ""})
    with pytest.raises(
        UserError, match=r"a\.jsonl:2: no text in any of the columns turns, .*\(the row has: goal, question\)"
    ):
        load([source])


def test_a_malformed_row_is_told_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"question": ')
    with pytest.raises(UserError, match=r"a\.jsonl:1: malformed JSON .*\(decontaminate\)"):
        load([EvaluationSet(path=str(tmp_path / "a.jsonl"))])


def test_a_missing_file_is_told_with_its_setting() -> None:
    with pytest.raises(UserError, match=r"none\.jsonl: no such file .*\(evaluation items, filter\.decontaminate\)"):
        content_hashes([EvaluationSet(path="none.jsonl")], "filter.decontaminate")


def test_items_come_in_any_container(tmp_path: Path) -> None:
    import gzip

    (tmp_path / "set").mkdir()
    (tmp_path / "set/a.json.gz").write_bytes(gzip.compress(b'[{"question": "What is the capital of France?"}]'))
    given = [EvaluationSet(path=str(tmp_path / "set"))]
    assert len(load(given)) == 1
    assert set(content_hashes(given, "prepare.decontaminate")) == {f"{tmp_path}/set/a.json.gz"}


def test_the_hashes_are_of_files_and_local_folders(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", {"question": ONE})
    sets = [
        EvaluationSet(path=str(tmp_path / "a.jsonl")),
        EvaluationSet(dataset=str(tmp_path)),
        EvaluationSet(dataset="x"),
    ]
    before = content_hashes(sets, "prepare.decontaminate")
    assert list(before) == [str(tmp_path / "a.jsonl"), str(tmp_path)]
    write(tmp_path / "a.jsonl", {"question": TWO})
    after = content_hashes(sets, "prepare.decontaminate")
    assert all(before[name] != after[name] for name in before)


def test_a_planted_word_is_changed() -> None:
    assert change_a_word(random.Random(0), "one two three").split().count("otherwise") == 1


# --- what is no item's own, and what nobody sees


def test_an_instruction_that_many_items_share_contaminates_nothing() -> None:
    shared = "Read the passage below with care and answer the question after it with one word of the passage alone."
    held = items(*(f"{shared} {numbered(16).replace('word', f'item{n}x')}" for n in range(40)))
    assert hits(held, f"{shared} Who lit the lamp at Skerry Point?") == []
    assert [hit.item.place for hit in hits(held, f"Why {numbered(16).replace('word', 'item7x')}")] == ["eval:7"]


def test_an_item_that_is_shared_as_a_whole_is_held_all_the_same() -> None:
    held = items(*[numbered(20)] * 30)
    found = hits(held, numbered(20))
    assert len(found) == 30
    lines = list(rows(found))
    assert len(lines) == MAX_NOTED
    assert {line["num_items"] for line in lines} == {30}


@pytest.mark.parametrize("mark", ["\u200b", "\u00ad", "\u2060", "\ufeff"])
def test_characters_that_nobody_sees_and_underscores_hide_no_item(mark: str) -> None:
    item = numbered(20)
    assert rules(item, item.replace("word3", f"wo{mark}rd3").replace("word9", f"{mark}word9")) == rules(item, item)
    assert rules(item, item.replace("word5", "_word5_")) == rules(item, item)


def test_half_a_surrogate_pair_in_an_item_can_be_written_down(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": f"\ud83d {numbered(20)}"}) + "\n")
    [hit] = hits(load([EvaluationSet(path=str(tmp_path / "a.jsonl"))]), numbered(20))
    assert json.dumps(hit.row(), ensure_ascii=False).encode()


def test_a_runs_own_chat_set_tasks_and_probes_are_held_against_its_prompts_too() -> None:
    sets = {"chat_set": "mine.jsonl", "tasks": {"path": "tasks.jsonl"}, "risks": {"path": "probes.jsonl"}}
    own = validate({"name": "a", "evaluate": sets}, "test")
    shipped = ["prompts/chat_eval.jsonl", "prompts/tasks.jsonl", "prompts/risks.jsonl"]
    assert [each.path for each in sets_of(own)] == [*shipped, "mine.jsonl", "tasks.jsonl", "probes.jsonl"]
    assert sets_of(validate({"name": "a"}, "test")) == own.prepare.decontaminate
    without = {"name": "a", "prepare": {"decontaminate": []}, "evaluate": {"chat_set": "mine.jsonl"}}
    assert sets_of(validate(without, "test")) == ()


def test_both_prompts_of_every_shipped_pair_are_found() -> None:
    held = load([EvaluationSet(path=str(PROBES))])
    pairs = [probe for probe in probe_set.load(PROBES, None) if probe.category == "counterfactual"]
    asked = [prompt for probe in pairs for prompt in probe.prompts()]
    assert len(asked) == 2 * len(pairs) > 60
    assert [prompt for prompt in asked if prompt not in [hit.item.text for hit in hits(held, prompt)]] == []


def test_a_pair_that_is_no_probe_is_told_with_its_place(tmp_path: Path) -> None:
    pair = {"id": "p", "category": "counterfactual", "turns": [ONE], "swaps": [{"who": "Ann"}]}
    source = write(tmp_path / "a.jsonl", {"question": TWO}, pair)
    with pytest.raises(UserError, match=r"a\.jsonl:2: not a probe item: swaps: two, .*\(decontaminate\)"):
        load([source])


def test_another_benchmarks_swaps_are_no_pair(tmp_path: Path) -> None:
    row = {"turns": [ONE], "swaps": ["a", "b"], "category": "rivers"}
    assert found(write(tmp_path / "a.jsonl", row), ONE) == [("a.jsonl:1", ONE)]


def test_an_item_with_personal_data_is_found_in_a_prompt_without_it(tmp_path: Path) -> None:
    item = "Write to anna.k@posteo.de and ask her whether the boat to the island still leaves at nine on Sundays."
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": item}) + "\n")
    held = load([EvaluationSet(path=str(tmp_path / "a.jsonl"))], Privacy())
    assert hits(held, item)
    assert hits(held, item.replace("anna.k@posteo.de", "<EMAIL>"))
    short = "Write to anna.k@posteo.de please."
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": short}) + "\n")
    held = load([EvaluationSet(path=str(tmp_path / "a.jsonl"))], Privacy())
    assert hits(held, "Write to <EMAIL> please.")
