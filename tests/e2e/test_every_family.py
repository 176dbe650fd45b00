"""Every stage on tiny random models of the families that people distil, with real tokenizers and chat templates.

The student is the whole teacher, and training moves nothing. So whatever differs between vLLM, transformers and this
project's own head shows: the contract's proof compares vLLM with transformers, and evaluate must find a KL of 0.
"""

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support import families
from transformers import AutoTokenizer

from pipeline import config as config_module
from pipeline import export
from pipeline.config import Config
from pipeline.config.filters import Filter
from pipeline.evaluate.fidelity import fidelity_figures, forced_responses
from pipeline.models import lookup
from pipeline.models.forward.forced import load
from pipeline.run.rundir import RunDir

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
ROOT = Path(__file__).parent.parent.parent
# vLLM's CPU attention takes heads of 32 and wider
SIZES = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 512}
GEMMA_2 = """{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('No system role') }}
{%- endif %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}
{%- endif %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}
{{ m.content | trim }}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""


@dataclass(frozen=True)
class Case:
    """A family's tokenizer (scripts/fetch_tokenizers.py), and what of its config vLLM needs otherwise."""

    tokenizer: str
    changes: dict[str, Any] = field(default_factory=dict)
    template: str | None = None  # in place of the tokenizer's own


CASES = {
    "llama": Case("llama3_1"),
    "qwen3": Case("qwen3"),
    "qwen3-moe": Case("qwen3"),
    "gemma2": Case("gemma3", template=GEMMA_2),
    "gemma3-text": Case("gemma3"),
    "granite": Case("llama3_1"),
    "cohere": Case("llama3_1"),
    "cohere2": Case("llama3_1"),
    "phi3": Case("llama3_1"),
    "mistral": Case("llama3_1"),
    "llama-tied": Case("deepseek_v3"),
}
# Families that vLLM 0.32's CPU build lists and does not serve here; test_families.py has their heads and layers.
NOT_SERVED = {
    "olmo2": "its layers ask for vLLM's settings in the forward pass: Current vLLM config is not set",
    "deepseek-v3": "its loader finds no place for the router's bias: KeyError e_score_correction_bias",
}
# Families whose scores.json is written too, by engines of both arms; of the others the forced pass alone is measured.
EVALUATED = ("gemma2", "granite")
NO_RULE = [
    f"filter.{name}=" + ("false" if setting.annotation is bool else "null")
    for name, setting in Filter.model_fields.items()
    if setting.annotation is bool or "None" in str(setting.annotation)
]
SETTINGS = [
    *NO_RULE,  # random weights write nothing that a rule would keep
    "prepare.max_prompts=12",
    "prepare.held_out_frac=0.3",
    "generate.max_tokens=12",
    "generate.k=16",
    "teacher.engine.max_model_len=512",
    "teacher.engine.max_num_seqs=8",
    "student.keep_layers=null",
    "train.learning_rate=1e-12",
    "train.sft_only_arm=false",
    "train.dtype=float32",
    "evaluate.chat_items=3",
    "evaluate.tasks.limit=2",
    "evaluate.risks.limit=1",
    "evaluate.max_tokens=8",
    "evaluate.tasks.max_tokens=8",
    "evaluate.risks.max_tokens=8",
    "evaluate.speed_concurrency=[1]",
    "evaluate.speed_tokens=4",
    "evaluate.speed_rounds=1",
    "evaluate.bootstrap=100",
]


def test_what_is_not_served_is_a_family_all_the_same() -> None:
    assert NOT_SERVED.keys() <= families.FAMILIES.keys()
    assert not NOT_SERVED.keys() & CASES.keys()


def mark_of(name: str) -> pytest.MarkDecorator:
    """One dense family with every oddity of a head and a template, and one of experts, are shown each time."""
    return pytest.mark.ci if name in ("gemma2", "qwen3-moe") else pytest.mark.nightly


def made(name: str, folder: Path, tokenizer_folder: Path) -> Config:
    """The config of a run whose teacher is a new model of the family."""
    case, teacher = CASES[name], folder / "teacher"
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.chat_template = case.template or tokenizer.chat_template
    settings = families.FAMILIES[name].settings
    sizes = {key: size for key, size in SIZES.items() if key != "sliding_window" or key in settings}
    sizes |= {"head_dim": 32} if "head_dim" in settings else {}
    # wider than the tokenizer, as models are padded
    families.make(name, teacher, len(tokenizer) + 8, eos_token_id=tokenizer.eos_token_id, **sizes | case.changes)
    tokenizer.save_pretrained(teacher)
    settings = [f"name={name}", f"runs_dir={folder}", f"teacher.model={teacher}", *SETTINGS]
    return config_module.load(ROOT / "configs/quickstart.yaml", settings)


@pytest.fixture
def no_cache_of_a_whole_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engines of all families stay in this process, each with the small cache that it needs."""
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE")


@pytest.mark.usefixtures("no_cache_of_a_whole_gib")
@pytest.mark.parametrize("name", [pytest.param(name, marks=mark_of(name)) for name in CASES])
def test_a_student_equal_to_its_teacher_has_a_kl_of_0(
    name: str, tmp_path: Path, real_tokenizer: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    config = made(name, tmp_path, real_tokenizer(CASES[name].tokenizer))
    for stage in ["prepare", "generate", "filter", "train", *(["evaluate", "export"] if name in EVALUATED else [])]:
        importlib.import_module(f"pipeline.{stage}").run(config, RunDir(config.run_path))
    run_dir = RunDir(config.run_path)
    proved = run_dir.manifest("train")["contract"]
    assert proved["teacher_logprob_difference_nats"] < 1e-3
    assert abs(proved["teacher_kl_nats"]) < 3e-3, "the stored rows are rounded"
    if name in EVALUATED:
        measured = json.loads((run_dir.path / "evaluate/scores.json").read_text())["arms"]["student"]
        sections = [measured[section] for section in ("fidelity", "fidelity_chat", "fidelity_own")]
    else:
        sections = [forced(config, run_dir)]
        export._write_model(run_dir, "float32", tmp_path / "exported")
        load(tmp_path / "exported", "float32", name)
    for section in sections:
        assert abs(section["forward_kl_nats"]["value"]) < 1e-6
        assert section["acceptance_frac"]["value"] == pytest.approx(1, abs=1e-6)


def forced(config: Config, run_dir: RunDir) -> dict[str, Any]:
    """The student's figures on the teacher's held-out answers, as evaluate measures them."""
    folders = {"teacher": lookup.teacher_of(run_dir).path, "student": run_dir.stage_path("train") / "student"}
    loaded = {arm: load(folder, "float32", arm) for arm, folder in folders.items()}
    texts = forced_responses.held_out(config, run_dir)
    sums = fidelity_figures.measure_all(loaded, texts, dict.fromkeys(loaded, ()), config.evaluate)
    return fidelity_figures.sections(sums, "student", config.evaluate)["fidelity"]
