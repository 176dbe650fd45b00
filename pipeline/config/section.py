"""What every section of the config is made of: types, frozen models, settings of the run itself."""

import re
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]


Positive = Annotated[int, Field(ge=1)]


Limit = Annotated[float, Field(gt=0, le=1)]


def runtime(default: Any, description: str, **kwargs: Any) -> Any:
    """A field that does not change a stage's output, so is no part of its fingerprint."""
    return Field(default, description=description, json_schema_extra={"runtime": True}, **kwargs)


def matching(pattern: str, what: str) -> AfterValidator:
    """A text that has this form; `what` says which that is."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(what)
        return value

    return AfterValidator(check)


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


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
    except ValueError:  # a port that is no number
        return False
