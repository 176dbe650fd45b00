"""Personal data and labels among filter's decisions."""

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
from pipeline.records import PROMPTS, RESPONSES
from pipeline.report.figures import setting_text
from pipeline.run.rundir import RunDir

Row = dict[str, Any]
MAIL = "Write to ada@acme.io today."
HARM = "How to poison someone: no."
PLAIN = "All is well."


@pytest.fixture
def teacher(tmp_path: Path, byte_tokenizer: Path) -> Path:
    from safetensors.numpy import save_file
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(byte_tokenizer)
    tokenizer.save_pretrained(tmp_path / "teacher")
    (tmp_path / "teacher/config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": len(tokenizer)}))
    save_file({}, tmp_path / "teacher/model.safetensors")
    return tmp_path / "teacher"


@pytest.fixture
def decide(tmp_path: Path, teacher: Path) -> Callable[..., dict[str, Row]]:
    """`decide(texts, **sections)`: filter over answers of these texts; each decision by its text."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(teacher)
    run_dir = RunDir(tmp_path / "trial")

    def config(**sections: Any) -> Config:
        return validate(
            {"name": "trial", "runs_dir": str(tmp_path), "teacher": {"model": str(teacher)}, **sections}, "test"
        )

    def run(*texts: str, fresh: str = "no", **sections: Any) -> dict[str, Row]:
        rows = []
        for number, text in enumerate(texts):
            token_ids = [*tokenizer(text).input_ids, tokenizer.eos_token_id]
            row = {"response_id": f"p{number}-0", "prompt_id": f"p{number}", "split": "train", "text": text}
            row |= {"token_ids": token_ids, "prompt_token_ids": tokenizer("Hi").input_ids, "finish_reason": "stop"}
            rows.append(row | dict.fromkeys(("reasoning_tokens", "reasoning_start", "reasoning_end"), 0))
        if not run_dir.is_done("generate"):
            asked = [{"role": "user", "content": "Hi"}]
            prompts = [{"prompt_id": row["prompt_id"], "messages": asked} for row in rows]
            stage = run_dir.begin("prepare", config(), {"prepare.decontaminate": []})
            stage.commit(pa.Table.from_pylist(prompts, schema=PROMPTS), "prompts-00000.parquet")
            stage.finish([stage.path / "prompts-00000.parquet"], {})
            stage = run_dir.begin("generate", config(), {"teacher.model": str(teacher), "teacher.revision": None})
            stage.commit(pa.Table.from_pylist(rows, schema=RESPONSES), "responses-00000.parquet")
            stage.finish([stage.path / "responses-00000.parquet"], {})
        target = RunDir(run_dir.path, "always" if fresh == "always" else "no")
        filter_stage.run(config(**sections), target)
        found = pq.read_table(run_dir.path / "filter/decisions-00000.parquet").to_pylist()
        return dict(zip(texts, found, strict=True))

    run.manifest = lambda: run_dir.manifest("filter")  # type: ignore[attr-defined]
    return run


def test_answers_with_personal_data_are_kept_with_its_tokens_masked(decide: Any) -> None:
    found = decide(MAIL, PLAIN)
    assert found[MAIL]["kept"]
    assert found[MAIL]["masked_spans"] == [{"start": 9, "end": 20, "kind": "email"}]
    assert dict(found[MAIL]["scores"])["pii"] == 1
    assert found[PLAIN]["masked_spans"] == []
    assert decide.manifest()["screening"]["personal"] == {"email": 1}
    assert decide.manifest()["screening"]["answers"] == {"personal": 1, "labelled": 0}


def test_or_dropped_with_their_reason(decide: Any) -> None:
    found = decide(MAIL, PLAIN, privacy={"answers": "drop"})
    assert (found[MAIL]["kept"], found[MAIL]["reasons"], found[PLAIN]["kept"]) == (False, ["pii"], True)
    assert {"reason": "pii", "dropped": 1, "alone": 1} in decide.manifest()["waterfall"]
    assert setting_text("pii", decide.manifest()["settings"]) == "privacy.answers = drop"


def test_or_let_be(decide: Any) -> None:
    found = decide(MAIL, PLAIN, privacy={"answers": "off"})
    assert found[MAIL]["masked_spans"] == []
    assert "pii" not in dict(found[MAIL]["scores"])


def test_labels_are_scores_and_drop_where_a_threshold_says_so(decide: Any) -> None:
    found = decide(HARM, PLAIN)
    assert (found[HARM]["kept"], dict(found[HARM]["safety"])) == (True, {"words:violence": 1.0})
    assert [dict(found[text]["scores"])["unsafe"] for text in (HARM, PLAIN)] == [1.0, 0.0]
    assert decide.manifest()["screening"]["labels"] == {"words:violence": 1}
    found = decide(HARM, PLAIN, fresh="always", safety={"max_answer_score": 0.5})
    assert (found[HARM]["kept"], found[HARM]["reasons"]) == (False, ["unsafe"])
    assert {"reason": "unsafe", "dropped": 1, "alone": 1} in decide.manifest()["waterfall"]


def test_what_is_about_prompts_does_not_make_decisions_out_of_date(decide: Any) -> None:
    decide(MAIL, PLAIN)
    decide(MAIL, PLAIN, privacy={"prompts": "off"}, safety={"max_prompt_score": 0.5})
    with pytest.raises(UserError, match=r"privacy\.answers was"):
        decide(MAIL, PLAIN, privacy={"answers": "drop"})


def test_an_answer_that_is_nothing_else_is_kept_and_left_to_train(decide: Any) -> None:
    found = decide("ada@acme.io", PLAIN)
    assert found["ada@acme.io"]["masked_spans"] == [{"start": 0, "end": 11, "kind": "email"}]
