"""Whether an OpenAI-compatible server can be asked: that it answers, takes the key, serves a model."""

from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

TIMEOUT_S = 10.0


class SilentError(Exception):
    """Nothing answers at a URL; says why."""


class KeyRefusedError(Exception):
    """A server answers, and refuses the key; says how."""


class _Card(BaseModel):
    id: str


class _Cards(BaseModel):
    data: list[_Card]


def models_at(base: str, key: str) -> list[str] | None:
    """Names of the models that the server at `base` (with /v1) lists; None if it has no such list.

    Raises SilentError, KeyRefusedError.
    """
    reply = _get(f"{base}/models", key)
    try:
        return [card.id for card in _Cards.model_validate_json(reply.content).data] if reply.is_success else None
    except ValidationError:
        return None


def has_model(base: str, key: str, name: str) -> bool:
    """Whether the server knows a model that it does not list. Raises SilentError, KeyRefusedError."""
    return _get(f"{base}/models/{quote(name)}", key).is_success


def _get(url: str, key: str) -> httpx.Response:
    local = {f"all://{host}": None for host in ("127.0.0.1", "localhost", "[::1]")}  # not through a proxy
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with httpx.Client(timeout=TIMEOUT_S, headers=headers, mounts=local) as client:
            reply = client.get(url)
    except httpx.TimeoutException:
        raise SilentError(f"no answer within {TIMEOUT_S:g} s") from None
    except httpx.HTTPError as error:
        raise SilentError(f"no connection: {type(error).__name__}") from None
    if reply.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        raise KeyRefusedError(f"HTTP {reply.status_code}")
    return reply
