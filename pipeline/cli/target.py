"""The run that a verb works on, as a user names it: by a config and overrides, or by the run's own folder."""

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import config as config_module
from pipeline.config import Config
from pipeline.data import shipped
from pipeline.errors import UserError
from pipeline.records import STAGES
from pipeline.run.changes import changes
from pipeline.run.rundir import RunDir

OVERRIDE = re.compile(r"\s*[A-Za-z_][\w.\[\]-]*\s*=")
ELSEWHERE = re.compile(r"\s*(?:name|runs_dir)\s*=")  # an override that names another run than the folder given


@dataclass(frozen=True)
class Target:
    """A config, the run that it is of, and the words by which both were named."""

    given: tuple[str, ...]
    config: Config
    run_path: Path

    def command(self, verb: str) -> str:
        """Another verb on the same, to be pasted."""
        return shlex.join(["retort", *verb.split(), *self.given])


def load(path: Path, overrides: Sequence[str] | None) -> Target:
    """The config of a file, or of a run's folder: then the run is that folder, whatever it was once called.

    Raises UserError as `config.load` does.
    """
    overrides = list(overrides or [])
    config, folder = config_module.load(path, overrides), config_module.run_folder(path)
    if folder is None or any(map(ELSEWHERE.match, overrides)):
        folder = config.run_path
    return Target((str(path), *overrides), config, folder)


def check_overrides(stage: str, target: Target) -> None:
    """Raises UserError for a setting on the command line that an earlier stage was done with another value of: this
    stage would take no notice."""
    run_dir, given = RunDir(target.run_path), [word.partition("=")[0].strip() for word in target.given[1:]]
    for earlier in STAGES[: STAGES.index(stage)]:
        if not run_dir.is_done(earlier):
            continue
        manifest = run_dir.manifest(earlier)
        sections = (earlier, "student") if earlier == "train" else (earlier,)
        made = {
            key: was
            for key, was in manifest["fingerprint"].items()
            if key.partition(".")[0] in sections
            and any(f"{word}.".startswith(f"{key}.") or key.startswith(f"{word}.") for word in given)
        }
        for change in changes(made, {key: _value(target.config, key) for key in made}, manifest["accepted"]):
            again = target.command(f"{earlier} --fresh")
            raise UserError(
                f"{target.run_path}: {earlier} was done with another {change['key']} ({change['was']}, not"
                f" {change['is']}), and {stage} works with what it wrote; do it again ({again}), or give the run a new"
                " name (name=...)"
            )


def _value(config: Config, key: str) -> Any:
    value: Any = config.model_dump(mode="json")
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def existing(path: Path, overrides: Sequence[str] | None = None) -> RunDir:
    """A run that exists, named in either way. Raises UserError if there is none, and says how to begin it."""
    folder = config_module.run_folder(path)
    if folder is not None and not overrides:  # its config is not read: it may be what is damaged
        return RunDir(folder)
    if folder is None and not shipped.find(path).is_file():
        raise UserError(config_module.no_run(path))
    target = load(path, overrides)
    if config_module.run_folder(target.run_path) is None:
        raise UserError(f"{target.run_path}: no run here yet; begin it: {target.command('run')}")
    return RunDir(target.run_path)


def several(words: Iterable[str]) -> list[RunDir]:
    """Runs that exist, each named by a config or a folder and the overrides after it; none twice."""
    named: list[tuple[Path, list[str]]] = []
    for word in words:
        if named and is_override(word):
            named[-1][1].append(word)
        else:
            named.append((Path(word), []))
    runs = [existing(path, overrides) for path, overrides in named]
    return list({run.path.resolve(): run for run in runs}.values())


def is_override(word: str) -> bool:
    return OVERRIDE.match(word) is not None and not Path(word).exists()
