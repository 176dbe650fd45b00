"""The corpus as others get it: loaded by `datasets` alone, told apart by split, with a card from the manifests."""

import base64
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.fabricated_run import WEIGHTS_HASH, make

from pipeline import codec
from pipeline.errors import UserError
from pipeline.export import corpus
from pipeline.run.files import file_hash, write_json
from pipeline.run.rundir import RunDir
from pipeline.screening import presidio

ROOT = Path(__file__).parent.parent.parent


def loaded(folder: Path, tmp_path: Path) -> dict[str, Any]:
    from datasets import load_dataset

    return {
        str(name): list(rows) for name, rows in load_dataset(str(folder), cache_dir=str(tmp_path / "cache")).items()
    }


def test_the_kept_answers_are_loaded_by_split_with_their_conversations(
    filtered_run_dir: RunDir, tmp_path: Path
) -> None:
    rows = loaded(corpus.write(filtered_run_dir), tmp_path)
    assert [row["response_id"] for row in rows["train"]] == ["prompt2-0", "prompt3-0", "prompt4-0"]
    assert [row["response_id"] for row in rows["held_out"]] == ["prompt5-0"]
    first = rows["train"][0]
    assert [message["role"] for message in first["messages"]] == ["system", "user", "assistant"]
    assert first["messages"][-1]["content"].startswith("Answer 2")
    assert first["source"] == "prompts/seeds.jsonl:3"
    assert "logprobs" not in first


def test_tools_calls_and_reasoning_go_along(filtered_run_dir: RunDir, tmp_path: Path) -> None:
    rows = loaded(corpus.write(filtered_run_dir), tmp_path)["train"]
    assert [row["tools"] for row in rows] == [None, '[{"function": {"name": "look"}}]', None]
    _, _, call, result, answer = rows[1]["messages"]
    assert json.loads(call["tool_calls"])[0]["function"]["name"] == "look"
    assert (result["tool_call_id"], result["name"]) == ("c1", "look")
    assert answer["reasoning_content"] == "Red,\x1b[2J I think."
    assert answer["content"].startswith("Answer 3")
    assert rows[0]["messages"][-1]["reasoning_content"] is None


def test_log_probs_go_along_where_asked_for_and_decode(filtered_run_dir: RunDir, tmp_path: Path) -> None:
    first = loaded(corpus.write(filtered_run_dir, with_logprobs=True), tmp_path)["train"][0]
    ids_NK, _, _ = codec.decode(first["logprobs"])
    assert len(ids_NK) == len(first["token_ids"]) == len(first["token_logprobs"])


def test_the_card_says_where_it_comes_from_and_what_was_left_out(filtered_run_dir: RunDir) -> None:
    text = (corpus.write(filtered_run_dir) / "README.md").read_text(encoding="utf-8")
    for part in (
        WEIGHTS_HASH,
        "train 3, held_out 1 answers",
        "4 of 6 answers were kept",
        "| repeated ngrams | 1 | max_duplicate_ngram_frac = 0.35 |",
        "temperature 1.0",
        "The licences of the teacher and of the prompts apply",
        "Log-probs were left out",
    ):
        assert part in text
    assert "license" not in text.split("---")[1]


def test_what_the_teacher_wrote_is_told_from_the_sources(filtered_run_dir: RunDir, tmp_path: Path) -> None:
    assert "- Prompts: 6 from the sources\n" in (corpus.write(filtered_run_dir) / "README.md").read_text(
        encoding="utf-8"
    )
    manifest = filtered_run_dir.manifest("prepare")
    methods = {"magpie": {"written": 0}, "self_instruct": {"written": 1}, "evolve": {"written": 2}}
    write_json(
        filtered_run_dir.stage_path("prepare") / "manifest.json", {**manifest, "synthesis": {"methods": methods}}
    )
    folder = corpus.write(filtered_run_dir)
    told = "3 from the sources, 3 written by the teacher itself (self instruct 1, evolve 2; column `method`;"
    assert told in (folder / "README.md").read_text(encoding="utf-8")
    row = loaded(folder, tmp_path)["train"][0]
    assert (row["method"], row["parents"], row["template"]) == ("source", [], None)


def test_a_run_without_those_columns_is_exported_all_the_same(filtered_run_dir: RunDir, tmp_path: Path) -> None:
    path = filtered_run_dir.stage_path("prepare") / "prompts-00000.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["licence", "method", "parents", "template"]), path)
    manifest = filtered_run_dir.manifest("prepare")
    [record] = manifest["files"]
    record |= {"bytes": path.stat().st_size, "sha256": file_hash(path)}
    write_json(filtered_run_dir.stage_path("prepare") / "manifest.json", manifest)
    row = loaded(corpus.write(filtered_run_dir), tmp_path)["train"][0]
    assert (row["source"], row["method"], row["parents"]) == ("prompts/seeds.jsonl:3", None, None)


def test_a_corpus_is_replaced_as_a_whole(filtered_run_dir: RunDir) -> None:
    folder = corpus.write(filtered_run_dir, with_logprobs=True)
    (folder / "data" / "leftover.parquet").write_text("x")
    assert corpus.write(filtered_run_dir) == folder
    assert not (folder / "data" / "leftover.parquet").exists()
    assert not (filtered_run_dir.path / ".corpus.tmp").exists()


def test_filter_must_have_finished(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="filter has not finished"):
        corpus.write(make(tmp_path, until="generate"))


LOAD = """
import json, sys
from datasets import load_dataset
print(json.dumps([{name: len(rows) for name, rows in load_dataset(folder).items()} for folder in sys.argv[1:]]))
"""


def loaded_alone(cache: Path, *folders: Path) -> list[dict[str, int]]:
    """How many rows a process of its own finds in each, with this cache and without the hub."""
    return json.loads(in_process(cache, LOAD, *map(str, folders)))


def in_process(cache: Path, code: str, *arguments: str, cwd: Path = ROOT) -> str:
    environment = {**os.environ, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    environment.pop("HF_DATASETS_CACHE", None)
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_corpus_is_never_taken_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` has one cache for all of them, and their folders have one name."""
    runs = [make(tmp_path / name, until="filter") for name in "ab"]
    a = corpus.write(runs[0])
    read = corpus.read_answers

    def whole(*told: Any) -> Iterator[Any]:
        return ((answers, pa.array([True] * len(answers))) for answers, _ in read(*told))

    with monkeypatch.context() as patch:
        patch.setattr(corpus, "read_answers", whole)
        b = corpus.write(runs[1])
    of_a, of_b = {"train": 3, "held_out": 1}, {"train": 5, "held_out": 1}
    assert loaded_alone(tmp_path / "cache", a) == [of_a]
    assert loaded_alone(tmp_path / "cache", b, a) == [of_b, of_a]
    assert loaded_alone(tmp_path / "other cache", b, a) == [of_b, of_a]
    corpus.write(runs[1])  # anew, with fewer rows
    assert loaded_alone(tmp_path / "cache", b, a) == [of_a, of_a]


def test_the_same_corpus_has_the_same_names(filtered_run_dir: RunDir) -> None:
    names = [sorted(path.name for path in (corpus.write(filtered_run_dir) / "data").iterdir()) for _ in range(2)]
    assert names[0] == names[1]
    assert {name.split("-")[0] for name in names[0]} == {"held_out", "train"}
    assert names[0] != sorted(path.name for path in (corpus.write(filtered_run_dir, True) / "data").iterdir())


@pytest.mark.parametrize("with_logprobs", [False, True])
def test_the_cards_code_runs(filtered_run_dir: RunDir, tmp_path: Path, with_logprobs: bool) -> None:
    card = (corpus.write(filtered_run_dir, with_logprobs) / "README.md").read_text(encoding="utf-8")
    [code] = re.findall(r"^```python\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)
    shown = "\nprint(ids.shape, logprobs.shape, log_tail.shape)" if with_logprobs else ""
    out = in_process(tmp_path / "cache", code + shown, cwd=filtered_run_dir.path)
    assert "Answer 2" in out
    assert out.rstrip().endswith("(4, 6) (4, 6) (4,)" if with_logprobs else "]")


class Hub(BaseHTTPRequestHandler):
    """In place of the hub: takes a dataset repository and one commit, or refuses."""

    refuses = False
    committed: dict[str, bytes]
    deleted: list[str]
    earlier: list[str]  # files of an earlier push

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if Hub.refuses:
            return self.answer(403, {"error": "no right to write"})
        if self.path == "/api/repos/create":
            return self.answer(200, {"url": f"http://{self.headers['Host']}/datasets/someone/corpus"})
        if "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            return self.answer(
                200, {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]}
            )
        if "/commit/" in self.path:
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    Hub.committed[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    Hub.deleted.append(line["value"]["path"])
            return self.answer(
                200,
                {
                    "commitUrl": f"http://{self.headers['Host']}/datasets/someone/corpus/commit/1",
                    "commitOid": "1",
                    "success": True,
                },
            )
        return self.answer(200, {})

    def do_GET(self) -> None:
        if "/api/datasets/someone/corpus/tree/main" not in self.path:
            return self.answer(404, {"error": "nothing here"})
        self.answer(200, [{"type": "file", "path": path, "size": 1, "oid": "1"} for path in Hub.earlier])

    do_HEAD = do_GET

    def answer(self, status: int, data: Any) -> None:
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    Hub.refuses, Hub.committed, Hub.deleted, Hub.earlier = False, {}, [], []
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_push_uploads_every_file(filtered_run_dir: RunDir, hub: str) -> None:
    folder = corpus.write(filtered_run_dir)
    corpus.push(folder, "someone/corpus", endpoint=hub)
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert Hub.committed == files


def test_a_push_replaces_the_rows_of_the_one_before(filtered_run_dir: RunDir, hub: str) -> None:
    folder = corpus.write(filtered_run_dir)
    kept = [str(path.relative_to(folder)) for path in (folder / "data").iterdir()]
    Hub.earlier = [".gitattributes", "README.md", "data/train-0123456789ab-00000.parquet", *kept]
    corpus.push(folder, "someone/corpus", endpoint=hub)
    assert Hub.deleted == ["data/train-0123456789ab-00000.parquet"]


def test_a_refused_push_is_one_line(filtered_run_dir: RunDir, hub: str) -> None:
    folder = corpus.write(filtered_run_dir)
    Hub.refuses = True
    with pytest.raises(UserError, match=r"someone/corpus: the hub refuses the upload .*HF_TOKEN"):
        corpus.push(folder, "someone/corpus", endpoint=hub)


def test_each_answer_knows_where_it_comes_from(filtered_run_dir: RunDir, tmp_path: Path) -> None:
    rows = loaded(corpus.write(filtered_run_dir), tmp_path)["train"]
    told = {name: rows[0][name] for name in ("source", "licence", "teacher", "teacher_revision", "run")}
    assert told == {
        "source": "prompts/seeds.jsonl:3",
        "licence": "apache-2.0",
        "teacher": "./no-such-teacher",
        "teacher_revision": None,
        "run": "trial",
    }


def test_the_card_tells_of_use_licences_personal_data_and_safety(filtered_run_dir: RunDir) -> None:
    text = (corpus.write(filtered_run_dir) / "README.md").read_text(encoding="utf-8")
    for part in (
        "## Intended use",
        "| prompts/seeds.jsonl | apache-2.0 | 6 | nothing in it restricts training on outputs.",
        "- Answers: found in none\n",
        "- Answers, by word list (shipped): none; labels alone drop nothing",
        "## What a review asks",
    ):
        assert part in text


def test_a_name_that_was_masked_stands_nowhere_in_the_corpus(
    filtered_run_dir: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tagger finds its first mention alone; filter masked both."""
    text, span = "Ann Lee signed it. Later ann wrote: thanks, Ann Lee", {"start": 0, "end": 1, "kind": "person"}
    read = corpus.read_answers

    def masked(*arguments: Any) -> Iterator[Any]:
        for answers, kept in read(*arguments):
            told = {"text": text, "reasoning": None, "masked_spans": [span, span]}
            yield pa.Table.from_pylist([row | told for row in answers.to_pylist()], schema=answers.schema), kept

    monkeypatch.setattr(corpus, "read_answers", masked)
    monkeypatch.setattr(presidio, "find", lambda text, settings: [(0, 7, "person")] if "Ann Lee" in text else [])
    rows = [row for split in loaded(corpus.write(filtered_run_dir), tmp_path).values() for row in split]
    assert {row["messages"][-1]["content"] for row in rows} == {"<PERSON> signed it. Later ann wrote: thanks, <PERSON>"}


def test_a_run_that_was_never_looked_through_is_not_handed_on(filtered_run_dir: RunDir) -> None:
    path = filtered_run_dir.stage_path("filter") / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["screening"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(
        UserError, match=r"looked for no personal data; filter again: retort filter .*config\.yaml --fresh"
    ):
        corpus.write(filtered_run_dir)
