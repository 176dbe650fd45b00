"""What a teacher and a student must be fit for later on, found out before the first stage: without loading weights."""

from typing import Any

from pipeline import models
from pipeline.config import Config


def check(config: Config) -> None:
    """Raises UserError for what is sure to fail in a later stage, as far as the models are on this machine."""
    if config.train.lora is not None and (student := _student_config(config)) is not None:
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
