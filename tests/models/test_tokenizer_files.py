"""A tokenizer's folder: its settings are written under names that are not of one version alone."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from pipeline.models.tokenizer import tokenizer_files


def saved(folder: Path, origin: Path, context: int | None = 512) -> dict[str, Any]:
    tokenizer_files.save(AutoTokenizer.from_pretrained(origin), origin, folder, context)
    return json.loads((folder / tokenizer_files.CONFIG_FILE).read_text(encoding="utf-8"))


def test_nothing_private_is_written(tmp_path: Path, demo_teacher: Path) -> None:
    settings = saved(tmp_path / "a", demo_teacher)
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not set(settings) & {"backend", "is_local", "local_files_only", "processor_class", "name_or_path"}
    assert settings["model_max_length"] == 512
    template = (tmp_path / "a" / "chat_template.jinja").read_text(encoding="utf-8")
    assert settings["chat_template"] == template
    assert settings["added_tokens_decoder"]["2"]["content"] == "<|im_end|>"
    assert saved(tmp_path / "b", tmp_path / "a") == settings


@pytest.mark.parametrize("context", [None, 512])
def test_a_known_longest_text_stays(tmp_path: Path, byte_tokenizer: Path, context: int | None) -> None:
    words = AutoTokenizer.from_pretrained(byte_tokenizer, model_max_length=77)
    words.save_pretrained(tmp_path / "known")
    assert saved(tmp_path / "saved", tmp_path / "known", context)["model_max_length"] == 77


def test_special_tokens_stay_special(tmp_path: Path, byte_tokenizer: Path) -> None:
    words = AutoTokenizer.from_pretrained(byte_tokenizer, extra_special_tokens={"image_token": "<|im_start|>"})
    words.add_special_tokens({"additional_special_tokens": ["<extra>"]})
    words.save_pretrained(tmp_path / "named")
    settings = saved(tmp_path / "saved", tmp_path / "named")
    assert settings["extra_special_tokens"] == {"image_token": "<|im_start|>"}
    assert settings["additional_special_tokens"] == ["<extra>"]
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert (again.image_token, again.extra_special_tokens) == ("<|im_start|>", ["<extra>"])
    assert again.decode(again("a<|im_start|><extra>b").input_ids, skip_special_tokens=True) == "ab"


def test_several_templates_are_kept_by_name(tmp_path: Path, byte_tokenizer: Path) -> None:
    words = AutoTokenizer.from_pretrained(byte_tokenizer)
    words.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    words.save_pretrained(tmp_path / "several")
    named = saved(tmp_path / "saved", tmp_path / "several")["chat_template"]
    assert named == [{"name": n, "template": t} for n, t in words.chat_template.items()]
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").chat_template == words.chat_template


def test_a_sentencepiece_model_goes_along(tmp_path: Path, byte_tokenizer: Path) -> None:
    words, origin = AutoTokenizer.from_pretrained(byte_tokenizer), tmp_path / "origin"
    words.save_pretrained(origin)
    (origin / "tokenizer.model").write_bytes(b"pieces")
    tokenizer_files.save(words, origin, tmp_path / "saved", None)
    assert (tmp_path / "saved" / "tokenizer.model").read_bytes() == b"pieces"


@pytest.mark.parametrize("has_space", [True, False])
def test_the_space_before_a_text_is_told(tmp_path: Path, byte_tokenizer: Path, has_space: bool) -> None:
    words = AutoTokenizer.from_pretrained(byte_tokenizer)
    words.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=has_space)
    words.save_pretrained(tmp_path / "origin")
    assert saved(tmp_path / "saved", tmp_path / "origin")["add_prefix_space"] is has_space
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again.convert_ids_to_tokens(again("ab").input_ids) == ["Ġ"] * has_space + ["a", "b"]
