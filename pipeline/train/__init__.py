"""train: the student is made, the alignment contract proved, and each arm trained on the kept answers."""

import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import PeftModel

from pipeline.config import Config, Train, check_counts, output_settings
from pipeline.console import counted, say
from pipeline.models import lookup, model_folder, quantised
from pipeline.run.commit import Stage
from pipeline.run.files import file_hash, readable, user_disk_errors
from pipeline.run.left_out import LARGE_FRAC
from pipeline.run.rundir import RunDir
from pipeline.train import contract, student
from pipeline.train.examples import MIN_ANSWERS_TO_SPLIT, TrainingExamples, kept_answers, split_validation, why_left_out
from pipeline.train.trainer import fit


def run(config: Config, run_dir: RunDir) -> None:
    """Write train/untrained, train/student and, where asked for, train/sft_only: plain transformers folders.

    Of several processes (train.launch) the first makes ready and writes; the others train along.
    """
    lookup.quiet_transformers()
    config = config.model_copy(update={"train": with_dtype(config.train)})
    # the others wait while the first makes ready
    processes = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(hours=12))
    is_first = processes.is_main_process
    stage = Stage(run_dir, "train", run_dir.stage_path("train"), {}, [])
    if is_first:
        stage = run_dir.begin("train", config, _fingerprint(config, run_dir))
    processes.wait_for_everyone()
    if run_dir.is_done("train"):
        return
    teacher, settings = lookup.teacher_of(run_dir), config.train
    check_counts(settings, run_dir.fingerprint("generate")["generate.support"])
    answers = kept_answers(run_dir, "train", settings.max_length, settings.reasoning)
    examples, validation = split_validation(answers, settings.validation_frac)
    if is_first:
        _tell(answers, validation, settings)
    facts = _make_ready(config, run_dir, stage, teacher, examples) if is_first else {}
    for arm, of_arm in _arms(settings).items():
        processes.wait_for_everyone()
        _train_arm(stage, arm, of_arm, examples, validation, teacher, is_first)
    processes.wait_for_everyone()
    if is_first:
        _finish(stage, settings, examples, validation, facts)


def _tell(answers: TrainingExamples, validation: TrainingExamples, settings: Train) -> None:
    """Say where much of what filter kept is left out, and where nothing is kept back to validate."""
    num_left_out = answers.too_long + answers.nothing_to_learn
    if num_left_out > LARGE_FRAC * (len(answers) + num_left_out):
        causes = why_left_out(answers.too_long, answers.nothing_to_learn, settings.max_length, settings.reasoning)
        say(f"train: {counted(len(answers), 'answer')} to train on; {causes}")
    if settings.validation_frac and not len(validation):
        why = f"fewer than {MIN_ANSWERS_TO_SPLIT}" if len(answers) < MIN_ANSWERS_TO_SPLIT else "too few conversations"
        say(
            f"train: none of {counted(len(answers), 'answer')} is kept back to validate ({why}), so the last"
            " checkpoint is taken, not the best"
        )


def _arms(settings: Train) -> dict[str, Train]:
    plain: dict[str, Any] = {"ce_weight": 1.0, "kd_weight": 0.0, "ce_weight_end": None, "kd_weight_end": None}
    plain |= {"targets": "stored", "temperature": 1.0, "divergence": "forward_kl", "alpha": None, "beta": None}
    plain |= {"positions_frac": 1.0, "tail": "bucket"}
    arms = {"student": settings}
    return arms | ({"sft_only": settings.model_copy(update=plain)} if settings.sft_only_arm else {})


def _make_ready(
    config: Config, run_dir: RunDir, stage: Stage, teacher: lookup.Model, examples: TrainingExamples
) -> dict[str, Any]:
    """Make the untrained student, and prove on it what training rests on. Returns what was measured."""
    lookup.check_weights(teacher, run_dir)
    untrained = stage.path / "untrained"
    _once(untrained, lambda target: stage.remember(student=student.make(config, teacher, target, examples)))
    say("train: proving that tokens and log-probs are aligned")
    made = run_dir.manifest("generate")
    is_quantised = quantised.is_served(teacher.config(), made["fingerprint"].get("teacher.engine", {}))
    dtype = made.get("teacher_dtype", "")
    return contract.prove(examples, teacher, student.load(untrained), dtype, config.train, is_quantised)


def _finish(
    stage: Stage, settings: Train, examples: TrainingExamples, validation: TrainingExamples, facts: dict[str, Any]
) -> None:
    trained = stage.facts()["arms"]
    shutil.rmtree(stage.path / "checkpoints", ignore_errors=True)
    counts = {
        "rows": len(examples),
        "validation_rows": len(validation),
        "too_long": examples.too_long,
        "nothing_to_learn": examples.nothing_to_learn,
        "answer_tokens": int(examples.index.learnt.sum()),
        "steps": max(fitted["steps"] for fitted in trained.values()),
    }
    folders = [stage.path / "untrained", *(stage.path / arm for arm in _arms(settings))]
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    stage.finish(files, counts, contract=facts, dtype=settings.dtype)


def with_dtype(settings: Train) -> Train:
    """The settings with `auto` resolved for this machine: bfloat16 where it is computed natively, else float32."""
    if settings.dtype != "auto":
        return settings
    on_gpu = torch.cuda.is_available()
    native = torch.cuda.is_bf16_supported() if on_gpu else torch.cpu._is_avx512_bf16_supported()
    return settings.model_copy(update={"dtype": "bfloat16" if native else "float32"})


def _train_arm(
    stage: Stage,
    arm: str,
    settings: Train,
    examples: TrainingExamples,
    validation: TrainingExamples,
    teacher: lookup.Model,
    is_first: bool,
) -> None:
    """Train one student from the untrained one; nothing to do where its folder is there already."""
    if (stage.path / arm).exists():
        return
    untrained = stage.path / "untrained"
    model = student.load(untrained) if settings.lora is None else student.load_frozen(untrained, settings.lora.bits)
    live = student.load(teacher.path, _live_dtype(settings, teacher)) if settings.targets == "live" else None
    tokenizer, checkpoints = teacher.tokenizer(), stage.path / "checkpoints" / arm
    fitted = fit(settings, arm, model, tokenizer, examples, validation, stage.path, checkpoints, live)
    trained, weights = fitted.pop("model"), fitted.pop("state_dict")

    def save(target: Path) -> None:
        whole = trained
        if isinstance(trained, PeftModel):  # its base has few bits
            whole = student.merged(trained, untrained, checkpoints / "adapters")
        model_folder.save(whole, tokenizer, target, teacher.path, untrained, weights)
        stage.remember(arms={**stage.facts().get("arms", {}), arm: fitted})

    if is_first:
        _once(stage.path / arm, save)


def _live_dtype(settings: Train, teacher: lookup.Model) -> str:
    """Half the memory where autocast would round the weights to the type that they are stored in."""
    return "bfloat16" if settings.dtype == teacher.dtype() == "bfloat16" else "float32"


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
        "teacher.weights": run_dir.fingerprint("generate")["teacher.weights"],
        "input.generate": run_dir.output_hash("generate"),
        "input.filter": run_dir.output_hash("filter"),
    }


def _student_weights(config: Config) -> str:
    """What the untrained student's weights follow from, besides the other settings."""
    if config.student.config is not None:
        return f"random: {file_hash(lookup.config_file(config.student.config))}"
    model = config.student.model
    return lookup.find(model, config.student.revision).weights_hash() if model else "the teacher's"
