"""The exported student: settings for those who generate with it, and a card whose code runs."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from support import tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline import config as config_module
from pipeline import export
from pipeline.models import lookup, model_folder
from pipeline.run.files import write_json
from pipeline.run.rundir import RunDir

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TOLD = {"train.divergence": "forward_kl", "train.alpha": None, "train.beta": None, "train.temperature": 1}
TOLD |= {"train.targets": "stored", "train.tail": "bucket", "train.ce_weight": 0.5, "train.ce_weight_end": None}
TOLD |= {"train.kd_weight": 0.5, "train.kd_weight_end": None, "student.model": None, "student.keep_layers": "0-5"}


def change(run_dir: RunDir, stage: str, **fingerprint: Any) -> None:
    """A stage's manifest as if it had been done with these settings."""
    manifest = run_dir.manifest(stage)
    settings = {**manifest["fingerprint"], **fingerprint}
    write_json(run_dir.stage_path(stage) / "manifest.json", {**manifest, "fingerprint": settings})


@pytest.fixture(scope="module")
def chat_tokenizer(byte_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tokenizer of bytes that knows how a conversation is written."""
    words = AutoTokenizer.from_pretrained(byte_tokenizer, chat_template=TEMPLATE)
    words.save_pretrained(folder := tmp_path_factory.mktemp("chat"))
    return folder


@pytest.fixture
def run_dir(run_dir: RunDir, chat_tokenizer: Path) -> RunDir:
    """A run whose student is a tiny model."""
    change(run_dir, "train", **TOLD)
    student = tiny_model.make(0, 300, num_hidden_layers=1, max_position_embeddings=512)
    student.config.use_cache = False  # as training leaves it
    folder = run_dir.stage_path("train") / "student"
    student.save_pretrained(folder)
    AutoTokenizer.from_pretrained(chat_tokenizer).save_pretrained(folder)
    (folder / "LICENSE").write_text("Take it.")
    return run_dir


@pytest.fixture
def exported(run_dir: RunDir) -> Callable[..., Path]:
    def exported(dtype: str = "bfloat16", **sampling: Any) -> Path:
        if sampling:
            change(run_dir, "generate", **{f"generate.{key}": value for key, value in sampling.items()})
        config = {"name": "trial", "runs_dir": str(run_dir.path.parent), "export": {"dtype": dtype}}
        export.run(config_module.validate(config, "test"), run_dir)
        return run_dir.path / "export" / "model"

    return exported


def snippet(card: Path, language: str = "python") -> str:
    """The only piece of code in this language."""
    [code] = re.findall(rf"^```{language}\n(.*?)^```$", card.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return code


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_cards_code_runs(
    exported: Callable[..., Path], run_dir: RunDir, dtype: str, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    change(run_dir, "prepare", **{"teacher.chat_template_kwargs": {"enable_thinking": False, "who": "it's me"}})
    folder = exported(dtype)
    card = (folder / "README.md").read_text()
    assert ('give `dtype="float32"`' in card) == (dtype != "float32")
    served = snippet(folder / "README.md", "bash")
    assert """--default-chat-template-kwargs '{"enable_thinking": false, "who": "it'"'"'s me"}'""" in served
    code = snippet(folder / "README.md")
    assert "'enable_thinking': False" in code
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    capsys.readouterr()
    names: dict[str, Any] = {}
    exec(code.replace("max_new_tokens=200", "max_new_tokens=4"), names)
    assert str(names["model"].dtype) == f"torch.{dtype}"
    assert names["prompt"]["input_ids"].shape[1] < names["tokens"].shape[1]
    assert capsys.readouterr().out.strip()


def test_it_generates_as_its_teacher_was_sampled(exported: Callable[..., Path], run_dir: RunDir) -> None:
    folder = exported(temperature=0.7, top_p=0.9, top_k=0)
    told = json.loads((folder / "generation_config.json").read_text())
    assert {key: told[key] for key in ("do_sample", "temperature", "top_p", "top_k")} == {
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 0,
    }
    assert "samples as the teacher was sampled (temperature 0.7, top_p 0.9, top_k 0)" in (
        folder / "README.md"
    ).read_text(encoding="utf-8")
    config = json.loads((folder / "config.json").read_text())
    assert (config["use_cache"], config["torch_dtype"]) == (True, "bfloat16")
    assert config["architectures"] == ["LlamaForCausalLM"]
    words = json.loads((folder / "tokenizer_config.json").read_text())
    assert (words["model_max_length"], words["tokenizer_class"]) == (512, "PreTrainedTokenizerFast")
    assert (folder / "LICENSE").read_text() == "Take it."
    assert {record["name"] for record in run_dir.manifest("export")["files"]} >= {"model/LICENSE", "model/README.md"}


def test_the_weights_are_the_students(exported: Callable[..., Path], run_dir: RunDir) -> None:
    trained: Any = AutoModelForCausalLM.from_pretrained(run_dir.stage_path("train") / "student")
    again: Any = AutoModelForCausalLM.from_pretrained(exported("float32"))
    for name, weight in trained.state_dict().items():
        assert again.state_dict()[name].equal(weight), name


@pytest.mark.parametrize(
    ("teacher", "student", "config", "wanted"),
    [
        ("demo", None, None, (lookup.DEMO_HUB_ID, "apache-2.0")),
        ("someone/teacher", None, None, ("someone/teacher", "apache-2.0")),
        ("someone/teacher", "someone/student", None, ("someone/student", None)),
        ("someone/teacher", None, "shape.json", (None, None)),
        ("./gone", None, None, (None, "apache-2.0")),
        ("/models/gone", "~/gone", None, (None, None)),
    ],
)
def test_the_card_names_what_it_is_made_of(
    run_dir: RunDir, teacher: str, student: str | None, config: str | None, wanted: tuple[str | None, str | None]
) -> None:
    change(run_dir, "generate", **{"teacher.model": teacher})
    change(run_dir, "train", **{"student.model": student, "student.config": config})
    folder = "prepare.folder.their/folder"
    sources = [{"dataset": "someone/prompts"}, {"dataset": "their/folder"}, {"dataset": None}]
    change(run_dir, "prepare", **{"prepare.sources": sources, folder: "hash"})
    manifest = run_dir.manifest("prepare")
    licences = manifest["licences"] | {"teacher": {"licence": "apache-2.0", "told_by": "its card"}}
    write_json(run_dir.stage_path("prepare") / "manifest.json", manifest | {"licences": licences})
    scored = json.loads((run_dir.stage_path("evaluate") / "scores.json").read_text())
    card = export._card(run_dir, scored, run_dir.manifest("train"), "bfloat16")
    data: Any = ModelCard(str(card)).data
    assert (data.base_model, data.license) == wanted
    assert data.datasets == ["someone/prompts"]
    assert data.tags == ["distillation"]


def test_a_student_that_training_writes_is_loaded_likewise(
    tmp_path: Path, chat_tokenizer: Path, exported: Callable[..., Path]
) -> None:
    """Training writes through the same function, so what export writes from its folder is the same but for sampling."""
    words = lookup.Model("chat", chat_tokenizer).tokenizer()
    model = tiny_model.make(0, 300, num_hidden_layers=1, max_position_embeddings=512)
    model_folder.save(model, words, tmp_path / "trained", chat_tokenizer)
    folder = exported("float32")
    for name in ("config.json", "tokenizer_config.json", "tokenizer.json", "chat_template.jinja"):
        assert (folder / name).read_text() == (tmp_path / "trained" / name).read_text(), name
