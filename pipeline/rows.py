"""The rows of records.py's tables as Python has them: what `to_pylist` gives, and what is made into a table.

Each class has the columns of one schema of records.py, which says what they mean.
"""

from typing import Any, Literal, TypedDict

Split = Literal["train", "held_out"]
FinishReason = Literal["stop", "length"]


class MessageRow(TypedDict):
    """records.MESSAGE."""

    role: str
    content: str | None
    tool_calls: str | None
    tool_call_id: str | None
    name: str | None
    reasoning_content: str | None


class PromptRow(TypedDict):
    """records.PROMPTS: what prepare writes."""

    conversation_id: str
    prompt_id: str
    messages: list[MessageRow]
    tools: str | None
    category: str
    split: Split
    source: str
    licence: str | None
    redacted: list[tuple[str, int]]
    safety: list[tuple[str, float]]
    method: str
    parents: list[str]
    template: str | None
    prompt_token_ids: list[int]
    completion_token_ids: list[int] | None


class ResponseRow(TypedDict):
    """records.RESPONSES: what generate writes."""

    response_id: str
    conversation_id: str
    prompt_id: str
    sample: int
    split: Split
    category: str
    text: str
    reasoning: str | None
    finish_reason: FinishReason
    prompt_token_ids: list[int]
    token_ids: list[int]
    token_logprobs: list[float]
    logprobs: dict[str, Any]
    reasoning_tokens: int
    reasoning_start: int
    reasoning_end: int


class SpanRow(TypedDict):
    """records.SPAN."""

    start: int
    end: int
    kind: str


class DecisionRow(TypedDict):
    """records.DECISIONS: what filter writes."""

    response_id: str
    kept: bool
    reasons: list[str]
    scores: list[tuple[str, float]]
    masked_spans: list[SpanRow]
    safety: list[tuple[str, float]]


class SampleRow(TypedDict):
    """records.SAMPLES: an arm's answer to a turn of an item."""

    item_id: str
    category: str
    turn: int
    arm: str
    question: str
    answer: str
    finish_reason: FinishReason
    num_tokens: int
    prompt_token_ids: list[int]
    token_ids: list[int]


class CheckRow(TypedDict):
    """One entry of records.TASKS' `checks`."""

    kind: str
    passed: bool


class TaskRow(SampleRow):
    """records.TASKS: a sample, and what its checks found."""

    checks: list[CheckRow]


class RiskRow(SampleRow):
    """records.RISKS: a sample, and what its rule found."""

    score: float | None
