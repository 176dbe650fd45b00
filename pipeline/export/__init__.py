"""export: the student as a folder that transformers and vLLM load, with a model card made from the manifests."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from pipeline.config import Config, output_settings
from pipeline.console import counted, say
from pipeline.export import cards, model_index, snippets
from pipeline.models import generation_config, lookup
from pipeline.run import artifacts
from pipeline.run.files import read_json, readable, user_disk_errors
from pipeline.run.manifest import Fingerprint, ManifestRow
from pipeline.run.rundir import RunDir
from pipeline.screening import licences, provenance


def run(config: Config, run_dir: RunDir) -> None:
    """Write export/model: weights in `export.dtype`, tokenizer, chat template, README.md."""
    lookup.quiet_transformers()
    trained, evaluated = run_dir.manifest("train"), run_dir.manifest("evaluate")
    run_dir.check_files("train")
    fingerprint = {
        **{f"export.{key}": value for key, value in output_settings(config.export).items()},
        "input.train": run_dir.output_hash("train"),
        "input.evaluate": run_dir.output_hash("evaluate"),
    }
    stage = run_dir.begin("export", config, fingerprint, in_one_piece=True)
    target = stage.path / "model"
    if not stage.complete:
        temporary = stage.path / ".model.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        with user_disk_errors(target):
            _write_model(run_dir, config.export.dtype, temporary)
            scores = read_json(run_dir.stage_path("evaluate") / artifacts.SCORES)
            _card(run_dir, scores, trained, config.export.dtype).save(temporary / "README.md")
            readable(temporary)
            temporary.replace(target)
        files = [path for path in sorted(target.rglob("*")) if path.is_file()]
        stage.finish(files, {"files": len(files)}, evaluated=evaluated["finished"])
    say(f"export: {target.resolve()}")


def _write_model(run_dir: RunDir, dtype: str, target: Path) -> None:
    """The student's weights in `dtype`, its tokenizer, and settings that sample as its teacher was sampled."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    from pipeline.models import model_folder

    source = run_dir.stage_path("train") / "student"
    model: Any = AutoModelForCausalLM.from_pretrained(
        source, dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=False
    )
    made = run_dir.fingerprint("generate")
    settings = generation_config.as_generated(model.generation_config.to_diff_dict(), made)
    model.generation_config = GenerationConfig(**settings)
    model_folder.save(model, lookup.Model("the student", source).tokenizer(), target, source, source)


def _card(run_dir: RunDir, scores: dict[str, Any], trained: ManifestRow, dtype: str) -> ModelCard:
    """A card that says what the student is, what it was made from, and what was measured."""
    generated = run_dir.manifest("generate")
    named = generated["fingerprint"]["teacher.model"]
    teacher = lookup.described(named)
    made = trained["fingerprint"]
    data = ModelCardData(
        model_name=run_dir.path.name,
        eval_results=model_index.results(scores) or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["distillation"],
        base_model=None if made.get("student.config") else _hub_id(made["student.model"] or named),
        license=_licence(run_dir, made),
        datasets=_hub_datasets(run_dir) or None,
    )
    layers = lookup.kept_layers(trained)
    start = f"{made['student.model'] or 'the teacher'}, {f'layers {layers}' if layers else 'all layers'}"
    if made.get("student.config"):
        start = f"random weights, made as {made['student.config']} says"
    loss = _loss(made)
    verdict = "\n".join(f"- {claim['text']}" for claim in scores["verdict"]["claims"])
    body = f"""---
{data.to_yaml()}
---

# {run_dir.path.name}

A student of {teacher}, distilled with Retort.

- Started from: {start}
- Learnt from: {counted(trained["counts"]["rows"], "answer")} of the teacher,
  {trained["counts"]["answer_tokens"]} tokens, each with its {generated["k"]} best log-probs
- Loss: {loss}
- Teacher weights: `{generated["fingerprint"]["teacher.weights"]}`
- Weights here: {dtype}; {_sampling(generated["fingerprint"])}

{snippets.of_model(run_dir.fingerprint("prepare")["teacher.chat_template_kwargs"], dtype)}
## What was measured

{verdict}

{cards.differences(scores)}
{cards.intended_use("model")}
{cards.licences_section(run_dir)}
{cards.decontamination_section(run_dir)}
{cards.personal_section(run_dir)}
{cards.safety_section(run_dir)}
## Before you use it

The figures are about the prompts of one run. The student carries over what its teacher gets wrong, and adds to it.
The teacher's licence applies to what is made from it.

{cards.template_section(run_dir)}{cards.questions(run_dir, "model")}"""
    return ModelCard(body)


def _sampling(made: Mapping[str, Any]) -> str:
    """How generation_config.json samples: of a generate manifest's fingerprint."""
    if made.get("generate.mode") == "score":
        return "generation_config.json is that of the model it started from"
    if made["generate.temperature"] == 0:
        return "generation_config.json is greedy, as the teacher's answers were"
    drawn = ", ".join(f"{key} {made[f'generate.{key}']:g}" for key in ("temperature", "top_p", "top_k"))
    return f"generation_config.json samples as the teacher was sampled ({drawn})"


def _hub_id(name: str) -> str | None:
    """A model's id on the hub; None for a folder."""
    if name == lookup.DEMO:
        return lookup.DEMO_HUB_ID
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return None if Path(name).is_dir() else name


def _licence(run_dir: RunDir, made: Fingerprint) -> str | None:
    """The teacher's licence, if the student is made of the teacher's weights and a hub knows the licence's name."""
    if made["student.model"] or made.get("student.config") or (told := provenance.licensed(run_dir)) is None:
        return None
    licence = told[0][0].licence
    return licence if licences.terms_of(licence) else None


def _hub_datasets(run_dir: RunDir) -> list[str]:
    """The sources that are datasets of the hub."""
    made = run_dir.fingerprint("prepare")
    names = dict.fromkeys(source.get("dataset") for source in made.get("prepare.sources", []))
    return [name for name in names if name and f"prepare.folder.{name}" not in made and _hub_id(name)]


def _loss(made: Mapping[str, Any]) -> str:
    """What the student was trained on, in words: of a train manifest's fingerprint."""
    name = made["train.divergence"].replace("_", " ").replace("kl", "KL").replace("jsd", "JSD")
    parameters = [f"{key} {made[f'train.{key}']:g}" for key in ("alpha", "beta") if made[f"train.{key}"] is not None]
    if made["train.temperature"] != 1:
        parameters.append(f"temperature {made['train.temperature']:g}")
    if made["train.targets"] == "live":
        parameters.append("over the whole vocabulary")
    elif made["train.tail"] != "bucket":
        parameters.append(f"the tail {'given to the label' if made['train.tail'] == 'label' else 'renormalised away'}")
    divergence = f"{name} ({', '.join(parameters)})" if parameters else name
    terms = []
    for key, what in (("ce", "cross-entropy on its tokens"), ("kd", divergence)):
        first, last = made[f"train.{key}_weight"], made[f"train.{key}_weight_end"]
        if first or last:
            terms.append(f"{first:g} × {what}" if last is None else f"{first:g} to {last:g} × {what}")
    return " + ".join(terms)
