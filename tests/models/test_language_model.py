"""Models that are refused as they are loaded, or before: what would give a wrong figure later, or none."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from support import families
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.config import validate
from pipeline.errors import UserError
from pipeline.models import language_model, model_checks
from pipeline.models.forward import head

VOCAB = 40


def config_of(teacher: Path, **student: Any) -> Any:
    return validate({"name": "trial", "teacher": {"model": str(teacher)}, "student": student}, "test")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "forgotten"), [("gemma2", "CAPS"), ("cohere", "SCALES"), ("granite", "DIVISORS"), ("aya-vision", "SCALES")]
)
def test_a_head_that_is_not_the_models_own_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, forgotten: str, dtype: torch.dtype
) -> None:
    """In half precision, too, whose rounding is let pass; by the weights, and before there are any."""
    families.make(name, tmp_path, VOCAB)
    language_model.load(tmp_path, dtype, "evaluate: student")
    monkeypatch.setattr(head, forgotten, ())
    said = r"evaluate: student: \w+ models make their logits in a way that Retort does not know \(off by [\d.]+\)"
    with pytest.raises(UserError, match=said):
        language_model.load(tmp_path, dtype, "evaluate: student")
    with pytest.raises(UserError, match=said):
        language_model.on_meta(families.config_of(name, VOCAB), "evaluate: student")


def test_code_in_a_models_folder_is_never_run_nor_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}')
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'has_run')!r}, 'w').close()")
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda text="": asked.append(text) or "y")
    with pytest.raises(UserError, match="can't be loaded as a causal language model"):
        language_model.load(tmp_path, torch.float32, "evaluate: other")
    assert not asked
    assert not (tmp_path / "has_run").exists()


def test_a_head_of_two_layers_is_refused_before_the_first_stage_and_as_it_is_loaded(tmp_path: Path) -> None:
    sizes = {"vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    config = AutoConfig.for_model("modernbert-decoder", **sizes, num_attention_heads=2, pad_token_id=0)
    config.save_pretrained(tmp_path)
    with pytest.raises(
        UserError,
        match=r"^teacher\.model .*: modernbert-decoder models make their logits in a way that Retort does not know",
    ):
        model_checks.check(config_of(tmp_path))
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"^train: modernbert-decoder models make their logits"):
        language_model.load(tmp_path, torch.float32, "train")


def test_a_model_without_a_language_model_of_its_own_is_refused_before_the_first_stage(tmp_path: Path) -> None:
    AutoConfig.for_model("qwen3_vl_moe").save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=r"^teacher\.model .*: a qwen3_vl_moe is more than a language model, and .* text"
    ):
        model_checks.check(config_of(tmp_path))


def test_layers_that_can_not_be_left_out_are_named_before_the_first_stage(tmp_path: Path) -> None:
    families.make("qwen3-moe", tmp_path, VOCAB, mlp_only_layers=[], decoder_sparse_step=2)
    model_checks.check(config_of(tmp_path, keep_layers="0-1"))
    with pytest.raises(UserError, match="qwen3_moe puts layers of another kind in the places of 0,2"):
        model_checks.check(config_of(tmp_path, keep_layers="0,2"))


def test_layers_that_use_the_keys_of_others_are_kept_with_them(tmp_path: Path) -> None:
    families.config_of("gemma4-text", VOCAB, num_kv_shared_layers=1).save_pretrained(tmp_path)
    model_checks.check(config_of(tmp_path))
    with pytest.raises(UserError, match="the last 1 layers of this gemma4_text use other layers' keys: keep all"):
        model_checks.check(config_of(tmp_path, num_layers=2))


@pytest.mark.parametrize("name", families.FAMILIES)
def test_every_family_passes_as_teacher_and_as_student(tmp_path: Path, name: str) -> None:
    families.config_of(name, VOCAB).save_pretrained(tmp_path)
    model_checks.check(config_of(tmp_path, num_layers=2))


def test_a_random_student_of_a_config_that_sees_is_its_language_model(tmp_path: Path) -> None:
    from pipeline.models import lookup

    families.config_of("gemma3", VOCAB).save_pretrained(tmp_path)
    config = lookup.random_config(str(tmp_path))
    assert (config.model_type, config.vocab_size, config.tie_word_embeddings) == ("gemma3_text", VOCAB, True)


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    """transformers would draw them at random, with a warning."""
    families.make("llama", tmp_path, VOCAB)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"^train: the weights lack 1 tensors, such as model\.layers\.1\.mlp\.up_proj"):
        language_model.load(tmp_path, torch.float32, "train")


def test_weights_of_other_sizes_than_the_config_says_are_one_line(tmp_path: Path) -> None:
    families.make("llama", tmp_path, VOCAB)
    families.config_of("llama", VOCAB, intermediate_size=64).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"^train: can't be loaded as a causal language model: ") as caught:
        language_model.load(tmp_path, torch.float32, "train")
    assert "\n" not in str(caught.value)


def test_weights_that_are_no_numbers_are_told_from_an_unknown_head(tmp_path: Path) -> None:
    model = families.build("llama", VOCAB)
    model.model.norm.weight.data[0] = torch.nan
    with pytest.raises(UserError, match="its logits are not finite: the weights are damaged"):
        head.prove(model, "train")


@pytest.mark.parametrize("settings", [{"target_modules": ["lm_head"]}, {"modules_to_save": ["lm_head"]}])
def test_a_head_that_an_adapter_changes_is_refused(settings: dict[str, Any]) -> None:
    adapted: Any = get_peft_model(families.build("llama", VOCAB), LoraConfig(task_type="CAUSAL_LM", **settings))
    with pytest.raises(UserError, match=r"train\.lora: adapters on the output layer are not supported"):
        head.head_of(adapted.get_base_model())


def test_drawing_no_weights_leaves_the_generator_and_the_model_as_they_were() -> None:
    before = torch.random.get_rng_state()
    model: Any = language_model.on_meta(families.config_of("phi", VOCAB), "train")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert model.lm_head.weight.shape == (VOCAB, families.HIDDEN)
    assert all(weight.is_meta for weight in model.parameters())
