"""Sections about models: the teacher, a server that serves it, the student."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from pipeline.config.section import EngineArgs, Positive, Section, base_urls, is_base_url, matching, runtime
from pipeline.errors import UserError


class Server(Section):
    """vLLM servers that answer in place of an engine in this process; their key is RETORT_SERVER_KEY."""

    urls: Annotated[tuple[str, ...], AfterValidator(base_urls)] = runtime(
        (), "OpenAI-compatible vLLM servers, such as [http://127.0.0.1:8000]; none: an engine in this process."
    )
    model: str | None = Field(default=None, description="Name by which they serve the teacher; null: their only one.")
    concurrency: Positive = runtime(64, "Requests in flight per URL.")
    timeout_s: float = runtime(600.0, "Longest time for one answer, seconds.", gt=0)
    patience_s: float = runtime(600.0, "The run stops if no server answers for this long, seconds.", gt=0)

    @model_validator(mode="after")
    def _usable_urls(self) -> "Server":
        for url in self.urls:  # none is repeated in the message: it may hold a password
            if not is_base_url(url):
                raise ValueError("urls: each is written like http://127.0.0.1:8000")
            if "@" in url:
                raise ValueError("urls: no name or password in a URL; set RETORT_SERVER_KEY in the environment instead")
        if len(set(self.urls)) < len(self.urls):
            raise ValueError("urls: the same URL stands there twice")
        return self


class Teacher(Section):
    """The large model whose answers and log-probs are captured."""

    READ_BY = ("prepare", "generate")

    model: str = Field(default="demo", description="Hub id, local folder, or `demo` (bundled SmolLM2-135M-Instruct).")
    revision: str | None = Field(
        default=None, description="Hub branch, tag or commit; null is the hub's default branch."
    )
    licence: str | None = runtime(
        None, "The teacher's licence, such as apache-2.0 or llama3.1; null: as its model card or LICENSE states."
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default={}, description="Passed to the chat template, e.g. {enable_thinking: false}."
    )
    engine: EngineArgs = Field(
        default={},
        description="Arguments for vLLM's engine, passed unchanged: tensor_parallel_size, quantization, "
        "max_model_len, ...",
    )
    server: Server = Field(default=Server(), description="Servers that answer in place of an engine in this process.")
    reasoning_tags: tuple[str, str] = Field(
        default=("<think>", "</think>"), description="The tags around the teacher's reasoning, if it reasons."
    )

    @field_validator("reasoning_tags")
    @classmethod
    def _two_tags(cls, value: tuple[str, str]) -> tuple[str, str]:
        if not all(tag.strip() for tag in value) or value[0] == value[1]:
            raise ValueError("two different tags, such as [<think>, </think>]")
        return value


class Student(Section):
    """The small model that learns."""

    READ_BY = ("train",)

    model: str | None = Field(default=None, description="Hub id, local folder or `demo`; null: the teacher, pruned.")
    revision: str | None = Field(default=None, description="Hub branch, tag or commit.")
    keep_layers: Annotated[str, matching(r"[\d\s,-]+", "must be ranges of layers, such as 0-11,18-29")] | None = Field(
        default=None, description="Layers to keep, from 0, e.g. `0-11,18-29`; null keeps all."
    )
    num_layers: Positive | None = Field(
        default=None, description="How many layers to keep, chosen by choose_layers, instead of keep_layers."
    )
    choose_layers: Literal["ends", "evenly", "influence"] = Field(
        default="ends",
        description="Which layers num_layers keeps: the first and last ones; evenly spread ones; or those that change "
        "the hidden state most on kept answers (block influence).",
    )
    config: str | None = Field(
        default=None, description="A transformers config (config.json or its folder): a student with random weights."
    )

    @field_validator("keep_layers", mode="before")
    @classmethod
    def _one_layer(cls, value: Any) -> Any:
        return str(value) if type(value) is int else value  # YAML reads `3` as a number

    @model_validator(mode="after")
    def _one_origin(self) -> "Student":
        if self.keep_layers is not None and self.num_layers is not None:
            raise ValueError("keep_layers and num_layers both choose layers: give one, and null for the other")
        if self.config is not None and (self.model or self.keep_layers is not None or self.num_layers is not None):
            raise ValueError("config makes a new model: model, keep_layers and num_layers don't go with it")
        return self


def layer_indices(keep_layers: str) -> list[int]:
    """`0-2,5` as [0, 1, 2, 5]. Raises UserError where it is not an ascending list of layers."""
    indices: list[int] = []
    try:
        for part in keep_layers.replace(" ", "").split(","):
            first, _, last = part.partition("-")
            indices.extend(range(int(first), int(last or first) + 1))
    except ValueError:
        raise UserError(f"student.keep_layers {keep_layers!r}: write ranges such as 0-11,18-29") from None
    if not indices or indices != sorted(set(indices)):
        raise UserError(f"student.keep_layers {keep_layers!r}: layers must ascend, each once")
    return indices
