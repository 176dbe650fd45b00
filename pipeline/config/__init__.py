"""Configuration: one frozen section per stage, from YAML and `key=value` overrides. Imports no torch.

A field marked `runtime(...)` changes how fast or how chatty a stage is, not what it writes: it is left out of the
stage's fingerprint, and can be changed while a run is under way.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from pipeline.config import error_messages, reading
from pipeline.config.data import (
    METHODS,
    EvaluationSet,
    Generate,
    NearDuplicates,
    Prepare,
    Source,
    Synthesis,
    Weights,
    synthesis_files,
)
from pipeline.config.evaluation import Evaluate, Export, Harness, Risks, Tasks
from pipeline.config.filters import (
    PII_KINDS,
    Filter,
    LanguageCode,
    Learnability,
    PiiKind,
    Presidio,
    Privacy,
    Safety,
    Selection,
)
from pipeline.config.judge import Grader, Judge
from pipeline.config.models import Server, Student, Teacher, layer_indices
from pipeline.config.section import EngineArgs, Fraction, Limit, Positive, Section, matching, runtime
from pipeline.config.training import Divergence, Lora, Tracker, Train, check_counts
from pipeline.data import shipped
from pipeline.errors import UserError
from pipeline.run import artifacts

__all__ = [
    "METHODS",
    "PII_KINDS",
    "RUN_HEADER",
    "Config",
    "Divergence",
    "EngineArgs",
    "Evaluate",
    "EvaluationSet",
    "Export",
    "Filter",
    "Fraction",
    "Generate",
    "Grader",
    "Harness",
    "Judge",
    "LanguageCode",
    "Learnability",
    "Limit",
    "Lora",
    "NearDuplicates",
    "PiiKind",
    "Positive",
    "Prepare",
    "Presidio",
    "Privacy",
    "Risks",
    "Safety",
    "Section",
    "Selection",
    "Server",
    "Source",
    "Student",
    "Synthesis",
    "Tasks",
    "Teacher",
    "Tracker",
    "Train",
    "Weights",
    "check_counts",
    "dump",
    "dump_explained",
    "dump_plain",
    "fields",
    "layer_indices",
    "load",
    "no_run",
    "output_settings",
    "read_by",
    "run_folder",
    "runtime",
    "synthesis_files",
    "validate",
]


RUN_HEADER = "# Written by retort: the settings that"  # first line of a run's config.yaml
STAGE_MARKS = (artifacts.MANIFEST, artifacts.STARTED)
NAME = r"\w[\w.-]*"
Name = Annotated[str, matching(NAME, "may hold letters, digits, . _ and -, and begins with a letter, a digit or _")]


class Config(Section):
    """Everything one run does."""

    name: Name = Field(default="", description="Name of the run, and of its folder.")
    runs_dir: str = Field(default="runs", description="Folder that holds the runs.")
    teacher: Teacher = Teacher()
    prepare: Prepare = Prepare()
    generate: Generate = Generate()
    filter: Filter = Filter()
    privacy: Privacy = Privacy()
    safety: Safety = Safety()
    licence_policy: Literal["warn", "enforce", "off"] = runtime(
        "warn",
        "If a teacher's or a source's licence restricts training on its texts (screening/licences.py): "
        "warn says so, enforce stops before a token is generated, off does nothing.",
        read_by=("prepare",),
    )
    student: Student = Student()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    export: Export = Export()

    @field_validator("runs_dir")
    @classmethod
    def _expand(cls, value: str) -> str:
        try:
            return str(Path(value).expanduser())
        except RuntimeError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _prompts_to_answer(self) -> "Config":
        if self.prepare.synthesis.num_prompts is not None and self.generate.mode == "score":
            raise ValueError(
                "prepare.synthesis writes prompts without answers: there is nothing for generate.mode=score"
            )
        return self

    @property
    def run_path(self) -> Path:
        return Path(self.runs_dir) / self.name


def load(path: Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """The validated config of a YAML file, or of a run's folder, and `section.key=value` overrides.

    A run is found by its folder. For RUN, or the RUN/config.yaml that Retort wrote there, name and runs_dir come from
    the folder and not from the file; overrides of the two name another run.

    Raises UserError: missing file, malformed YAML or override, unknown key, value out of range.
    """
    path = shipped.find(path)
    folder = run_folder(path)
    defaults = {} if folder is None else _whereabouts(folder)
    if folder is None:
        if path.is_dir():
            raise UserError(no_run(path))
        if not path.is_file():
            raise UserError(f"{path}: no such config file or run folder; the shipped configs are in configs/")
    data = reading.read(path if folder is None else folder / artifacts.CONFIG, overrides, defaults, Config)
    if "name" not in data:
        if not re.fullmatch(NAME, path.stem):
            raise UserError(f"{path}: a run can't be called {path.stem!r}, like the file; add name=...")
        data["name"] = path.stem
    return validate(data, str(path))


def run_folder(path: Path) -> Path | None:
    """The run's folder, given as such or as the config.yaml in it, or as a link to either; None for another path."""
    places = [path]
    with contextlib.suppress(OSError, RuntimeError):  # links that go in a circle
        places.append(path.resolve())
    for place in places:
        folder = place if place.is_dir() else place.parent if place.name == artifacts.CONFIG else None
        if folder is not None and _is_run(folder):
            return folder
    return None


def no_run(folder: Path) -> str:
    """What to say of a folder that was given as a run and is none."""
    if (folder / artifacts.CONFIG).is_file():
        path = folder / artifacts.CONFIG
        return f"{folder}: no run here (Retort did not write its config.yaml); to use that as a config, give {path}"
    return f"{folder}: no run here (no config.yaml); each run is in the config's runs_dir, under its name"


def _is_run(folder: Path) -> bool:
    """Whether Retort wrote the folder's config.yaml, or a stage has left its mark there."""
    path = folder / artifacts.CONFIG
    if not path.is_file():
        return False
    with contextlib.suppress(OSError), path.open("rb") as stream:
        if stream.readline().startswith(RUN_HEADER.encode()):
            return True
    return any((folder / name / mark).is_file() for name in Config.model_fields for mark in STAGE_MARKS)


def _whereabouts(folder: Path) -> dict[str, str]:
    """Name and runs_dir of a run's folder. A folder name that no config may have leaves the file's name as it is."""
    whole = Path(os.path.abspath(folder))  # noqa: PTH100 - resolve() would replace a link by what it points to
    parent = folder.parent if folder.name not in ("", "..") else whole.parent
    return {"runs_dir": str(parent)} | ({"name": whole.name} if re.fullmatch(NAME, whole.name) else {})


def validate(data: dict[str, Any], origin: str) -> Config:
    """The config of a plain dict; `origin` stands before each error message."""
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{origin}: {error_messages.told(error, Config, [name for name, _ in fields()])}") from None


def dump(config: Config) -> str:
    """The resolved config as YAML, that `load` reads back to the same config."""
    return dump_plain(config.model_dump(mode="json"))


def dump_plain(data: dict[str, Any]) -> str:
    return reading.dump(data)


def dump_explained(config: Config) -> str:
    """The resolved config as YAML, each setting's meaning behind it: of a list's items where their kind first stands.

    The settings of a part that is null stand below it as comments.
    """
    lines: list[str] = []
    explained: set[type[Section]] = set()
    for name in Config.model_fields:
        value = getattr(config, name)
        if isinstance(value, Section):
            lines.append(f"{name}:  # {(type(value).__doc__ or '').strip()}")
            lines += [f"  {line}" for line in _explained_fields(value, explained)]
        else:
            lines.append(f"{name}: {_flow(value)}  # {Config.model_fields[name].description}")
    return "\n".join(lines) + "\n"


def _explained_fields(section: Section, explained: set[type[Section]]) -> list[str]:
    values, lines = section.model_dump(mode="json"), []
    for key, field in type(section).model_fields.items():
        value, kind = getattr(section, key), _section_type(field)
        if isinstance(value, Section):
            lines.append(f"{key}:  # {field.description}")
            lines += [f"  {line}" for line in _explained_fields(value, explained)]
        elif kind and value:
            lines.append(f"{key}:  # {field.description}")
            for item in value:
                lines += [f"  {line}" for line in _explained_item(item, explained)]
        else:
            lines.append(f"{key}: {_flow(values[key])}  # {field.description}")
            if kind and kind not in explained:
                explained.add(kind)
                lines += [f"  # {line}" for line in _explained_fields(kind.model_construct(), explained)]
    return lines


def _explained_item(item: Section, explained: set[type[Section]]) -> list[str]:
    """An item of a list: its settings with their meanings, or on one line if those of another stand above."""
    if type(item) in explained:
        return [f"- {_flow(item.model_dump(mode='json'))}"]
    explained.add(type(item))
    first, *others = _explained_fields(item, explained)
    return [f"- {first}", *(f"  {line}" for line in others)]


def _section_type(field: FieldInfo) -> type[Section] | None:
    """The section that a setting is a list of, or is if it is not null; None if it is not such a setting."""
    given = [field.annotation, *get_args(field.annotation)]
    return next((kind for kind in given if isinstance(kind, type) and issubclass(kind, Section)), None)


def _flow(value: Any) -> str:
    text = reading.dump(value, default_flow_style=True, width=1 << 20)
    return text.removesuffix("\n").removesuffix("\n...")


def output_settings(section: Section) -> dict[str, Any]:
    """The section's settings that change what its stage writes, JSON-ready."""
    values = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("runtime"):
            del values[name]
    return values


def read_by(stage: str) -> tuple[str, ...]:
    """What a stage is made with: names of sections, or of single settings (`privacy.answers`) if it reads only some."""
    names: list[str] = []
    for name, field in Config.model_fields.items():
        kind = field.annotation
        if not (isinstance(kind, type) and issubclass(kind, Section)):
            extra = field.json_schema_extra
            names += [name] if isinstance(extra, dict) and stage in cast(list[str], extra["read_by"]) else []
        elif stage in (name, *kind.READ_BY):
            parts = [f"{name}.{key}" for key in kind.model_fields if key not in kind.ABOUT_PROMPTS]
            names += parts if kind.ABOUT_PROMPTS and stage != "prepare" else [name]
    return tuple(names)


def fields(model: type[Section] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Each setting's dotted name and its field, sections expanded."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            yield from fields(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field
