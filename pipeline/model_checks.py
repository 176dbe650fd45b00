"""What a teacher and a student must be fit for later on, found out before the first stage: without loading weights."""

from typing import Any

from pipeline import models
from pipeline.config import Config


def check(config: Config) -> None:
    """Raises UserError for what is sure to fail in a later stage, as far as the models are on this machine."""
    teacher, student = models.local(config.teacher.model), _student_config(config)
    if teacher is not None and teacher.name != models.DEMO:
        check_teacher(teacher)
    if student is not None:
        check_student(config, student)


def check_teacher(teacher: models.Model) -> None:
    """Raises UserError if train and evaluate could not make the teacher's distributions of its hidden states."""
    from pipeline.language_model import on_meta

    on_meta(teacher.transformers_config(), f"teacher.model {teacher.name}")


def check_student(config: Config, student: Any) -> None:
    """Raises UserError if no student can be made of this transformers config as the settings have it."""
    from pipeline import packed_attention, pruning
    from pipeline.language_model import on_meta

    settings, who = config.student, f"student.model {config.student.model or config.teacher.model}"
    is_packed = config.train.pack_tokens is not None
    if config.student.model not in (None, models.DEMO) or models.is_pruned(settings) or is_packed:
        model = on_meta(student, who)
        if models.is_pruned(settings):
            of = len(pruning.layers_of(model))
            models.check_layers(settings, of)
            if indices := pruning.by_place(settings, of):
                pruning.keep_layers(model, indices)
        if is_packed:
            packed_attention.check(model.config)
    check_adapters(config, student)


def check_adapters(config: Config, student: Any) -> None:
    """Raises UserError if train.lora does not fit a student of this transformers config."""
    from pipeline import adapters
    from pipeline.language_model import on_meta

    if config.train.lora is not None:
        adapters.check(on_meta(student, "student"), config.train.lora)


def _student_config(config: Config) -> Any:
    """The transformers config that the student is made of; None if its model is not on this machine."""
    if config.student.config is not None:
        return models.random_config(config.student.config)
    origin = models.local(config.student.model or config.teacher.model)
    return None if origin is None else origin.transformers_config()
