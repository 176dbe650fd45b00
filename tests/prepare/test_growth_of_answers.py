"""generate after prepare has grown, and answers taken from other runs: by a teacher that answers at once."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline import filter as filter_stage
from pipeline import generate, prepare
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.inference.engine import Completion
from pipeline.inference.servers import ServerIdentity
from pipeline.run import verify
from pipeline.run.files import file_hash
from pipeline.run.rundir import RunDir

WORDS = ["otters", "bridges", "violins", "glaciers", "taxes", "bakeries", "comets", "looms", "castles", "tides"]


class QuickTeacher:
    """Answers at once, 4 tokens of 16 log-probs each, until it has given `stop_after` answers."""

    dtype, vocab_size = "float32", 258

    def __init__(self, stop_after: int = 1000) -> None:
        self.stop_after = stop_after
        self.asked: list[str] = []

    def answers(self, requests: Any) -> Any:
        logprobs_TK = np.tile(-np.log(2) * np.arange(1, 17), (4, 1)).astype(np.float32)
        ids_TK = np.tile(np.arange(66, 82, dtype=np.int32), (4, 1))
        for request in requests:
            if len(self.asked) == self.stop_after:
                raise KeyboardInterrupt
            self.asked.append(request.request_id)
            yield Completion(request, [66] * 4, "stop", logprobs_TK[:, 0], ids_TK, logprobs_TK, 0.1, 0.1)


class Answered:
    """A run with a `quick` teacher: `do(numbers)` prepares these prompts and has them answered."""

    def __init__(self, prepared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.prepared, self.monkeypatch = prepared, monkeypatch

    def config(self, *numbers: int, name: str = "trial", **settings: Any) -> Config:
        rows = [{"prompt": f"Tell me about {WORDS[n % 10]}, part {n}."} for n in numbers]
        config = self.prepared.config(self.prepared.lines(*rows, name=f"{name}.jsonl"))
        of_answers = {"k": 16, "shard_responses": 2, **settings}
        return config.model_copy(update={"name": name, "generate": config.generate.model_copy(update=of_answers)})

    def do(self, *numbers: int, teacher: QuickTeacher | None = None, **settings: Any) -> tuple[RunDir, list[str]]:
        """The run, and the ids of the responses that were asked for."""
        config = self.config(*numbers, **settings)
        run_dir, teacher = RunDir(config.run_path), teacher or QuickTeacher()
        self.monkeypatch.setattr(generate, "open_teacher", lambda *_: teacher)
        prepare.run(config, run_dir)
        generate.run(config, run_dir)
        return run_dir, teacher.asked


@pytest.fixture
def answered(prepared: Any, monkeypatch: pytest.MonkeyPatch) -> Answered:
    return Answered(prepared, monkeypatch)


def hashes(run_dir: RunDir) -> dict[str, str]:
    return {path.name: file_hash(path) for path in sorted(run_dir.stage_path("generate").glob("*.parquet"))}


def ids(run_dir: RunDir, stage: str = "generate") -> list[str]:
    column = "prompt_id" if stage == "prepare" else "response_id"
    paths = sorted(run_dir.stage_path(stage).glob("*.parquet"))
    return [value for path in paths for value in pq.read_table(path, columns=[column]).column(0).to_pylist()]


def test_only_what_is_new_is_asked_and_what_is_there_stays_as_it_is(answered: Answered) -> None:
    run_dir, asked = answered.do(1, 2, 3)
    before, first = hashes(run_dir), ids(run_dir)
    assert asked == first
    run_dir, asked = answered.do(9, 1, 2, 3, 8, 7)
    assert len(asked) == 3
    after = hashes(run_dir)
    assert {name: after[name] for name in before} == before
    assert ids(run_dir) == [*first, *asked] == [f"{prompt}-0" for prompt in ids(run_dir, "prepare")]
    proved = dict(verify.run(run_dir))
    assert (
        "6 prompts, each once and on the side of the split that its hash says (3 + 3 as it grew)" in proved["prepare"]
    )
    assert "6 responses, each once" in proved["generate"]


def test_each_answer_is_there_once_if_every_growth_is_killed(answered: Answered) -> None:
    with pytest.raises(KeyboardInterrupt):
        answered.do(1, 2, 3, 4, 5, teacher=QuickTeacher(stop_after=3))
    answered.do(1, 2, 3, 4, 5, 6)  # grows before it has finished
    with pytest.raises(KeyboardInterrupt):
        answered.do(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, teacher=QuickTeacher(stop_after=2))
    run_dir, asked = answered.do(1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
    assert len(asked) == 2
    assert ids(run_dir) == [f"{prompt}-0" for prompt in ids(run_dir, "prepare")]
    assert len(ids(run_dir)) == 10
    verify.run(run_dir)


def test_a_line_that_adds_nothing_asks_nothing(answered: Answered) -> None:
    run_dir, _ = answered.do(1, 2, 3)
    before = run_dir.output_hash("generate")
    run_dir, asked = answered.do(1, 2, 3, 3)
    assert (asked, run_dir.output_hash("generate")) == ([], before)


def test_a_server_is_asked_what_it_is_before_it_adds_to_answers(answered: Answered) -> None:
    """A finished generate takes what was recorded of its server; one that grows must not."""
    versions = iter(["0.1", "0.2"])

    class Server(QuickTeacher):
        def __init__(self, *_: Any) -> None:
            super().__init__()
            self.served = ServerIdentity(next(versions), "small", 100, "")

    def config(*numbers: int) -> Config:
        plain = answered.config(*numbers)
        server = plain.teacher.server.model_copy(update={"urls": ("http://127.0.0.1:9",)})
        return plain.model_copy(update={"teacher": plain.teacher.model_copy(update={"server": server})})

    answered.monkeypatch.setattr(generate, "TeacherServers", Server)
    answered.monkeypatch.setattr(generate, "open_teacher", lambda *_: QuickTeacher())
    run_dir = RunDir(config(1, 2).run_path)
    for numbers in ((1, 2), (1, 2)):  # the second time nothing is to do, and no server is asked
        prepare.run(config(*numbers), run_dir)
        generate.run(config(*numbers), run_dir)
    prepare.run(config(1, 2, 3), run_dir)
    with pytest.raises(UserError, match=r"generate was made with other settings: .*vllm was .0\.1., is .0\.2."):
        generate.run(config(1, 2, 3), run_dir)


def test_a_shard_that_was_altered_is_found_before_it_is_built_on(answered: Answered) -> None:
    run_dir, _ = answered.do(1, 2, 3)
    path = run_dir.stage_path("generate") / "responses-00000.parquet"
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(UserError, match=r"responses-00000\.parquet: damaged"):
        answered.do(1, 2, 3, 4)


def test_filter_decides_anew_when_answers_were_added(answered: Answered) -> None:
    run_dir, _ = answered.do(1, 2, 3)
    filter_stage.run(answered.config(1, 2, 3), run_dir)
    run_dir, _ = answered.do(1, 2, 3, 4)
    filter_stage.run(answered.config(1, 2, 3, 4), run_dir)
    assert ids(run_dir, "filter") == ids(run_dir)
    verify.run(run_dir)


def test_answers_are_taken_from_other_runs(answered: Answered) -> None:
    one, _ = answered.do(1, 2, 3, 4, name="one")
    other, _ = answered.do(5, 6, name="other")
    both = (str(one.path), str(other.path))
    run_dir, asked = answered.do(4, 5, 1, 7, 2, 3, 6, name="both", reuse=both)
    assert len(asked) == 1
    assert set(ids(run_dir)) == {*ids(one), *ids(other), *asked}
    assert ids(run_dir) == [f"{prompt}-0" for prompt in ids(run_dir, "prepare")]
    verify.run(run_dir)
    whole, asked = answered.do(1, 2, 6, name="whole", reuse=both)
    assert (asked, len(ids(whole))) == ([], 3)
    assert whole.manifest("generate")["teacher_dtype"] == "float32"


def test_answers_that_were_made_in_another_way_are_not_taken(answered: Answered) -> None:
    one, _ = answered.do(1, 2, name="one")
    with pytest.raises(UserError, match=r"generate\.reuse .*one: .* generate\.temperature is 1\.0 there and 0\.5 here"):
        answered.do(1, 2, name="other", temperature=0.5, reuse=(str(one.path),))


def test_a_run_that_is_not_there_has_no_answers(answered: Answered, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: generate has not finished"):
        answered.do(1, 2, reuse=(str(tmp_path / "nowhere"),))
