"""A student's folder: the settings that tools of the last years read, whole weights once, and the licence's text."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from support import tiny_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from pipeline.models import model_folder

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 300, "head_dim": 8}
SMALL |= {"num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": None, "eos_token_id": 1}
LLAMA_3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA_3 |= {"original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
# a family's settings as the hub has them, and what must stand in the student's config.json
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama": ({"rope_theta": 5e5, "rope_scaling": LLAMA_3}, {"rope_theta": 5e5, "rope_scaling": LLAMA_3}),
    "qwen2": ({"rope_theta": 1e6, "rope_scaling": YARN}, {"rope_theta": 1e6, "rope_scaling": YARN}),
    "qwen3": ({"rope_theta": 1e6}, {"rope_theta": 1e6, "rope_scaling": None}),
    "mistral": ({"rope_theta": 1e6}, {"rope_theta": 1e6}),
    "gemma2": ({}, {"rope_theta": 1e4}),
    "gemma3_text": (
        {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    ),
    "phi3": ({"rope_theta": 2e4, "partial_rotary_factor": 0.5}, {"rope_theta": 2e4, "partial_rotary_factor": 0.5}),
    "granite": ({"rope_theta": 1e7}, {"rope_theta": 1e7}),
    "cohere": ({"rope_theta": 4e6}, {"rope_theta": 4e6}),
    "olmo2": ({"rope_theta": 5e5}, {"rope_theta": 5e5}),
    "olmo3": ({"rope_theta": 5e5}, {"rope_theta": 5e5}),
}


def built(kind: str, settings: dict[str, Any]) -> Any:
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL, **copy.deepcopy(settings)))


def saved(target: Path, model: Any, words_of: Path, **more: Any) -> dict[str, Any]:
    model_folder.save(model, AutoTokenizer.from_pretrained(words_of), target, words_of, **more)
    return json.loads((target / "config.json").read_text())


@pytest.mark.parametrize("kind", FAMILIES)
def test_rotary_settings_have_the_names_that_every_tool_knows(tmp_path: Path, byte_tokenizer: Path, kind: str) -> None:
    settings, wanted = FAMILIES[kind]
    model = built(kind, settings)
    told = saved(tmp_path / "m", model, byte_tokenizer)
    assert {key: told[key] for key in wanted} == wanted
    assert told["torch_dtype"] == "float32"
    assert not {"rope_parameters", "dtype"} & set(told)
    again = AutoConfig.from_pretrained(tmp_path / "m").to_dict()
    assert again["rope_parameters"] == model.config.to_dict()["rope_parameters"]


def test_settings_that_have_no_older_names_stay(
    tmp_path: Path, byte_tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = built("gpt_neox", {})
    told = saved(tmp_path / "m", model, byte_tokenizer)
    assert told["rope_parameters"] == model.config.rope_parameters
    assert "gpt_neox: config.json has rotary settings that transformers 4 does not know" in capsys.readouterr().err


def test_a_part_of_a_config_is_written_likewise() -> None:
    text = {"dtype": "float32", "rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}
    whole = {
        "text_config": text,
        "vision_config": {"dtype": "float32"},
        "dtype": "float32",
        "quantization_config": None,
    }
    assert model_folder.old_names(whole) == {
        "text_config": {"torch_dtype": "float32", "rope_theta": 5.0, "rope_scaling": None},
        "vision_config": {"torch_dtype": "float32"},
        "torch_dtype": "float32",
        "quantization_config": None,
    }


def test_a_student_keeps_keys_and_values_when_it_generates(tmp_path: Path, byte_tokenizer: Path) -> None:
    model = tiny_model.make(0, 300)
    model.config.use_cache = False  # as training leaves it
    assert saved(tmp_path / "m", model, byte_tokenizer)["use_cache"] is True


@pytest.mark.parametrize("is_tied", [True, False])
def test_tied_weights_that_were_gathered_are_saved_once(tmp_path: Path, byte_tokenizer: Path, is_tied: bool) -> None:
    model = tiny_model.make(0, 300, tie_word_embeddings=is_tied)
    gathered = {name: weight.clone() for name, weight in model.state_dict().items()}
    saved(tmp_path / "m", model, byte_tokenizer, state_dict=gathered)
    with safe_open(tmp_path / "m" / "model.safetensors", "pt") as file:
        assert ("lm_head.weight" in set(file.keys())) != is_tied
    again: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert all(weight.equal(gathered[name]) for name, weight in again.state_dict().items())


def test_licence_and_notices_go_along(tmp_path: Path, byte_tokenizer: Path) -> None:
    origin = tmp_path / "origin"
    origin.mkdir()
    for name in ("LICENSE.txt", "Notice", "USE_POLICY.md", "README.md"):
        (origin / name).write_text(name)
    saved(tmp_path / "m", tiny_model.make(0, 300), byte_tokenizer, weights_of=origin)
    assert (tmp_path / "m" / "LICENSE.txt").read_text() == "LICENSE.txt"
    assert {path.name for path in (tmp_path / "m").iterdir()} >= {"Notice", "USE_POLICY.md"}
    assert not (tmp_path / "m" / "README.md").exists()
