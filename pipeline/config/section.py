"""What every section of the config is made of: types, frozen models, settings of the run itself."""

import re
import shlex
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Union, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0, le=1)]


Positive = Annotated[int, Field(ge=1)]


Limit = Annotated[float, Field(gt=0, le=1)]


def runtime(default: Any, description: str, read_by: tuple[str, ...] = (), **kwargs: Any) -> Any:
    """A field that does not change a stage's output, so is not part of its fingerprint.

    `read_by` names the stages that read it, if it stands outside the sections.
    """
    return Field(default, description=description, json_schema_extra={"runtime": True, "read_by": [*read_by]}, **kwargs)


def matching(pattern: str, what: str) -> AfterValidator:
    """A text that has this form; `what` says which that is."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(what)
        return value

    return AfterValidator(check)


class Section(BaseModel):
    """Settings. A list of texts or numbers may be given as one text, as a shell has it: `a,b` is [a, b], `a` is [a]."""

    WORDS: ClassVar[tuple[str, ...]] = ()  # lists that are split at spaces: a command line's arguments
    READ_BY: ClassVar[tuple[str, ...]] = ()  # the stages that read it, besides the one of its name
    ABOUT_PROMPTS: ClassVar[tuple[str, ...]] = ()  # settings that prepare alone reads
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _split_lists(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        lists = {name for name, field in cls.model_fields.items() if _is_list(field.annotation)}
        return {key: _listed(value, key in cls.WORDS) if key in lists else value for key, value in data.items()}


def _is_list(annotation: Any) -> bool:
    """Whether a field holds texts or numbers, several of them and nothing else but null."""
    if get_origin(annotation) in (Union, UnionType):
        return all(part is NoneType or _is_list(part) for part in get_args(annotation))
    parts = [part for part in get_args(annotation) if part is not Ellipsis]
    is_of_sections = any(isinstance(part, type) and issubclass(part, BaseModel) for part in parts)
    return get_origin(annotation) is tuple and not is_of_sections


def _listed(value: Any, in_words: bool) -> Any:
    if isinstance(value, str):
        try:
            parts = shlex.split(value) if in_words else value.split(",")
        except ValueError:  # quotes without an end: no list, as the field itself says
            return value
        return [part.strip() for part in parts if part.strip()]
    return [value] if type(value) in (int, float) else value


def _engine_args(value: dict[str, Any]) -> dict[str, Any]:
    if "hf_token" in value:
        raise ValueError("hf_token would be written to disk: set HF_TOKEN in the environment instead")
    length = value.get("max_model_len")
    if length is not None and (not isinstance(length, int) or length < 1):
        raise ValueError("max_model_len is a number of tokens, at least 1")
    return value


EngineArgs = Annotated[dict[str, Any], AfterValidator(_engine_args)]


def base_urls(value: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(url.strip().rstrip("/").removesuffix("/v1").rstrip("/") for url in value)


def is_base_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0 and re.fullmatch(r"https?://[^?#\s]+", url) is not None
    except ValueError:  # a port that is not a number
        return False
