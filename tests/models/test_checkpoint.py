"""A folder that holds no whole model is refused in one line, before anything runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipeline.config import validate
from pipeline.errors import UserError
from pipeline.models import lookup
from pipeline.models.checkpoint import INDEX, Tensor, tensors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole model in two shards."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 10}))
    (tmp_path / "tokenizer.json").write_text("{}")
    shards = {"a.safetensors": {"one": np.zeros((2, 3), np.float32)}, "b.safetensors": {"two": np.zeros(4, np.int32)}}
    for name, held in shards.items():
        save_file(held, tmp_path / name)
    write_index(tmp_path, {tensor: name for name, held in shards.items() for tensor in held})
    return tmp_path


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def cut(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])


def adapters(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a shard is missing": (
        lambda f: (f / "b.safetensors").unlink(),
        "lacks 1 of the 2 weight files that model.safetensors.index.json names, such as b.safetensors; was its download"
        " interrupted?",
    ),
    "a shard is cut short": (
        lambda f: cut(f / "b.safetensors", (f / "b.safetensors").stat().st_size - 3),
        "b.safetensors is damaged or cut short",
    ),
    "a shard is cut within its header": (lambda f: cut(f / "b.safetensors", 20), "b.safetensors is damaged or cut"),
    "a shard is empty": (lambda f: cut(f / "b.safetensors", 0), "b.safetensors is damaged or cut short (0 bytes"),
    "a shard lacks a tensor": (
        lambda f: save_file({"three": np.zeros(1)}, f / "b.safetensors"),
        "b.safetensors lacks two, which model.safetensors.index.json says it holds",
    ),
    "the index is cut short": (lambda f: cut(f / INDEX, 30), "model.safetensors.index.json is damaged"),
    "the index is empty": (lambda f: cut(f / INDEX, 0), "model.safetensors.index.json is damaged"),
    "the index is a list": (lambda f: (f / INDEX).write_text("[]"), "has no weight_map"),
    "the index has no map": (lambda f: (f / INDEX).write_text('{"metadata": {}}'), "has no weight_map"),
    "the map is empty": (lambda f: write_index(f, {}), "has no weight_map"),
    "the map names no file": (lambda f: write_index(f, {"one": None}), "has no weight_map"),
    "the index is missing": (
        lambda f: (f / INDEX).unlink(),
        "has neither model.safetensors nor model.safetensors.index.json; was its download interrupted?",
    ),
    "it holds adapters": (adapters, "holds adapters (adapter_config.json), not a model; merge them"),
    "its tokenizer is missing": (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer file"),
}


def settings(folder: Path, role: str) -> dict[str, Any]:
    return {
        "teacher": {"teacher": {"model": str(folder)}, "generate": {"k": 8}},
        "student": {"student": {"model": str(folder)}},
        "other": {"evaluate": {"other": str(folder)}},
        "first student": {"filter": {"learnability": {"student": str(folder)}}},
    }[role]


@pytest.mark.parametrize("role", ["teacher", "student", "other", "first student"])
def test_a_whole_model_passes(folder: Path, role: str) -> None:
    lookup.check_settings(validate({"name": "trial", **settings(folder, role)}, "test"))


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_model_that_is_not_whole_is_one_line_that_says_what_is_wrong(folder: Path, damage: str) -> None:
    harm, said = DAMAGE[damage]
    harm(folder)
    for role in ("teacher", "student", "other", "first student"):
        with pytest.raises(UserError) as caught:
            lookup.check_settings(validate({"name": "trial", **settings(folder, role)}, "test"))
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)


def test_headers_alone_tell_what_a_file_holds(folder: Path) -> None:
    assert tensors("m", folder / "a.safetensors") == {"one": Tensor("F32", (2, 3))}
    assert tensors("m", folder / "a.safetensors")["one"].numel() == 6


def test_a_text_config_that_is_null_is_none(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"vocab_size": 10, "text_config": None}))
    assert lookup.find(str(folder)).vocab_size() == 10
