"""generate as a stage, as far as it goes without vLLM."""

from pathlib import Path

import pytest
from fabricated_run import make

from pipeline import config as config_module
from pipeline import generate
from pipeline.errors import UserError


def test_answers_that_prepare_did_not_read_cannot_be_scored(tmp_path: Path) -> None:
    run_dir = make(tmp_path, until="prepare")
    data = {"name": "trial", "runs_dir": str(tmp_path), "generate": {"mode": "score"}}
    with pytest.raises(UserError, match=r"generate\.mode is score, but prepare was done for sample"):
        generate.run(config_module.validate(data, "test"), run_dir)


def test_a_completion_that_prepare_read_is_what_is_asked_for() -> None:
    config = config_module.validate({"name": "trial"}, "test")
    row = {"response_id": "a-0", "prompt_token_ids": [1]}
    rows = [{**row, "completion_token_ids": [2, 3]}, {**row, "completion_token_ids": None}, row]
    asked = [generate.request(row, config.generate).completion_token_ids for row in rows]
    assert asked == [(2, 3), None, None]
