"""export: the student as a folder that transformers and vLLM load, with a model card made from the manifests."""

import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from pipeline import models
from pipeline.config import Config, output_settings
from pipeline.console import counted, say
from pipeline.export import cards, model_index
from pipeline.files import read_json, readable
from pipeline.rundir import RunDir


def run(config: Config, run_dir: RunDir) -> None:
    """Write export/model: weights in `export.dtype`, tokenizer, chat template, README.md."""
    models.quiet_transformers()
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
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        source = run_dir.stage_path("train") / "student"
        dtype: torch.dtype = getattr(torch, config.export.dtype)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, use_safetensors=True, trust_remote_code=False)
        temporary = stage.path / ".model.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        model.save_pretrained(temporary)
        AutoTokenizer.from_pretrained(source, trust_remote_code=False).save_pretrained(temporary)
        scores = read_json(run_dir.stage_path("evaluate") / "scores.json")
        _card(run_dir, scores, trained).save(temporary / "README.md")
        readable(temporary)
        temporary.replace(target)
        files = [path for path in sorted(target.iterdir()) if path.is_file()]
        stage.finish(files, {"files": len(files)}, evaluated=evaluated["finished"])
    say(f"export: {target.resolve()}")


def _card(run_dir: RunDir, scores: dict[str, Any], trained: dict[str, Any]) -> ModelCard:
    """A card that says what the student is, what it was made from, and what was measured."""
    generated = run_dir.manifest("generate")
    named = generated["fingerprint"]["teacher.model"]
    teacher = models.described(named)
    made = trained["fingerprint"]
    origin = made["student.model"] or named
    is_local = Path(origin).expanduser().is_dir()
    data = ModelCardData(
        model_name=run_dir.path.name,
        eval_results=model_index.results(scores) or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["distillation"],
        base_model=models.DEMO_HUB_ID if origin == models.DEMO else None if is_local else origin,
        license=models.DEMO_LICENCE if origin == named == models.DEMO else None,
    )
    layers = models.kept_layers(trained)
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
  {trained["counts"]["answer_tokens"]} tokens, with the {generated["k"]} best log-probs behind each
- Loss: {loss}
- Teacher weights: `{generated["fingerprint"]["teacher.weights"]}`

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

{cards.questions(run_dir, "model")}"""
    return ModelCard(body)


def _loss(made: dict[str, Any]) -> str:
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
