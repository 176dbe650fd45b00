"""Files, packages and servers' templates that a config names: whether they are there, and can be read."""

import importlib.util
from pathlib import Path

from pipeline.config import Config, check_counts, layer_indices, synthesis_files
from pipeline.config.data import Origin
from pipeline.corpora import containers
from pipeline.data import shipped
from pipeline.errors import UserError
from pipeline.eval_sets import chat_set, probe_set, task_set
from pipeline.text import prompt_templates


def check(config: Config) -> None:
    """Raises UserError for what the config names and is not there, or is malformed.

    So a mistake about a late stage is found before the first.
    """
    _check_sources(config)
    _check_filter(config)
    _check_evaluation(config)
    _check_packages(config)
    check_counts(config.train, config.generate.support)
    if config.student.keep_layers is not None:
        layer_indices(config.student.keep_layers)


def _check_sources(config: Config) -> None:
    origins: dict[str, tuple[Origin, ...]] = {
        "prepare.sources": config.prepare.sources,
        "prepare.decontaminate": config.prepare.decontaminate,
        "filter.decontaminate": config.filter.decontaminate,
    }
    for setting, path in [(setting, each.path) for setting, given in origins.items() for each in given if each.path]:
        try:
            containers.files(path)
        except UserError as error:
            raise UserError(f"{error} ({setting})") from None
    for source in config.prepare.sources:
        if source.template:
            prompt_templates.load(source.template, "prepare.sources")
    for path in synthesis_files(config.prepare.synthesis):
        if path.endswith(".jinja"):
            prompt_templates.load(path, "prepare.synthesis.templates")


def _check_filter(config: Config) -> None:
    first = config.filter.learnability.student
    if first and (first.startswith((".", "/", "~")) or first.count("/") > 1) and not Path(first).expanduser().is_dir():
        raise UserError(f"{first}: no such folder (filter.learnability.student); paths are from where you stand")
    words = config.safety.words
    if words and words != "shipped" and not Path(words).is_file():
        raise UserError(f"{words}: no such word list (safety.words; `shipped` is Retort's own, null for none)")


def _check_evaluation(config: Config) -> None:
    if config.evaluate.chat_set:
        chat_set.load(Path(config.evaluate.chat_set), None)
    for judge in (config.filter.selection.judge, config.evaluate.judge):
        for name in judge.kinds if judge.url else ():
            if not shipped.find(path := Path(judge.templates) / f"{name}.jinja").is_file():
                raise UserError(f"{path}: no such template ({judge.place}.templates)")
            prompt_templates.load(path, f"{judge.place}.templates")
    if config.evaluate.tasks.path:
        task_set.load(Path(config.evaluate.tasks.path), None)
    if config.evaluate.risks.path:
        probe_set.load(Path(config.evaluate.risks.path), None)


def _check_packages(config: Config) -> None:
    for tracker in config.train.report_to:
        if importlib.util.find_spec(tracker) is None:
            raise UserError(f"train.report_to: {tracker} is not installed: pip install {tracker}")
    if config.train.lora and config.train.lora.bits and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("train.lora.bits: bitsandbytes is not installed: pip install bitsandbytes")
    config.privacy.presidio.check_installed()
