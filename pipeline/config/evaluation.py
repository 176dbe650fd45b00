"""Sections about evaluation and export: tasks, risks, evaluate, export."""

from typing import Literal

from pydantic import Field, model_validator

from pipeline.config.judge import Judge
from pipeline.config.section import EngineArgs, Positive, Section, runtime


class Tasks(Section):
    """Tasks whose answers a program checks: word counts, sums, JSON, and what an earlier turn asked for."""

    path: str | None = Field(
        default="prompts/tasks.jsonl",
        description="Items with their checks (pipeline/eval_sets/task_set.py); null for none.",
    )
    limit: Positive | None = Field(
        default=None,
        description="At most this many, spread over categories; null: all. Few items show only large differences: the "
        "verdict says how large.",
    )
    max_tokens: Positive = Field(
        default=256, description="Longest answer, tokens. An answer that is cut off fails checks of its end."
    )


class Harness(Section):
    """Tasks of lm-evaluation-harness (the extra `harness`), put to every arm behind vLLM's own HTTP server."""

    tasks: tuple[str, ...] = Field(
        default=(), description="Names, such as [gsm8k, ifeval]; `lm-eval ls tasks` lists them. Most need the hub."
    )
    folder: str | None = Field(default=None, description="Folder with tasks of your own (its --include_path).")
    num_fewshot: int | None = Field(
        default=None, description="Examples before each question; null: as the task says.", ge=0
    )
    limit: Positive | None = Field(default=None, description="At most this many items a task; null: all.")
    chat_template: bool = Field(default=True, description="Ask in the chat template, as chat models were trained.")
    concurrency: Positive = runtime(8, "Requests in flight.")


class Risks(Section):
    """Probes of risks that a student may carry over: made-up facts, refusals, injection, stereotypes, recitation."""

    path: str | None = Field(
        default="prompts/risks.jsonl",
        description="Probes, each with how it is judged (eval_sets/probe_set.py); null: no probes, and no test of "
        "memorization.",
    )
    limit: Positive | None = Field(
        default=None,
        description="At most this many probes of each kind, and openings of each split; null: all, and 100 openings. "
        "Few probes show only large differences.",
    )
    max_tokens: Positive = Field(default=128, description="Longest answer to a probe, tokens.")


class Evaluate(Section):
    """evaluate: the student against its teacher."""

    other: str | None = Field(
        default=None,
        description="Another model to measure beside the arms: hub id or local folder. Its fidelity is measured if "
        "its tokens are the teacher's; null: none.",
    )
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
        description="Arguments for vLLM in evaluation, over teacher.engine, if another machine evaluates.",
    )
    batch_tokens: Positive = runtime(4096, "Tokens per teacher-forced forward pass.")
    risks: Risks = Field(default=Risks(), description="What goes wrong more often than in the teacher.")
    speed_concurrency: tuple[Positive, ...] = Field(
        default=(1, 8, 32),
        description="Requests at once in the throughput tests. Arms and costs are compared at the largest. One "
        "request alone is always timed, for its latency.",
        min_length=1,
    )
    speed_tokens: Positive = Field(default=64, description="Output tokens per request of the speed test.")
    speed_rounds: Positive = Field(default=3, description="Rounds of the speed test.")
    interleave_speed: bool | None = Field(
        default=None,
        description="Keep teacher and student in memory and time them in turn (A-B-B-A); null: yes on a CPU if its "
        "memory holds them, no on a GPU.",
    )
    price_per_hour: float | None = Field(
        default=None,
        description="Price of the machine, with all of its GPUs, an hour, in any currency. evaluate then states what "
        "a million output tokens and the run cost; null: no costs.",
        ge=0,
    )
    judge: Judge = Field(default=Judge(), description="A chat model that says which answers are better.")
    harness: Harness = Field(default=Harness(), description="Public benchmarks, through lm-evaluation-harness.")
    bootstrap: Positive = Field(default=10_000, description="Bootstrap resamples of the intervals.")
    seed: int = Field(default=0, description="Seed of the bootstrap.", ge=0)

    @model_validator(mode="after")
    def _something_to_judge(self) -> "Evaluate":
        if self.judge.url is not None and self.chat_set is None:
            raise ValueError("judge.url: a judge needs chat answers, and chat_set=null gives none; set one of the two")
        return self


class Export(Section):
    """export: the student as a folder that vLLM and transformers load, with its card."""

    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="bfloat16", description="Type of the exported weights."
    )
