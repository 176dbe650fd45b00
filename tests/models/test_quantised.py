"""Weights in few bits: what is loaded as plain weights, and what is refused before anything runs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support import tiny_model

from pipeline.config import validate
from pipeline.errors import UserError
from pipeline.inference.engine_args import engine_settings
from pipeline.models import language_model, lookup, quantised
from pipeline.models.lookup import Model

VOCAB = 48
CONFIGS: dict[str, dict[str, Any]] = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True},
    "modelopt": {"quant_method": "modelopt", "quant_algo": "NVFP4"},
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [16, 16]},
}


def folder_of(folder: Path, settings: dict[str, Any] | None) -> Path:
    """A plain tiny model whose config says that its weights are in few bits."""
    model = tiny_model.make(0, VOCAB)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    if settings is not None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return folder


def compressed(folder: Path, bits: int) -> tuple[Path, Any]:
    """A tiny model by compressed-tensors (W4A16 or W8A8), and the plain one that it stands for."""
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    model = tiny_model.make(0, VOCAB, hidden_size=32, intermediate_size=64)
    stored, plain, most = {}, {}, 2 ** (bits - 1) - 1
    for name, weight in model.state_dict().items():
        stored[name] = plain[name] = weight.clone()
        if not name.endswith("proj.weight"):
            continue
        scale = weight.abs().amax(dim=1, keepdim=True) / most
        levels = (weight / scale).round().to(torch.int8)
        plain[name] = levels * scale
        stored[f"{name}_scale"] = scale
        if bits == 4:
            del stored[name]
            stored |= {f"{name}_packed": pack_to_int32(levels, 4), f"{name}_shape": torch.tensor(weight.shape)}
        else:
            stored[name] = levels
    model.load_state_dict(plain)
    model.save_pretrained(folder)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    weights = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
    group: dict[str, Any] = {"targets": ["Linear"], "weights": weights}
    if bits == 8:
        group["input_activations"] = weights | {"strategy": "token", "dynamic": True}
    settings = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized" if bits == 4 else "int-quantized",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "quantization_status": "compressed",
    }
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return folder, model


@pytest.mark.parametrize("bits", [4, 8])
@torch.no_grad()
def test_a_teacher_in_few_bits_is_loaded_as_the_plain_weights_that_it_stands_for(
    tmp_path: Path, bits: int, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, plain = compressed(tmp_path, bits)
    capfd.readouterr()
    loaded: Any = language_model.load(folder, "float32", "evaluate: teacher")
    assert "ompressing model" not in capfd.readouterr().err
    weights = loaded.state_dict()
    for name, weight in plain.state_dict().items():
        torch.testing.assert_close(weights[name], weight)
    if bits == 4:  # else activations are rounded too, as vLLM does it
        ids = torch.arange(VOCAB)[None]
        torch.testing.assert_close(loaded(input_ids=ids).logits, plain(input_ids=ids).logits)
    num_parameters = sum(parameter.numel() for parameter in plain.parameters())
    assert Model("m", folder).num_parameters() == num_parameters
    assert Model("m", folder).plain_bytes(2) == 2 * num_parameters


@pytest.mark.parametrize(("method", "said"), [("gptq", "optimum"), ("awq", "gptqmodel"), ("modelopt", "Unknown")])
def test_a_teacher_that_transformers_cannot_load_is_told_before_anything_runs(
    tmp_path: Path, method: str, said: str
) -> None:
    teacher, student = folder_of(tmp_path / "teacher", CONFIGS[method]), folder_of(tmp_path / "student", None)
    chosen = {"teacher": {"model": str(teacher)}, "student": {"model": str(student)}, "generate": {"k": 8}}
    with pytest.raises(UserError) as caught:
        lookup.check_settings(validate({"name": "t", "runs_dir": str(tmp_path), **chosen}, "test"))
    message = str(caught.value)
    assert f"transformers can't load {method} weights on this machine" in message
    assert said in message
    assert "or skip evaluate: run `retort prepare`, `generate`, `filter`, `train` and `export` one by one" in message
    assert "\n" not in message
    with pytest.raises(UserError, match=f"train: teacher: transformers can't load {method}"):
        language_model.load(teacher, "float32", "train: teacher")


@pytest.mark.parametrize("method", CONFIGS)
@pytest.mark.parametrize("change", [{}, {"num_layers": 1}, {"keep_layers": "0"}])
def test_no_student_is_made_of_weights_in_few_bits(tmp_path: Path, method: str, change: dict[str, Any]) -> None:
    folder, plain = folder_of(tmp_path / "few", CONFIGS[method]), folder_of(tmp_path / "plain", None)
    of_teacher = {"teacher": {"model": str(folder)}, "student": change}
    of_student = {"teacher": {"model": str(plain)}, "student": {"model": str(folder), **change}}
    for chosen, said in (
        (of_teacher, f"the weights of the teacher {folder} are quantised ({method}), and no student can be made"),
        (of_student, f"student.model {folder}: its weights are quantised ({method}) and can't be trained"),
    ):
        config = validate({"name": "t", "runs_dir": str(tmp_path), "generate": {"k": 8}, **chosen}, "test")
        with pytest.raises(UserError) as caught:
            lookup.check_settings(config)
        assert said in str(caught.value)


@pytest.mark.parametrize(
    ("config", "method"),
    [
        ({}, None),
        ({"quantization_config": None}, None),
        ({"quantization_config": {}}, None),
        ({"text_config": None}, None),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"text_config": {"quantization_config": {"quant_method": "fp8"}}}, "fp8"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ({"quantization_config": {"load_in_4bit": True}}, "bitsandbytes (4 bits)"),
        ({"quantization_config": {"bits": 4}}, "an unknown method"),
    ],
)
def test_the_method_is_found_wherever_a_config_has_it(config: dict[str, Any], method: str | None) -> None:
    assert quantised.method_of(config) == method


@pytest.mark.parametrize(
    ("engine_args", "is_served"),
    [
        ({}, False),
        ({"dtype": "bfloat16", "kv_cache_dtype": "auto"}, False),
        ({"quantization": "fp8"}, True),
        ({"kv_cache_dtype": "fp8"}, True),
    ],
)
def test_an_engine_may_make_few_bits_of_plain_weights(engine_args: dict[str, Any], is_served: bool) -> None:
    assert quantised.is_served({}, engine_args) == is_served
    assert quantised.is_served({"quantization_config": {"quant_method": "gptq"}}, engine_args)


@pytest.mark.parametrize(("method", "dtype"), [(None, "float32"), ("gptq", None)])
def test_on_a_cpu_vllm_chooses_the_type_of_what_it_computes_in_few_bits(
    tmp_path: Path, method: str | None, dtype: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its kernels refuse float32, in which all else is computed there."""
    monkeypatch.setattr("pipeline.machine.hardware.is_cpu", lambda: True)
    folder = str(folder_of(tmp_path, CONFIGS[method] if method else None))
    assert engine_settings(folder, {}, 8).get("dtype") == dtype
    assert engine_settings(folder, {"dtype": "float16"}, 8)["dtype"] == "float16"
