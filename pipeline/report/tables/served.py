"""Tables of what an arm takes when it is served: throughput by requests at once, latency, memory, energy, money."""

from dataclasses import replace
from typing import Any

from pipeline.report import figures
from pipeline.report.figures import Column, Table
from pipeline.run import metrics

PREFIX = "output_tokens_per_s_at_"
TAKES = [
    *figures.SIZE,
    Column("cost", "num_gpus", "GPUs", "served on", figures.whole),
    Column("cost", metrics.LOAD_S, "Load", "s, to the first question", figures.tokens, "lower"),
    Column(
        "cost",
        metrics.PEAK_RSS_BYTES,
        "Peak memory",
        "of its processes",
        lambda value: figures.scaled(value, "B"),
        "lower",
    ),
    Column(
        "cost",
        metrics.GPU_MEMORY_BYTES,
        "GPU memory",
        "cache included",
        lambda value: figures.scaled(value, "B"),
        "lower",
    ),
    Column("cost", metrics.CPU_ENERGY_J_PER_TOKEN, "Energy, CPU", "J a token", figures.nats, "lower"),
    Column("cost", metrics.GPU_ENERGY_J_PER_TOKEN, "Energy, GPU", "J a token", figures.nats, "lower"),
    Column("cost", metrics.COST_PER_MILLION_OUTPUT_TOKENS, "Cost", "a million output tokens", figures.nats, "lower"),
]
NOTE = "– this machine does not tell, or no price was given. Memory has the cache that vLLM reserves by what is free."


def loads(arms: dict[str, Any]) -> list[int]:
    """How many requests at once were tried, from the fewest on."""
    tried = {key for arm in arms.values() for key in arm.get("speed", {}) if key.startswith(PREFIX)}
    return sorted(int(key.removeprefix(PREFIX)) for key in tried)


def speed(arms: dict[str, Any]) -> Table:
    """Throughput at each number of requests at once that was tried, and the latency of one alone."""
    throughput = [
        Column("speed", f"{PREFIX}{num}", f"{num} at once", "tokens/s, all requests", figures.tokens, "higher")
        for num in loads(arms)
    ]
    return figures.table(arms, [*(throughput or figures.SPEED[:1]), *figures.SPEED[1:]])


def takes(arms: dict[str, Any]) -> Table:
    """Size, memory, energy and cost."""
    return replace(figures.table(arms, TAKES), notes=[NOTE])
