"""Answers held against evaluation items and against one another, through the filter stage."""

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.planted import EDITS, ITEMS, SEEDS, change_a_word, prose

from pipeline import filter as filter_stage
from pipeline.config import Config, validate
from pipeline.errors import UserError
from pipeline.records import PROMPTS, RESPONSES
from pipeline.run import scratch
from pipeline.run.rundir import RunDir
from pipeline.text.words import words

CHAT_SET = {"path": "prompts/chat_eval.jsonl"}
END = 1
Row = dict[str, Any]


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: Path) -> Path:
    """A model's folder with a tokenizer, and no weights in its weights."""
    from safetensors.numpy import save_file
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("teacher")
    AutoTokenizer.from_pretrained(byte_tokenizer).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 258}))
    save_file({}, folder / "model.safetensors")
    return folder


class Answered:
    """A run whose prompts and answers a test gives: `[(prompt, answer)]`, or a list of answers for a prompt."""

    def __init__(self, folder: Path, teacher: Path) -> None:
        self.folder, self.teacher, self.run_dir = folder, teacher, RunDir(folder / "trial")

    def config(self, **settings: Any) -> Config:
        data = {"name": "trial", "runs_dir": str(self.folder), "teacher": {"model": str(self.teacher)}}
        return validate({**data, "filter": {"drop_broken_json": False, **settings}}, "test")

    def do(self, *rows: tuple[str, str | list[str]], sets: Any = (CHAT_SET,), **settings: Any) -> dict[str, Row]:
        """The decisions; prompt n is `p<n>`, its answers `p<n>-0`, `p<n>-1`, ..."""
        self.commit(rows, sets)
        filter_stage.run(self.config(**settings), self.run_dir)
        files = sorted((self.run_dir.path / "filter").glob("decisions-*.parquet"))
        return {row["response_id"]: row for path in files for row in pq.read_table(path).to_pylist()}

    def commit(self, rows: tuple[tuple[str, str | list[str]], ...], sets: Any) -> None:
        """prepare and generate, in files of a few rows, so that prompts and answers are cut differently."""
        prompts, answers = [], []
        for number, (prompt, given) in enumerate(rows):
            system = {"role": "system", "content": "Be as brief as you can be, and be kind to everyone who asks."}
            messages = [system, {"role": "user", "content": prompt}]
            prompts.append({"prompt_id": f"p{number}", "messages": messages})
            for sample, text in enumerate([given] if isinstance(given, str) else given):
                answers.append(self.answer(f"p{number}", sample, text))
        prepared = {} if sets is None else {"prepare.decontaminate": self.dumped(sets)}
        self.stage("prepare", prepared, prompts, PROMPTS, 7)
        made_for = {"teacher.model": str(self.teacher), "teacher.revision": None}
        self.stage("generate", made_for, answers, RESPONSES, 5)

    def answer(self, prompt_id: str, sample: int, text: str) -> Row:
        ids = {"response_id": f"{prompt_id}-{sample}", "prompt_id": prompt_id, "sample": sample, "split": "train"}
        return {**ids, "text": text, "finish_reason": "stop", "token_ids": [7, 8, END], "reasoning_tokens": 0}

    def dumped(self, sets: Any) -> list[Row]:
        config = validate({"name": "trial", "prepare": {"decontaminate": list(sets)}}, "test")
        return [each.model_dump(mode="json") for each in config.prepare.decontaminate]

    def stage(self, name: str, made_for: Row, rows: list[Row], schema: pa.Schema, size: int) -> None:
        stage = self.run_dir.begin(name, self.config(), made_for)
        paths = []
        for start in range(0, len(rows), size):
            paths.append(stage.path / f"{name}-{start:05d}.parquet")
            stage.commit(pa.Table.from_pylist(rows[start : start + size], schema=schema), paths[-1].name)
        stage.finish(paths, {})

    def listed(self, name: str) -> list[Row]:
        path = self.run_dir.path / "filter" / name
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


@pytest.fixture
def answered(tmp_path: Path, teacher: Path) -> Answered:
    return Answered(tmp_path, teacher)


def reasons(decisions: dict[str, Row]) -> dict[str, list[str]]:
    return {name: row["reasons"] for name, row in decisions.items() if row["reasons"]}


# --- near duplicates


def test_200_planted_near_duplicates_are_dropped_and_nothing_else(answered: Answered) -> None:
    draw = random.Random(9)
    originals = [(prompt, prose(draw, draw.randint(90, 200))) for prompt in SEEDS[:300]]
    edited = [(prompt, EDITS[n % len(EDITS)](draw, text)) for n, (prompt, text) in enumerate(originals[:200])]
    decisions = answered.do(*originals, *edited)
    assert reasons(decisions) == {f"p{300 + n}-0": ["near_duplicate"] for n in range(200)}
    twins = {row["response_id"]: row["twin_id"] for row in answered.listed("near_duplicates.jsonl")}
    assert twins == {f"p{300 + n}-0": f"p{n}-0" for n in range(200)}
    scores = [dict(row["scores"])["near_duplicate"] for name, row in decisions.items() if name in twins]
    assert all(0.72 <= score <= 1 for score in scores)


def test_the_same_short_answer_to_other_prompts_stays(answered: Answered) -> None:
    asked = [(prompt, "Yes.") for prompt in SEEDS[:50]] + [(prompt, "I think that it is so.") for prompt in SEEDS[:50]]
    assert reasons(answered.do(*asked)) == {}


def test_a_corpus_of_one_task_loses_only_what_is_nearly_there_already(answered: Answered) -> None:
    """One instruction, and few answers: a label, or a frame with a word filled in."""
    draw = random.Random(4)
    instruction, frame = prose(draw, 70), prose(draw, 60)
    asked = [f"{instruction} {prose(draw, 15)}" for _ in range(60)]
    given = ["positive"] * 20 + [frame] * 20 + [f"{frame} {'yes' if n % 2 else 'no'}" for n in range(20)]
    copies = [(prompt.upper(), answer) for prompt, answer in zip(asked[::10], given[::10], strict=True)]
    decisions = answered.do(*zip(asked, given, strict=True), *copies)
    assert reasons(decisions) == {f"p{60 + n}-0": ["near_duplicate"] for n in range(6)}


def test_several_answers_to_one_long_prompt_stay_where_they_differ(answered: Answered) -> None:
    draw = random.Random(3)
    given = [prose(draw, 20), prose(draw, 25)]
    decisions = answered.do((prose(draw, 300), [*given, given[0].upper() + " Ok.", given[0]]))
    assert reasons(decisions) == {"p0-2": ["near_duplicate"], "p0-3": ["exact_duplicate"]}


def test_an_answer_that_was_dropped_makes_no_duplicate_of_the_next(answered: Answered) -> None:
    text = prose(random.Random(3), 60)
    decisions = answered.do(("Say it.", [f"{text} {'Again. ' * 9}", text, f"{text} Ok."]))
    assert reasons(decisions) == {"p0-0": ["repeated_sentence", "top_ngrams"], "p0-2": ["near_duplicate"]}
    assert "near_duplicate" not in dict(decisions["p0-0"]["scores"])
    assert dict(decisions["p0-1"]["scores"])["near_duplicate"] == 0


def test_near_duplicates_stay_where_the_rule_is_off(answered: Answered) -> None:
    text = prose(random.Random(3), 60)
    assert reasons(answered.do(("Say it.", [text, f"{text} Ok."]), near_duplicates=None)) == {}


def test_the_threshold_is_the_configs(answered: Answered) -> None:
    draw = random.Random(3)
    text = prose(draw, 100)
    assert reasons(answered.do(("Say it.", [text, f"{text} {prose(draw, 15)}"]), near_duplicates=0.95)) == {}


def test_the_same_decisions_in_every_run(answered: Answered, tmp_path: Path, teacher: Path) -> None:
    draw = random.Random(9)
    rows = [(prompt, [text, change_a_word(draw, text)]) for prompt in SEEDS[:40] for text in [prose(draw, 30)]]
    again = Answered(tmp_path / "again", teacher)
    assert answered.do(*rows) == again.do(*rows)


def test_the_same_decisions_where_next_to_nothing_fits_in_memory(
    answered: Answered, tmp_path: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exact and near duplicates alike are found on disk, and no file stays of them."""
    draw = random.Random(9)
    texts = [prose(draw, 30) for _ in SEEDS[:40]]
    rows = [
        (prompt, [text, text.upper(), change_a_word(draw, text)]) for prompt, text in zip(SEEDS, texts, strict=False)
    ]
    with_room = answered.do(*rows)
    monkeypatch.setattr(scratch, "CACHE_BYTES", 16 << 10)
    assert Answered(tmp_path / "again", teacher).do(*rows) == with_room
    assert {tuple(each) for each in reasons(with_room).values()} == {("exact_duplicate",), ("near_duplicate",)}
    folder = tmp_path / "again/trial/filter"
    listed = {record["name"] for record in RunDir(folder.parent).manifest("filter")["files"]}
    assert {path.name for path in folder.iterdir()} == {*listed, "manifest.json", "started.json"}


# --- evaluation items


def test_50_planted_evaluation_items_are_dropped_and_nothing_else(answered: Answered) -> None:
    draw = random.Random(8)
    long = [item for item in ITEMS if len(words(item)) >= 15]
    chosen = [*draw.sample(ITEMS, 25), *(change_a_word(draw, item) for item in draw.sample(long, 25))]
    planted = [f"{prose(draw, 30)} {item} {prose(draw, 30)}" for item in chosen]
    clean = [prose(draw, 100) for _ in SEEDS]
    decisions = answered.do(*zip(SEEDS, clean, strict=True), *zip(SEEDS, planted, strict=False))
    assert reasons(decisions) == {f"p{len(SEEDS) + n}-0": ["contaminated"] for n in range(50)}
    rows = answered.listed("contamination.jsonl")
    assert {row["text"] for row in rows} == set(planted)
    assert {row["part"] for row in rows} == {"answer"}
    assert {row["item_text"] for row in rows} <= set(ITEMS)


def test_a_prompt_that_repeats_an_item_drops_its_answers(answered: Answered) -> None:
    decisions = answered.do(
        ("Tell me a joke.", "No."), (ITEMS[0], ["Dear all.", "Hello."]), sets=[], decontaminate=[CHAT_SET]
    )
    assert reasons(decisions) == {"p1-0": ["contaminated"], "p1-1": ["contaminated"]}
    rows = answered.listed("contamination.jsonl")
    assert [(row["response_id"], row["part"], row["text"], row["item_text"]) for row in rows] == [
        (f"p1-{sample}", "prompt", ITEMS[0], ITEMS[0]) for sample in range(2)
    ]
    assert dict(decisions["p1-0"]["scores"])["contaminated"] == 1
    assert dict(decisions["p0-0"]["scores"])["contaminated"] == 0


def test_the_sets_of_prepare_are_held_against_the_answers_too(answered: Answered) -> None:
    """Those it was made with, whatever the config says now; filter's own come on top."""
    (answered.folder / "own.txt").write_text("The quick brown fox jumps over the very lazy dog today.\n")
    fox = "He wrote: the quick brown fox jumps over the very lazy dog today."
    own = [{"path": str(answered.folder / "own.txt")}]
    given = ("Say.", [ITEMS[0], fox, "Nothing."])
    assert reasons(answered.do(given, decontaminate=own)) == {"p0-0": ["contaminated"], "p0-1": ["contaminated"]}
    assert len(answered.run_dir.manifest("filter")["fingerprint"]["prepare.decontaminate"]) == 1


@pytest.mark.parametrize(("sets", "found"), [([], {}), (None, {"p0-0": ["contaminated"]})], ids=["none", "old version"])
def test_a_run_prepared_without_sets_is_held_against_none(answered: Answered, sets: Any, found: Any) -> None:
    """Unless prepare was done by a version that knew of none: then the config's sets count."""
    assert reasons(answered.do(("Say.", [ITEMS[0], "Nothing."]), sets=sets)) == found


def test_a_set_that_changed_since_is_refused_by_name(answered: Answered) -> None:
    path = answered.folder / "own.txt"
    path.write_text("The quick brown fox jumps over the lazy dog.\n")
    answered.do(("Say.", "Nothing."), decontaminate=[{"path": str(path)}])
    path.write_text("The quick brown fox jumps over the lazy cat.\n")
    with pytest.raises(UserError, match=r"decontaminate\..*own\.txt was "):
        filter_stage.run(answered.config(decontaminate=[{"path": str(path)}]), answered.run_dir)


def test_a_missing_set_is_told(answered: Answered) -> None:
    answered.commit((("Say.", "Nothing."),), ())
    with pytest.raises(
        UserError, match=r"none\.txt: no such file .*\(evaluation items, prepare\.decontaminate, filter\.dec"
    ):
        filter_stage.run(answered.config(decontaminate=[{"path": "none.txt"}]), answered.run_dir)


def test_what_was_dropped_is_counted_and_its_lists_are_files_of_the_stage(answered: Answered) -> None:
    text = prose(random.Random(3), 60)
    answered.do(("Say it.", [text, f"{text} Ok.", ITEMS[0]]))
    manifest = answered.run_dir.manifest("filter")
    dropped = {step["reason"]: step["dropped"] for step in manifest["waterfall"] if step["dropped"]}
    assert dropped == {"near_duplicate": 1, "contaminated": 1}
    assert [record["name"] for record in manifest["files"]] == [
        "decisions-00000.parquet",
        "contamination.jsonl",
        "near_duplicates.jsonl",
    ]
    (answered.run_dir.path / "filter/near_duplicates.jsonl").unlink()
    filter_stage.run(answered.config(), answered.run_dir)
    assert len(answered.listed("near_duplicates.jsonl")) == len(answered.listed("contamination.jsonl")) == 1
