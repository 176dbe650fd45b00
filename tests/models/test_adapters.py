"""train.lora is tried on a model without weights before anything runs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny_model

from pipeline.config import Lora, validate
from pipeline.errors import UserError
from pipeline.models import adapters, lookup

LINEARS = "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"


def meta_model(**config: Any) -> Any:
    with torch.device("meta"):
        return tiny_model.make(0, 30, **config)


def num_adapters(modules: Any) -> int:
    model = meta_model()
    adapters.check(model, Lora(target_modules=modules))
    return sum("lora_A" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize(
    ("modules", "num"),
    [
        ("all-linear", 14),
        ("q_proj,v_proj", 4),
        ("q_proj", 2),
        (["q_proj", "v_proj"], 4),
        ("model.layers.0.self_attn.q_proj, o_proj", 3),
        (r".*\.(q|v)_proj", 4),
        (r"model\.layers\.[0-9]{1,2}\.mlp\..*_proj", 6),
    ],
)
def test_modules_are_names_or_a_pattern(modules: Any, num: int) -> None:
    assert num_adapters(modules) == num


@pytest.mark.parametrize(
    ("modules", "said"),
    [
        ("q_proj,v_prj", f"has no module v_prj; did you mean v_proj or q_proj or o_proj? Its linear layers: {LINEARS}"),
        ("wibble", f"the student has no module wibble; Its linear layers: {LINEARS}"),
        ("self_attn", "PEFT can't adapt self_attn"),
        (r".*z_proj.*", "PEFT can't adapt .*z_proj.*"),
        ("lm_head", "adapters on the output layer are not supported"),
        ("q_proj,embed_tokens", "adapters on the input embedding are not supported"),
    ],
)
@pytest.mark.parametrize("is_tied", [True, False])
def test_modules_that_take_no_adapters_are_one_line_with_those_that_do(modules: str, said: str, is_tied: bool) -> None:
    with pytest.raises(UserError) as caught:
        adapters.check(meta_model(tie_word_embeddings=is_tied), Lora(target_modules=modules))
    assert said in str(caught.value)
    assert LINEARS in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("role", ["pruned teacher", "student", "config"])
def test_check_tries_them_on_the_student_of_the_config(tmp_path: Path, role: str) -> None:
    tiny_model.make(0, 30).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    chosen = {
        "pruned teacher": {"teacher": {"model": str(tmp_path)}, "student": {"num_layers": 1}, "generate": {"k": 8}},
        "student": {"student": {"model": str(tmp_path)}},
        "config": {"student": {"config": str(tmp_path)}},
    }[role]
    for modules, fits in (("q_proj,v_proj", True), ("q_prj", False)):
        config = validate({"name": "t", **chosen, "train": {"lora": {"target_modules": modules}}}, "test")
        if fits:
            lookup.check_settings(config)
        else:
            with pytest.raises(UserError, match="has no module q_prj"):
                lookup.check_settings(config)
