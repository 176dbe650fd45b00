"""lm-evaluation-harness as an optional package: its modules, and whether it has the tasks that a config names."""

import importlib
import importlib.util
import logging
from pathlib import Path
from typing import Any

from pipeline.config import Harness
from pipeline.errors import UserError
from pipeline.run.files import first_line

INSTALL = "it is not installed; pip install 'retort-distill[harness]', or set evaluate.harness.tasks=[]"


def module(name: str) -> Any:
    """A module of lm-evaluation-harness, which takes seconds to import; it says errors alone."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return importlib.import_module(f"lm_eval.{name}")


def check(settings: Harness) -> None:
    """Raises UserError if tasks are named and lm-evaluation-harness is not installed or does not have them."""
    if not settings.tasks:
        return
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(f"evaluate.harness.tasks needs lm-evaluation-harness: {INSTALL}")
    if settings.folder and not Path(settings.folder).is_dir():
        raise UserError(f"{settings.folder}: no such folder (evaluate.harness.folder)")
    try:
        manager = module("tasks").TaskManager(include_path=settings.folder)
    except Exception as error:  # of YAML, or of what a task imports
        place = settings.folder or "evaluate.harness.tasks"
        raise UserError(f"{place}: lm-evaluation-harness can't read its tasks: {first_line(error)}") from None
    if unknown := [name for name in settings.tasks if not manager.match_tasks([name])]:
        nearest = _nearest(unknown[0], manager.all_tasks)
        raise UserError(
            f"evaluate.harness.tasks: lm-evaluation-harness has no task {unknown[0]}{nearest};"
            " `lm-eval ls tasks` lists its tasks, and evaluate.harness.folder adds your own"
        )


def _nearest(name: str, known: list[str]) -> str:
    import difflib

    nearest = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {nearest[0]}?)" if nearest else ""
