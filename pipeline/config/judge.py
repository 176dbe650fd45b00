"""Sections about a chat model that is asked how good answers are: by filter, and by evaluate."""

import re
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.config.section import Positive, Section, is_base_url, runtime


class Grader(Section):
    """A chat model that grades answers, each by itself; its key is never on disk."""

    place: ClassVar[str] = "filter.selection.judge"  # in the config, for messages
    kinds: ClassVar[tuple[Literal["pairwise", "single"], ...]] = ("single",)  # of what it is asked, each by a template

    url: str | None = runtime(
        None,
        "OpenAI-compatible address of the judge: http://127.0.0.1:8001, https://api.openai.com/v1. "
        "/chat/completions is added, and /v1 before it if the address has no path. null: no judge.",
    )
    model: str | None = Field(default=None, description="Name by which url serves it.")
    key_variable: str = runtime(
        "RETORT_JUDGE_KEY", "Environment variable that holds the judge's key. If it is unset or empty, no key is sent."
    )
    templates: str = Field(
        default="prompts/judge",
        description="Folder with the judge's prompts: single.jinja, and pairwise.jinja if answers are compared. Both"
        " have `system`, `tools`, `question` and `reference`; single has `given`, pairwise `first` and `second`, each"
        " with `history` and `answer`.",
    )
    max_tokens: Positive = Field(default=512, description="Longest reply of the judge, tokens; the cost cap counts it.")
    request: dict[str, Any] = Field(
        default={},
        description="Fields to put into each request, over temperature 0 and max_tokens; null removes a field: "
        "{max_tokens: null, max_completion_tokens: 4000, temperature: null} for OpenAI's reasoning "
        "models.",
    )
    retries: int = Field(
        default=2,
        description="How often to ask again for a verdict that can't be read. After that it is invalid.",
        ge=0,
    )
    concurrency: Positive = runtime(8, "Requests in flight.")
    timeout_s: float = runtime(120.0, "Longest time for one reply, seconds.", gt=0)
    patience_s: float = runtime(600.0, "The stage stops if no reply comes for this long, seconds.", gt=0)
    price_in: float = runtime(0.0, "Price of a million prompt tokens, in the currency of max_cost.", ge=0)
    price_out: float = runtime(0.0, "Price of a million tokens of replies.", ge=0)
    max_cost: float = runtime(10.0, "Do not start if the judge may cost more than this, and stop when it does.", ge=0)

    @model_validator(mode="after")
    def _usable(self) -> "Grader":
        # neither URL nor variable is repeated in the message: either may hold a secret, by mistake
        if self.url is not None and (not is_base_url(self.url) or "@" in self.url):
            raise ValueError("url: written like http://127.0.0.1:8001, without a name or password")
        if not re.fullmatch(r"[A-Z][A-Z0-9_]*", self.key_variable):
            raise ValueError("key_variable: the name of an environment variable, such as RETORT_JUDGE_KEY, not the key")
        if (self.url is None) != (self.model is None):
            raise ValueError("url and model go together: where the judge is served, and under which name")
        if ours := {"model", "messages", "stream", "n", "api_key"} & set(self.request):
            raise ValueError(f"request: {min(ours)} can't be set there")
        return self


class Judge(Grader):
    """evaluate's: compares the arms' answers in both orders too."""

    place: ClassVar[str] = "evaluate.judge"
    kinds: ClassVar[tuple[Literal["pairwise", "single"], ...]] = ("pairwise", "single")

    check_items: Positive = Field(
        default=20,
        description="Items of each self-check: the same answer in both places, and answers made worse on purpose.",
    )
