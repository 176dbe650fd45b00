"""train: the student is made, the alignment contract proved, and each arm trained on the kept answers."""

import shutil
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from pipeline import models
from pipeline.config import Config, Train, output_settings
from pipeline.console import say
from pipeline.rundir import RunDir, Stage, file_hash, readable, user_disk_errors
from pipeline.train import contract, student
from pipeline.train.batches import kept_rows
from pipeline.train.trainer import fit


def run(config: Config, run_dir: RunDir) -> None:
    """Write train/untrained, train/student and, where asked for, train/sft_only: plain transformers folders."""
    models.quiet_transformers()
    config = config.model_copy(update={"train": with_dtype(config.train)})
    generated = run_dir.manifest("generate")
    stage = run_dir.begin("train", config, _fingerprint(config, run_dir))
    if stage.complete:
        return
    teacher = models.teacher_of(run_dir)
    models.check_weights(teacher, run_dir)
    rows, too_long = kept_rows(run_dir, "train", config.train.max_length, config.train.reasoning)
    untrained = stage.path / "untrained"
    _once(untrained, lambda target: stage.remember(student=student.make(config, teacher, target, rows)))
    tokenizer = teacher.tokenizer()
    say("train: proving that tokens and log-probs are aligned")
    facts = contract.prove(
        rows,
        teacher,
        student.load(untrained),
        generated.get("teacher_dtype", ""),
        config.train.head_chunk_tokens,
    )
    arms = {"student": config.train}
    if config.train.sft_only_arm:
        arms["sft_only"] = config.train.model_copy(update={"ce_weight": 1.0, "kd_weight": 0.0})
    for arm, settings in arms.items():
        _train_arm(stage, arm, settings, rows, tokenizer)
    trained = stage.facts()["arms"]
    shutil.rmtree(stage.path / "checkpoints", ignore_errors=True)
    counts = {
        "rows": len(rows),
        "too_long": too_long,
        "answer_tokens": _learnt_tokens(rows, config.train.reasoning),
        "steps": max(fitted["steps"] for fitted in trained.values()),
    }
    folders = [untrained, *(stage.path / arm for arm in arms)]
    files = [path for folder in folders for path in sorted(folder.iterdir()) if path.is_file()]
    stage.finish(files, counts, contract=facts, dtype=config.train.dtype)


def _learnt_tokens(rows: Dataset, how: str) -> int:
    return sum(map(len, rows["token_ids"])) - (0 if how == "keep" else sum(rows["reasoning_tokens"]))


def with_dtype(settings: Train) -> Train:
    """The settings with `auto` resolved for this machine: bfloat16 where it is computed natively, else float32."""
    if settings.dtype != "auto":
        return settings
    on_gpu = torch.cuda.is_available()
    native = torch.cuda.is_bf16_supported() if on_gpu else torch.cpu._is_avx512_bf16_supported()
    return settings.model_copy(update={"dtype": "bfloat16" if native else "float32"})


def _train_arm(stage: Stage, arm: str, settings: Train, rows: Dataset, tokenizer: Any) -> None:
    """Train one student from the untrained one; nothing to do where its folder is there already."""

    def train_into(target: Path) -> None:
        model = student.load(stage.path / "untrained")
        checkpoints = stage.path / "checkpoints" / arm
        fitted = fit(settings, arm, model, tokenizer, rows, stage.path, checkpoints)
        fitted.pop("model").save_pretrained(target)
        tokenizer.save_pretrained(target)
        stage.remember(arms={**stage.facts().get("arms", {}), arm: fitted})

    _once(stage.path / arm, train_into)


def _once(folder: Path, write: Any) -> None:
    """Have `write` fill a folder under a temporary name, then rename it: it is there whole, or not at all."""
    if folder.exists():
        return
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with user_disk_errors(folder):
        write(temporary)
        readable(temporary)
        temporary.replace(folder)


def _fingerprint(config: Config, run_dir: RunDir) -> dict[str, Any]:
    return {
        **{f"train.{key}": value for key, value in output_settings(config.train).items()},
        **{f"student.{key}": value for key, value in output_settings(config.student).items()},
        "student.weights": _student_weights(config),
        "teacher.weights": run_dir.manifest("generate")["fingerprint"]["teacher.weights"],
        "input.generate": run_dir.output_hash("generate"),
        "input.filter": run_dir.output_hash("filter"),
    }


def _student_weights(config: Config) -> str:
    """What the untrained student's weights follow from, besides the other settings."""
    if config.student.config is not None:
        return f"random: {file_hash(models.config_file(config.student.config))}"
    model = config.student.model
    return models.find(model, config.student.revision).weights_hash() if model else "the teacher's"
