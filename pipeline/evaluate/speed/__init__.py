"""How fast the arms answer when vLLM serves them, timed in turn so that a slow moment hits all alike."""

from typing import NamedTuple

import pyarrow as pa

from pipeline.config import Evaluate
from pipeline.inference.child_engine import ChildEngine
from pipeline.machine import meters
from pipeline.run import metrics
from pipeline.statistics import Figure, exact, repeated

THROUGHPUT = metrics.OUTPUT_TOKENS_PER_S  # at the most requests at once; what arms are compared by
FIRST_TOKEN, NEXT_TOKEN = metrics.FIRST_TOKEN_S, metrics.TIME_PER_TOKEN_S
CPU_ENERGY, GPU_ENERGY = metrics.CPU_ENERGY_J_PER_TOKEN, metrics.GPU_ENERGY_J_PER_TOKEN
LOAD, PEAK_RSS, GPU_MEMORY, GPUS = (
    metrics.LOAD_S,
    metrics.PEAK_RSS_BYTES,
    metrics.GPU_MEMORY_BYTES,
    "num_gpus",
)

Round = dict[str, float | None]  # None: the machine does not tell


class _Batch(NamedTuple):
    tokens_per_s: float
    cpu_j_per_token: float | None
    gpu_j_per_token: float | None
    first_token_s: float  # of the first request
    total_s: float
    num_tokens: int


def time_arms(
    arms: list[ChildEngine], prompts: dict[str, list[list[int]]], settings: Evaluate
) -> dict[str, list[Round]]:
    """Each arm's rounds on its prompts: A-B-B-A-A-B ..., after one round of warm-up that is not counted."""
    timed: dict[str, list[Round]] = {arm.name: [] for arm in arms}
    for arm in arms:
        measure(arm, prompts[arm.name], settings)
    for number in range(settings.speed_rounds):
        for arm in arms if number % 2 == 0 else arms[::-1]:
            timed[arm.name].append(measure(arm, prompts[arm.name], settings) | engine(arm, alone=len(arms) == 1))
    return timed


def measure(arm: ChildEngine, prompts: list[list[int]], settings: Evaluate) -> Round:
    """Throughput and energy with so many requests at once, latency of one alone. Lengths are fixed, ends ignored."""
    alone = _batch(arm, prompts[:1], settings.speed_tokens, timed=True)
    batches = {1: alone}
    for num in sorted({*settings.speed_concurrency} - {1}):
        batches[num] = _batch(arm, [prompts[n % len(prompts)] for n in range(num)], settings.speed_tokens)
    most = batches[max(settings.speed_concurrency)]
    return {
        THROUGHPUT: most.tokens_per_s,
        **{f"{THROUGHPUT}_at_{num}": batches[num].tokens_per_s for num in sorted({*settings.speed_concurrency})},
        FIRST_TOKEN: alone.first_token_s,
        NEXT_TOKEN: (alone.total_s - alone.first_token_s) / max(1, alone.num_tokens - 1),
        CPU_ENERGY: most.cpu_j_per_token,
        GPU_ENERGY: most.gpu_j_per_token,
    }


def engine(arm: ChildEngine, alone: bool) -> Round:
    """What the arm's engine took to start, and takes of memory; of GPUs' only where no other arm may have it."""
    used, before = meters.gpu_used_bytes(), arm.gpu_bytes_before
    return {
        LOAD: arm.start_s,
        GPUS: arm.num_gpus,
        PEAK_RSS: meters.peak_rss_bytes(arm.pid),
        GPU_MEMORY: used - before if alone and used is not None and before is not None else None,
    }


def figures(rounds: list[Round]) -> dict[str, Figure]:
    """Median of the rounds, with minimum and maximum."""
    names = [name for name in rounds[0] if name.startswith(THROUGHPUT)] + [FIRST_TOKEN, NEXT_TOKEN]
    return {name: figure for name in names if (figure := over_rounds(rounds, name))}


def rows(rounds: dict[str, list[Round]]) -> pa.Table:
    """speed.parquet: what each round of each arm measured; null where the machine does not tell."""
    measured = [{"arm": arm, "round": n, **each} for arm, of in rounds.items() for n, each in enumerate(of)]
    names = list(dict.fromkeys(name for row in measured for name in row))[2:]
    columns = [("arm", pa.string()), ("round", pa.int32()), *((name, pa.float64()) for name in names)]
    return pa.Table.from_pylist(measured, schema=pa.schema(columns))


def over_rounds(rounds: list[Round], name: str) -> Figure | None:
    """One figure's median over the rounds; None where one of them lacks it."""
    values = [value for measured in rounds if (value := measured[name]) is not None]
    return repeated(values) if len(values) == len(rounds) else None


def throughputs(rounds: list[Round]) -> list[float]:
    """Output tokens a second of each round, at the most requests at once: of each GPU, where the arm ran on GPUs.

    A teacher on four GPUs is compared with four students, not with one.
    """
    num_gpus = gpus(rounds) or 1
    return [value / num_gpus for measured in rounds if (value := measured[THROUGHPUT]) is not None]


def gpus(rounds: list[Round]) -> int:
    """How many the arm ran on; 0 on a CPU."""
    return int(rounds[0].get(GPUS) or 0)


def over(rounds: list[Round], others: list[Round], together: bool) -> Figure:
    """Throughput (a GPU's) ÷ the other arm's: round by round if they were timed in turn, else of the medians alone."""
    ours, theirs = throughputs(rounds), throughputs(others)
    if together:
        return repeated([a / b for a, b in zip(ours, theirs, strict=True)])
    return exact(repeated(ours)["value"] / repeated(theirs)["value"])


def _batch(arm: ChildEngine, prompts: list[list[int]], output_tokens: int, timed: bool = False) -> _Batch:
    requests = [_request(number, prompt, output_tokens) for number, prompt in enumerate(prompts)]
    energy = meters.Energy()
    reply = arm.ask(requests, timed=timed)
    cpu_j, gpu_j = energy.cpu_j(), energy.gpu_j()
    answers = reply["answers"]
    num_tokens = sum(len(answer["token_ids"]) for answer in answers)
    return _Batch(
        tokens_per_s=num_tokens / reply["elapsed_s"],
        cpu_j_per_token=None if cpu_j is None else cpu_j / num_tokens,
        gpu_j_per_token=None if gpu_j is None else gpu_j / num_tokens,
        first_token_s=answers[0][metrics.FIRST_TOKEN_S],
        total_s=answers[0]["total_s"],
        num_tokens=num_tokens,
    )


def _request(number: int, prompt: list[int], output_tokens: int) -> dict:
    return {
        "request_id": str(number),
        "prompt_token_ids": prompt,
        "max_tokens": output_tokens,
        "temperature": 0.0,
        "seed": 0,
        "ignore_eos": True,
    }
