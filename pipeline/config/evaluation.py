"""Sections about evaluation and export: the judge, tasks, risks, evaluate, export."""

import re
from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.config.section import EngineArgs, Positive, Section, is_base_url, runtime


class Judge(Section):
    """judge: a chat model that compares the arms' answers in both orders, and grades each; its key is never on disk."""

    url: str | None = runtime(
        None,
        "OpenAI-compatible address of the judge, to which /chat/completions is added, and /v1 before it where it has no"
        " path: http://127.0.0.1:8001, https://api.openai.com/v1; null: no judge.",
    )
    model: str | None = Field(default=None, description="Name by which url serves it.")
    key_variable: str = runtime(
        "RETORT_JUDGE_KEY", "Environment variable that holds its key; unset or empty: it needs none."
    )
    templates: str = Field(
        default="prompts/judge", description="Folder with what it is asked: pairwise.jinja and single.jinja."
    )
    max_tokens: Positive = Field(default=512, description="Longest reply of the judge, tokens; the cost cap counts it.")
    request: dict[str, Any] = Field(
        default={},
        description="Put into each request as it stands, over temperature 0 and max_tokens; null takes a field out:"
        " {max_tokens: null, max_completion_tokens: 4000, temperature: null} for OpenAI's reasoning models.",
    )
    retries: int = Field(
        default=2, description="How often a verdict that can't be read is asked for again; then it is invalid.", ge=0
    )
    check_items: Positive = Field(
        default=20,
        description="Items of each self-check: the same answer in both places, and answers made worse on purpose.",
    )
    concurrency: Positive = runtime(8, "Requests in flight.")
    timeout_s: float = runtime(120.0, "Longest time that one reply may take, seconds.", gt=0)
    patience_s: float = runtime(600.0, "How long no reply may come before the stage stops, seconds.", gt=0)
    price_in: float = runtime(0.0, "Price of a million prompt tokens, in the currency of max_cost.", ge=0)
    price_out: float = runtime(0.0, "Price of a million tokens of replies.", ge=0)
    max_cost: float = runtime(10.0, "Refuse to start where the judge may cost more, and stop where it does.", ge=0)

    @model_validator(mode="after")
    def _usable(self) -> "Judge":
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


class Tasks(Section):
    """Tasks whose answers a program checks: word counts, sums, JSON, and what an earlier turn asked for."""

    path: str | None = Field(
        default="prompts/tasks.jsonl", description="Items with their checks (pipeline/task_set.py); null for none."
    )
    limit: Positive | None = Field(
        default=None,
        description="At most this many, spread over categories; null: all. Few items show large differences alone:"
        " the verdict says how large.",
    )
    max_tokens: Positive = Field(
        default=256, description="Longest answer, tokens; one that is cut off fails what asks for its end."
    )


class Risks(Section):
    """Probes of risks that a student may carry over: made-up facts, refusals, injection, stereotypes, recitation."""

    path: str | None = Field(
        default="prompts/risks.jsonl",
        description="Probes, each with how it is judged (pipeline/probe_set.py); null: neither these nor the openings"
        " of the run's own answers, by which recitation is measured.",
    )
    limit: Positive | None = Field(
        default=None,
        description="At most this many probes of each kind, and openings of each split; null: all, and 100 openings."
        " Few probes show large differences alone.",
    )
    max_tokens: Positive = Field(default=128, description="Longest answer to a probe, tokens.")


class Evaluate(Section):
    """evaluate: the student against its teacher."""

    chat_set: str | None = Field(default="prompts/chat_eval.jsonl", description="Chat items to answer; null for none.")
    chat_items: Positive | None = Field(
        default=None, description="At most this many chat items, spread over categories."
    )
    tasks: Tasks = Field(default=Tasks(), description="Quality without a judge.")
    max_tokens: Positive = Field(default=512, description="Longest answer to a chat item, tokens.")
    temperature: float = Field(
        default=0.0, description="Sampling temperature of the answers; 0 is greedy.", ge=0, le=10
    )
    held_out_responses: Positive | None = Field(
        default=None, description="At most this many held-out answers for fidelity."
    )
    engine: EngineArgs = Field(
        default={},
        description="Passed to vLLM for evaluation, over teacher.engine: where another machine evaluates.",
    )
    batch_tokens: Positive = runtime(4096, "Tokens per teacher-forced forward pass.")
    risks: Risks = Field(default=Risks(), description="What goes wrong more often than in the teacher.")
    speed_concurrency: tuple[Positive, ...] = Field(
        default=(1, 8, 32),
        description="Requests at once of the throughput tests; the largest is what arms are compared by, and what costs"
        " are of. One request alone is always timed, for its latency.",
        min_length=1,
    )
    speed_tokens: Positive = Field(default=64, description="Output tokens per request of the speed test.")
    speed_rounds: Positive = Field(default=3, description="Rounds of the speed test.")
    interleave_speed: bool | None = Field(
        default=None,
        description="Hold teacher and student at once and time them in turn (A-B-B-A); null: yes on CPU, no on GPU.",
    )
    price_per_hour: float | None = Field(
        default=None,
        description="What the machine costs an hour, in any currency: evaluate then says what a million output tokens"
        " and the run cost; null: no costs.",
        ge=0,
    )
    judge: Judge = Field(default=Judge(), description="A chat model that says which answers are better.")
    bootstrap: Positive = Field(default=10_000, description="Bootstrap resamples of the intervals.")
    seed: int = Field(default=0, description="Seed of the bootstrap.", ge=0)


class Export(Section):
    """export: the student as a folder that vLLM and transformers load, with its card."""

    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="bfloat16", description="Type of the exported weights."
    )
