"""A teacher's folder with a tokenizer whose tokens are bytes, and a prepare stage over files that a test writes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline import prepare
from pipeline.config import Config, validate
from pipeline.run.rundir import RunDir

CONTEXT = 160
ROUND = 8  # generate.max_tokens
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer: Path) -> Path:
    from safetensors.numpy import save_file
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("teacher")
    tokenizer: Any = AutoTokenizer.from_pretrained(byte_tokenizer)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    shape = {"model_type": "llama", "max_position_embeddings": CONTEXT, "vocab_size": len(tokenizer)}
    (folder / "config.json").write_text(json.dumps(shape))
    save_file({}, folder / "model.safetensors")
    return folder


class Prepared:
    """A run in a folder of its own; `do` is prepare, with these settings."""

    def __init__(self, folder: Path, teacher: Path) -> None:
        self.folder, self.teacher = folder, teacher
        self.run_dir = RunDir(folder / "runs/trial")

    def config(self, *sources: dict[str, Any], **settings: Any) -> Config:
        data = {
            "name": "trial",
            "runs_dir": str(self.folder / "runs"),
            "teacher": {"model": str(self.teacher)},
            "generate": {"max_tokens": ROUND},
            "prepare": {"sources": list(sources), "held_out_frac": 0, **settings},
        }
        return validate(data, "test")

    def do(self, *sources: dict[str, Any], **settings: Any) -> dict[str, int]:
        """The counts in the manifest."""
        prepare.run(self.config(*sources, **settings), self.run_dir)
        return self.run_dir.manifest("prepare")["counts"]

    def file(self, name: str, content: str | bytes) -> dict[str, Any]:
        """A source that is a file with this content."""
        path = self.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return {"path": str(path)}

    def lines(self, *rows: dict[str, Any], name: str = "a.jsonl") -> dict[str, Any]:
        return self.file(name, "".join(json.dumps(row) + "\n" for row in rows))

    def rows(self) -> list[dict[str, Any]]:
        files = sorted((self.run_dir.path / "prepare").glob("prompts-*.parquet"))
        return [row for path in files for row in pq.read_table(path).to_pylist()]


@pytest.fixture
def prepared(tmp_path: Path, teacher: Path) -> Prepared:
    return Prepared(tmp_path, teacher)


@pytest.fixture
def other_teacher(tmp_path: Path, teacher: Path) -> Callable[[str], Path]:
    """`other_teacher(template)`: the same tokenizer under another chat template."""

    def make(template: str) -> Path:
        from transformers import AutoTokenizer

        folder = tmp_path / "other"
        tokenizer: Any = AutoTokenizer.from_pretrained(teacher)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)
        for name in ("config.json", "model.safetensors"):
            (folder / name).write_bytes((teacher / name).read_bytes())
        return folder

    return make
