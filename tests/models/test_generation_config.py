"""generation_config.json as model authors write it: read, made savable, or refused in one line."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from support import tiny_model

from pipeline.errors import UserError
from pipeline.models import generation_config
from pipeline.models.lookup import Model
from pipeline.train import student

LLAMA_2 = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "temperature": 0.9,
    "max_length": 4096,
    "top_p": 0.6,
}
GEMMA = {"cache_implementation": "hybrid", "do_sample": True, "eos_token_id": [1, 6], "top_k": 64, "top_p": 0.95}


class Words:
    eos_token_id = 2


def written(folder: Path, told: Any) -> Path:
    folder.mkdir(exist_ok=True)
    text = told if isinstance(told, str) else json.dumps(told)
    (folder / generation_config.FILE).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("told", "wanted", "said"),
    [
        (LLAMA_2, LLAMA_2 | {"do_sample": True}, ["do_sample is true (it has sampling settings)"]),
        ({"do_sample": None, "temperature": 0.6}, {"do_sample": True, "temperature": 0.6}, ["do_sample is true"]),
        ({"do_sample": False, "top_p": 0.9}, {"do_sample": False}, ["top_p=0.9 is left out"]),
        ({"temperature": 0.0, "top_p": 0.9}, {"do_sample": False}, ["do_sample is false (the temperature is 0)"]),
        ({"temperature": "0.7", "do_sample": True}, {"do_sample": True}, ["temperature=0.7 is left out"]),
        ({"pad_token_id": -1, "eos_token_id": 2}, {"eos_token_id": 2}, ["pad_token_id=-1 is left out"]),
        ({"early_stopping": True, "max_length": 20}, {"max_length": 20}, ["early_stopping=True is left out"]),
        ({"num_beams": 4, "early_stopping": True}, {"num_beams": 4, "early_stopping": True}, []),
        ({"output_scores": True}, {}, ["output_scores=True is left out"]),
        ({"use_cache": False, "cache_implementation": "static"}, {"cache_implementation": "static"}, []),
        ({"temperature": 1.0, "top_p": 1.0}, {"temperature": 1.0, "top_p": 1.0}, []),
        ({"eos_token_id": None, "transformers_version": "4.31.0", "_from_model_config": True}, {}, []),
        (GEMMA, GEMMA, []),
        ({}, {}, []),
    ],
)
def test_what_contradicts_itself_is_mended_or_left_out(
    tmp_path: Path, told: Any, wanted: Any, said: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    read = generation_config.read("m", written(tmp_path, told))
    assert read == told
    kept, changes = generation_config.mended(told)
    assert kept == wanted
    assert capfd.readouterr().err == "", "transformers' own advice is kept off the screen"
    assert len(changes) == len(said)
    assert all(change.startswith(begin) for change, begin in zip(changes, said, strict=True))


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("", "can't be used: Expecting value"),
        ("{oops", "can't be used: Expecting property name"),
        ([1], "can't be used: it is not a JSON object"),
        ({"cache_implementation": "none such"}, "can't be used: Invalid `cache_implementation`"),
        ({"max_new_tokens": 0}, "can't be used: `max_new_tokens` must be greater than 0"),
        ({"eos_token_id": "2"}, "eos_token_id holds '2', which is not a token id"),
        ({"eos_token_id": [1, True]}, "eos_token_id holds True, which is not a token id"),
    ],
)
def test_a_file_that_nothing_can_load_is_one_line(tmp_path: Path, told: Any, said: str) -> None:
    model = Model("m", written(tmp_path, told))
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        model.stop_ids(Words())
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("told", "config", "ends"),
    [
        ({"eos_token_id": [1, 6]}, {}, {1, 2, 6}),
        ({"eos_token_id": 3}, {"eos_token_id": 9}, {2, 3}),
        ({"eos_token_id": None}, {"eos_token_id": 9}, {2}),
        ({}, {"eos_token_id": 9}, {2}),
        (None, {"eos_token_id": 9}, {2, 9}),
        (None, {"text_config": {"eos_token_id": [7, 8]}}, {2, 7, 8}),
        (None, {"eos_token_id": None}, {2}),
    ],
)
def test_an_answer_ends_where_vllm_ends_it(tmp_path: Path, told: Any, config: dict[str, Any], ends: set[int]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    if told is not None:
        written(tmp_path, told)
    assert Model("m", tmp_path).stop_ids(Words()) == ends


@pytest.mark.parametrize("told", [LLAMA_2, {"pad_token_id": -1}, {"early_stopping": True}, GEMMA, {}])
def test_a_students_is_saved_whatever_its_teachers_says(tmp_path: Path, byte_tokenizer: Path, told: Any) -> None:
    from transformers import AutoTokenizer

    from pipeline.models import model_folder

    teacher = tmp_path / "teacher"
    tiny_model.make(0, 300, num_hidden_layers=1).save_pretrained(teacher)
    written(teacher, told)
    model, words = student.load(teacher), AutoTokenizer.from_pretrained(byte_tokenizer)
    model_folder.save(model, words, tmp_path / "student", byte_tokenizer)
    saved = json.loads((tmp_path / "student" / generation_config.FILE).read_text())
    assert saved.pop("transformers_version")
    assert saved == generation_config.mended(told)[0]


def test_a_student_samples_as_its_teacher_was_sampled() -> None:
    made = {"generate.mode": "sample", "generate.temperature": 0.7, "generate.top_p": 0.9, "generate.top_k": 0}
    told = LLAMA_2 | {"do_sample": True, "top_k": 20, "repetition_penalty": 1.1}
    kept = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "max_length": 4096}
    sampled = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0}
    assert generation_config.as_generated(told, made) == kept | sampled
    greedy = made | {"generate.temperature": 0.0}
    assert generation_config.as_generated(told, greedy) == kept | {"do_sample": False}
    assert generation_config.as_generated(told, made | {"generate.mode": "score"}) == told
    for settings in (kept | sampled, kept | {"do_sample": False}):
        assert generation_config.mended(settings) == (settings, [])
