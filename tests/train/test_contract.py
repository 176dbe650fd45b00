"""The proof before training: in which type the teacher is loaded for it, and what is done if it can't be loaded."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.listed import VOCAB, captured, tiny

from pipeline.config import Train
from pipeline.errors import UserError
from pipeline.machine import hardware
from pipeline.models import lookup
from pipeline.train import contract


@pytest.fixture(scope="module")
def rows() -> Any:
    """What a teacher answered that is served in bfloat16."""
    return captured(tiny().to(torch.bfloat16).float().eval(), 8)


def model_of(folder: Path, **config: Any) -> lookup.Model:
    tiny().to(torch.bfloat16).save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return lookup.Model("teacher", folder)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(contract, "say", lines.append)
    return lines


@pytest.mark.parametrize(("free", "dtype"), [(1.31, "float32"), (1.29, "bfloat16"), (0.66, "bfloat16"), (0.64, None)])
def test_the_teacher_is_loaded_in_float32_or_else_in_its_own_type(
    tmp_path: Path, free: float, dtype: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what this process may take: a container's limit counts, whatever the machine has."""
    teacher = model_of(tmp_path)
    monkeypatch.setattr(hardware, "available_bytes", lambda: int(free * teacher.loaded_bytes(4)))
    assert contract.fitting_dtype(teacher) == dtype
    assert contract.fitting_dtype(teacher, "float32") == ("float32" if dtype == "float32" else None)


@pytest.mark.parametrize("free", [2.0, 1.0])
def test_a_teacher_in_half_precision_is_proved_in_either_type(
    tmp_path: Path, rows: Any, free: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = model_of(tmp_path)
    monkeypatch.setattr(hardware, "available_bytes", lambda: int(free * teacher.loaded_bytes(4)))
    facts = contract.prove(rows, teacher, tiny(1), "", Train())
    assert abs(facts["teacher_kl_nats"]) < 0.02
    assert facts["teacher_tolerance_nats"] == contract.LOOSE_TEACHER_TOLERANCE_NATS


def test_what_vllm_rounds_is_proved_by_a_shift(tmp_path: Path, rows: Any) -> None:
    """Weights that vLLM rounds as it loads them: transformers has others, and the rows still belong to the tokens."""
    teacher = model_of(tmp_path)
    rounded: Any = tiny()
    with torch.no_grad():
        for parameter in rounded.parameters():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    served = captured(rounded.eval(), 8)
    with pytest.raises(UserError, match=r"do not belong|not those that generated"):
        contract.prove(served, teacher, tiny(1), "bfloat16", Train())
    facts = contract.prove(served, teacher, tiny(1), "bfloat16", Train(), is_quantised=True)
    assert facts["teacher_kl_nats"] > contract.LOOSE_TEACHER_TOLERANCE_NATS
    batch = contract.proof_batch(served, VOCAB)
    with pytest.raises(UserError, match="do not belong"):
        contract.check_teacher(rounded, contract.shifted(batch, 1), 5, contract.QUANTISED_TOLERANCE_NATS)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "transformers can't load gptq weights"),
        ({"quantization_config": {"quant_method": "modelopt"}}, "transformers can't load modelopt weights"),
        ({}, "does not fit this machine's memory"),
    ],
)
def test_without_the_teacher_the_student_is_the_judge(
    tmp_path: Path, rows: Any, settings: dict[str, Any], word: str, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = model_of(tmp_path, **settings)
    if not settings:
        monkeypatch.setattr(hardware, "available_bytes", lambda: 0)
    facts = contract.prove(rows, teacher, tiny().eval(), "bfloat16", Train(), is_quantised=bool(settings))
    assert facts["teacher_kl_nats"] is None
    assert word in said[0]
    assert "only the student checks that the rows are aligned" in said[1]
    with pytest.raises(UserError, match="not aligned"):
        contract.prove(captured(tiny().eval(), 8, shift=1), teacher, tiny().eval(), "bfloat16", Train())
