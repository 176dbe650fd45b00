"""What a teacher and a student must be fit for later on, found out before the first stage: without loading weights."""

import re
from math import fsum
from typing import Any

from pipeline.config import Config, Student, layer_indices
from pipeline.console import say
from pipeline.errors import UserError
from pipeline.machine import hardware, meters
from pipeline.models import checkpoint, lookup, quantised
from pipeline.run.rundir import RunDir

LAYER = re.compile(r"\.(\d+)\.")  # in a tensor's name: model.layers.7.mlp.up_proj.weight
WITHOUT = "skip evaluate: run `retort prepare`, `generate`, `filter`, `train` and `export` one by one"


def check(config: Config) -> None:
    """Raises UserError for what is sure to fail in a later stage, as far as the models are on this machine."""
    teacher = lookup.local(config.teacher.model)
    origin = lookup.local(config.student.model) if config.student.model else teacher
    if origin is not None and config.student.config is None:
        lookup.check_trainable(config.student, origin)
    first = config.filter.learnability.student
    if first and (found := lookup.local(first)) is not None:
        quantised.check_loadable(found.config(), f"filter.learnability.student {first}")
    if teacher is not None and teacher.name != lookup.DEMO:
        check_teacher(teacher)
    if not _is_demo_alone(config, origin) and (student := _student_config(config)) is not None:
        check_student(config, student)
    if teacher is not None and not RunDir(config.run_path).is_done("evaluate"):
        check_runs_in_transformers(teacher)
        _say_what_differs(config, teacher)
        _check_memory(config, teacher)


def check_runs_in_transformers(teacher: lookup.Model) -> None:
    """Raises UserError if the teacher's weights are of a kind that transformers can't load here."""
    try:
        quantised.check_loadable(teacher.config(), f"teacher.model {teacher.name}")
    except UserError as error:
        raise UserError(
            f"{error}. vLLM serves them, but evaluate and train.targets=live run the teacher by transformers. Install"
            f" what it asks for, choose a teacher in another format, or {WITHOUT}"
        ) from None


def check_teacher(teacher: lookup.Model) -> None:
    """Raises UserError if train and evaluate could not make the teacher's distributions of its hidden states."""
    from pipeline.models.language_model import on_meta

    on_meta(teacher.transformers_config(), f"teacher.model {teacher.name}")


def check_student(config: Config, student: Any) -> None:
    """Raises UserError if no student can be made of this transformers config as the settings have it."""
    from pipeline.models import pruning
    from pipeline.models.forward import packed_attention
    from pipeline.models.language_model import on_meta

    settings = config.student
    who = (
        f"student.config {settings.config}"
        if settings.config
        else f"student.model {settings.model or config.teacher.model}"
    )
    is_packed = config.train.pack_tokens is not None
    if config.student.model not in (None, lookup.DEMO) or lookup.is_pruned(settings) or is_packed:
        model = on_meta(student, who)
        if lookup.is_pruned(settings):
            of = len(pruning.layers_of(model))
            lookup.check_layers(settings, of)
            if indices := pruning.by_place(settings, of):
                pruning.keep_layers(model, indices)
        if is_packed:
            packed_attention.check(model.config)
    check_adapters(config, student)


def check_adapters(config: Config, student: Any) -> None:
    """Raises UserError if train.lora does not fit a student of this transformers config."""
    from pipeline.models import adapters
    from pipeline.models.language_model import on_meta

    if config.train.lora is not None:
        adapters.check(on_meta(student, "student"), config.train.lora)


def _is_demo_alone(config: Config, origin: lookup.Model | None) -> bool:
    """Whether the student is the demo teacher, of which any layers can be left out: that is known without torch."""
    is_demo = config.student.config is None and origin is not None and origin.name == lookup.DEMO
    return is_demo and config.train.lora is None and config.train.pack_tokens is None


def _student_config(config: Config) -> Any:
    """The transformers config that the student is made of; None if its model is not on this machine."""
    if config.student.config is not None:
        return lookup.random_config(config.student.config)
    origin = lookup.local(config.student.model or config.teacher.model)
    return None if origin is None else origin.transformers_config()


def _say_what_differs(config: Config, teacher: lookup.Model) -> None:
    made_by_vllm = config.teacher.engine.get("quantization")
    if made_by_vllm and quantised.method_of(teacher.config()) is None:
        say(
            f"teacher.engine.quantization={made_by_vllm}: vLLM rounds the weights as it loads them, and the student"
            " learns from the rounded ones; evaluate measures fidelity against the weights as they are stored"
        )


def _check_memory(config: Config, teacher: lookup.Model) -> None:
    """Raises UserError if the machine can't hold what evaluate has in memory at once; says if it is tight, or slow."""
    dtype = _dtype(config, teacher)
    itemsize = lookup.ITEM_BYTES.get(dtype, 4)
    of_teacher, of_student = teacher.plain_bytes(itemsize), _student_bytes(config, itemsize)
    num_students = 3 if config.train.sft_only_arm else 2  # untrained, student, sft_only
    other = lookup.local(config.evaluate.other) if config.evaluate.other else None
    needed = of_teacher + num_students * of_student + (other.plain_bytes(itemsize) if other else 0)
    on_gpus = 0 if hardware.is_cpu() else meters.gpu_total_bytes() or 0
    told = (
        f"evaluate holds the teacher {teacher.name} ({_gb(of_teacher)} in {dtype}) and its students in memory at once:"
        f" at least {_gb(needed)}"
    )
    if needed > on_gpus + hardware.total_bytes() + hardware.swap_bytes():
        has = f"{_gb(on_gpus)} on its GPUs and {_gb(hardware.total_bytes())} of main memory" if on_gpus else ""
        raise UserError(
            f"{told}; this machine has {has or _gb(hardware.total_bytes())}. Take a larger machine or a smaller"
            f" teacher, or {WITHOUT}"
        )
    if on_gpus and needed > on_gpus:
        say(f"{told}; the GPUs have {_gb(on_gpus)}, so the rest is kept in main memory, which is slow")
    elif not on_gpus and needed > hardware.available_bytes():
        say(f"{told}; {_gb(hardware.available_bytes())} are free now: close other programs before evaluate begins")


def _dtype(config: Config, teacher: lookup.Model) -> str:
    """The type that the teacher is going to answer in."""
    if (named := lookup.named_dtype(config.teacher.engine)) is not None:
        return named
    if config.teacher.server.urls:
        return teacher.dtype()
    if hardware.is_cpu() and not quantised.is_served(teacher.config(), config.teacher.engine):
        return "float32"  # engine_args.py
    return "bfloat16" if teacher.dtype() == "float32" else teacher.dtype()  # as vLLM takes `auto`


def _student_bytes(config: Config, itemsize: int) -> int:
    """What one student takes; 0 if that can't be known yet."""
    if config.student.config is not None:
        return quantised.num_parameters(lookup.random_config(config.student.config)) * itemsize
    origin = lookup.local(config.student.model or config.teacher.model)
    if origin is None:
        return 0
    held = [item for path in origin.weight_files() for item in checkpoint.tensors(origin.name, path).items()]
    sizes = [(LAYER.search(name), tensor.numel() * itemsize) for name, tensor in held]
    of_layers = sum(size for layer, size in sizes if layer)
    kept_frac = _num_layers(config.student, origin) / origin.num_layers() if lookup.is_pruned(config.student) else 1.0
    return int(fsum([sum(size for _, size in sizes), -of_layers, of_layers * kept_frac]))


def _num_layers(settings: Student, origin: lookup.Model) -> int:
    named = settings.keep_layers
    return len(layer_indices(named)) if named is not None else settings.num_layers or origin.num_layers()


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB"
