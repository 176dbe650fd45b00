"""filter as a whole, over a generate stage that the test commits."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import filter as filter_stage
from pipeline.config import Config, validate
from pipeline.errors import UserError
from pipeline.records import RESPONSES
from pipeline.rundir import RunDir, file_hash

END = 1
Row = dict[str, Any]
Decide = Callable[..., dict[str, Row]]


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of a few words: 0 and END are special, and of those added later 5 is, and 6 is not."""
    from safetensors.numpy import save_file
    from tokenizers import AddedToken, Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("teacher")
    words = Tokenizer(models.WordLevel({"<s>": 0, "</s>": END, "alpha": 2, "beta": 3, "gamma": 4}, unk_token="<s>"))
    words.add_special_tokens([AddedToken("<|tool|>")])
    words.add_tokens([AddedToken("```")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>")
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 7}))
    save_file({}, folder / "model.safetensors")
    return folder


def response(name: str, text: str = "alpha beta", **changes: Any) -> Row:
    """A row of RESPONSES; `name` is `prompt-sample`."""
    prompt_id, _, sample = name.partition("-")
    row = {
        "response_id": name,
        "prompt_id": prompt_id,
        "sample": int(sample),
        "split": "train",
        "category": "chat",
        "text": text,
        "finish_reason": "stop",
        "prompt_token_ids": [0],
        "token_ids": [2, 3, END],
        "token_logprobs": [-1.0, -1.0, -1.0],
        "logprobs": None,
    }
    return {**row, **changes}


CUT = {"finish_reason": "length", "token_ids": [2, 3]}
LEAK = {"token_ids": [2, 0, END]}


class Filtered:
    """A run; `captured` commits its answers, `do` filters them."""

    def __init__(self, folder: Path, teacher: Path) -> None:
        self.folder, self.teacher, self.run_dir = folder, teacher, RunDir(folder / "trial")

    def config(self, **settings: Any) -> Config:
        data = {"name": "trial", "runs_dir": str(self.folder), "teacher": {"model": str(self.teacher)}}
        return validate({**data, "filter": settings}, "test")

    def captured(self, *shards: list[Row]) -> "Filtered":
        made_for = {"teacher.model": str(self.teacher), "teacher.revision": None}
        stage = self.run_dir.begin("generate", self.config(), made_for)
        names = [f"responses-{number:05d}.parquet" for number in range(len(shards))]
        for name, rows in zip(names, shards, strict=True):
            stage.commit(pa.Table.from_pylist(rows, schema=RESPONSES), name)
        stage.finish([stage.path / name for name in names], {})
        return self

    def do(self, **settings: Any) -> dict[str, Row]:
        """Each decision by its response, in the order they were written."""
        filter_stage.run(self.config(**settings), self.run_dir)
        return {row["response_id"]: row for shard in self.shards() for row in shard}

    def shards(self) -> list[list[Row]]:
        files = sorted((self.run_dir.path / "filter").glob("decisions-*.parquet"))
        return [pq.read_table(path).to_pylist() for path in files]

    def dropped(self) -> dict[str, int]:
        waterfall = self.run_dir.manifest("filter")["waterfall"]
        return {step["reason"]: step["dropped"] for step in waterfall if step["dropped"]}


@pytest.fixture
def filtered(tmp_path: Path, teacher: Path) -> Filtered:
    return Filtered(tmp_path, teacher)


def reasons(decisions: dict[str, Row]) -> dict[str, list[str]]:
    return {name: row["reasons"] for name, row in decisions.items()}


def test_each_drop_has_its_reasons_and_the_kept_have_none(filtered: Filtered) -> None:
    rows = [response("a-0"), response("b-0", **CUT), response("c-0", "", **LEAK)]
    decisions = filtered.captured(rows).do()
    assert reasons(decisions) == {"a-0": [], "b-0": ["truncated"], "c-0": ["empty", "control_tokens"]}
    assert [row["kept"] for row in decisions.values()] == [True, False, False]


def test_scores_are_kept_of_the_kept_and_the_dropped(filtered: Filtered) -> None:
    decisions = filtered.captured([response("a-0"), response("b-0", **CUT)]).do(max_tokens=None)
    assert dict(decisions["a-0"]["scores"])["too_short"] == 2
    assert dict(decisions["b-0"]["scores"])["truncated"] == 1
    assert "too_long" not in dict(decisions["a-0"]["scores"])


@pytest.mark.parametrize("token", [0, 5], ids=["special", "added"])
def test_a_token_is_special_where_the_teachers_tokenizer_says_so(filtered: Filtered, token: int) -> None:
    rows = [response("a-0"), response("b-0", token_ids=[2, token, END])]
    assert reasons(filtered.captured(rows).do())["b-0"] == ["control_tokens"]


def test_a_plain_token_that_was_added_to_the_tokenizer_is_no_leak(filtered: Filtered) -> None:
    assert reasons(filtered.captured([response("a-0", token_ids=[2, 6, END])]).do()) == {"a-0": []}


REASONED = {"reasoning": "alpha", "reasoning_tokens": 3, "reasoning_start": 1, "reasoning_end": 2}


def test_rules_see_the_answer_without_its_reasoning(filtered: Filtered) -> None:
    """Tags that are special tokens are no leak, and reasoning makes no answer longer."""
    rows = [response("a-0", token_ids=[5, 2, 5, 3, 4, END], **REASONED), response("b-0", token_ids=[2, 5, 3, END])]
    decisions = filtered.captured(rows).do(max_tokens=2)
    assert reasons(decisions) == {"a-0": [], "b-0": ["control_tokens", "too_long"]}
    assert dict(decisions["a-0"]["scores"])["too_short"] == 2


def test_reasoning_that_never_came_to_an_answer_is_dropped(filtered: Filtered) -> None:
    cut = {"token_ids": [5, 2, 3], "finish_reason": "length", "reasoning_tokens": 3}
    decisions = filtered.captured([response("a-0"), response("b-0", "", **cut)]).do(drop_truncated=False)
    assert reasons(decisions)["b-0"] == ["empty", "too_short"]


def test_every_shard_of_answers_has_its_file_of_decisions_in_the_same_order(filtered: Filtered) -> None:
    shards = [[response("b-0"), response("a-0")], [response("c-0")]]
    filtered.captured(*shards).do()
    names = [[row["response_id"] for row in shard] for shard in filtered.shards()]
    assert names == [["b-0", "a-0"], ["c-0"]]


def test_an_answer_already_given_to_the_same_prompt_is_dropped_across_shards(filtered: Filtered) -> None:
    shards = [[response("a-0"), response("b-0")], [response("a-1", " ALPHA\n beta"), response("a-2", "beta")]]
    decisions = filtered.captured(*shards).do()
    assert reasons(decisions) == {"a-0": [], "b-0": [], "a-1": ["exact_duplicate"], "a-2": []}
    assert dict(decisions["a-1"]["scores"])["exact_duplicate"] == 1


def test_a_dropped_answer_makes_no_duplicate_of_the_next(filtered: Filtered) -> None:
    rows = [response("a-0", **CUT), response("a-1"), response("a-2")]
    expected = {"a-0": ["truncated"], "a-1": [], "a-2": ["exact_duplicate"]}
    assert reasons(filtered.captured(rows).do()) == expected


def test_duplicates_are_kept_where_the_rule_is_off(filtered: Filtered) -> None:
    decisions = filtered.captured([response("a-0"), response("a-1")]).do(drop_exact_duplicates=False)
    assert reasons(decisions) == {"a-0": [], "a-1": []}


def test_the_waterfall_counts_each_drop_once_under_its_first_reason(filtered: Filtered) -> None:
    rows = [response("a-0"), response("a-1"), response("b-0", **CUT), response("c-0", "", **CUT)]
    decisions = filtered.captured(rows).do()
    assert filtered.dropped() == {"empty": 1, "truncated": 1, "exact_duplicate": 1}
    assert sum(filtered.dropped().values()) == sum(not row["kept"] for row in decisions.values())


def test_kept_for_training_leaves_the_held_out_side_aside(filtered: Filtered) -> None:
    filtered.captured([response("a-0"), response("b-0", split="held_out"), response("c-0", **CUT)]).do()
    assert filtered.run_dir.manifest("filter")["counts"] == {"responses": 3, "kept": 2, "kept_train": 1}


def test_nothing_kept_is_told_with_the_rules_that_dropped_it(filtered: Filtered) -> None:
    filtered.captured([response("a-0", **CUT), response("b-0", **CUT), response("c-0", "")])
    with pytest.raises(
        UserError, match=r"none is kept to train on \(dropped: empty 1, truncated 2\); loosen filter\.\*"
    ):
        filtered.do()


def test_rules_that_are_loosened_after_nothing_was_kept_go_on(filtered: Filtered) -> None:
    filtered.captured([response("a-0", **CUT)])
    with pytest.raises(UserError, match=r"loosen filter\.\*"):
        filtered.do()
    assert filtered.do(drop_truncated=False)["a-0"]["kept"]


def test_held_out_answers_that_were_kept_are_not_said_to_be_dropped(filtered: Filtered) -> None:
    filtered.captured([response("a-0", **CUT), response("b-0", split="held_out")])
    with pytest.raises(UserError) as caught:
        filtered.do()
    assert "all 2 answers were dropped" not in str(caught.value)


def test_answers_are_neither_copied_nor_changed(filtered: Filtered) -> None:
    filtered.captured([response("a-0"), response("b-0", **CUT)])
    before = {path.name: file_hash(path) for path in (filtered.run_dir.path / "generate").iterdir()}
    filtered.do()
    assert {path.name: file_hash(path) for path in (filtered.run_dir.path / "generate").iterdir()} == before
    [record] = filtered.run_dir.manifest("filter")["files"]
    columns = pq.read_schema(filtered.run_dir.path / "filter" / record["name"]).names
    assert columns == ["response_id", "kept", "reasons", "scores", "masked_spans", "safety"]


def test_a_changed_threshold_is_refused_by_name_and_nothing_is_decided_again(filtered: Filtered) -> None:
    filtered.captured([response("a-0")]).do()
    before = file_hash(filtered.run_dir.path / "filter/manifest.json")
    with pytest.raises(UserError, match=r"filter\.min_tokens was 1, is 2"):
        filtered.do(min_tokens=2)
    assert file_hash(filtered.run_dir.path / "filter/manifest.json") == before


def test_other_answers_make_the_decisions_out_of_date(filtered: Filtered) -> None:
    filtered.captured([response("a-0")]).do()
    filtered.captured([response("a-0"), response("b-0")])
    with pytest.raises(UserError, match=r"input\.generate was "):
        filtered.do()


def test_the_thresholds_stand_in_the_manifest(filtered: Filtered) -> None:
    filtered.captured([response("a-0")]).do(min_tokens=2)
    assert filtered.run_dir.manifest("filter")["settings"]["min_tokens"] == 2


def test_answers_must_have_been_generated(filtered: Filtered) -> None:
    with pytest.raises(UserError, match="generate has not finished; run it first: retort generate"):
        filtered.do()


def test_a_damaged_shard_of_answers_is_named(filtered: Filtered) -> None:
    filtered.captured([response("a-0")])
    shard = filtered.run_dir.path / "generate/responses-00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"responses-00000\.parquet: damaged"):
        filtered.do()
