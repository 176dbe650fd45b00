"""How fast the arms answer when vLLM serves them, timed in turn so that a slow moment hits all alike."""

from pipeline.evaluate.statistics import Figure, exact, repeated
from pipeline.served import Served

Round = dict[str, float]


def time_arms(arms: list[Served], prompts: list[list[int]], output_tokens: int, rounds: int) -> dict[str, list[Round]]:
    """Each arm's rounds: A-B-B-A-A-B ..., after one round of warm-up that is not counted."""
    timed: dict[str, list[Round]] = {arm.name: [] for arm in arms}
    for arm in arms:
        measure(arm, prompts, output_tokens)
    for number in range(rounds):
        for arm in arms if number % 2 == 0 else arms[::-1]:
            timed[arm.name].append(measure(arm, prompts, output_tokens))
    return timed


def measure(arm: Served, prompts: list[list[int]], output_tokens: int) -> Round:
    """Throughput with all prompts at once; latency of the first of them alone. Lengths are fixed, ends ignored."""
    batch = arm.ask([_request(number, prompt, output_tokens) for number, prompt in enumerate(prompts)])
    alone = arm.ask([_request(0, prompts[0], output_tokens)], timed=True)["answers"][0]
    return {
        "output_tokens_per_s": sum(len(a["token_ids"]) for a in batch["answers"]) / batch["elapsed_s"],
        "first_token_s": alone["first_token_s"],
        "time_per_token_s": (alone["total_s"] - alone["first_token_s"]) / max(1, len(alone["token_ids"]) - 1),
    }


def figures(rounds: list[Round]) -> dict[str, Figure]:
    """Median of the rounds, with minimum and maximum."""
    return {name: repeated([measured[name] for measured in rounds]) for name in rounds[0]}


def over(rounds: list[Round], others: list[Round], together: bool) -> Figure:
    """Throughput ÷ the other arm's: round by round where they were timed in turn, else of the medians alone."""
    name = "output_tokens_per_s"
    if together:
        return repeated([a[name] / b[name] for a, b in zip(rounds, others, strict=True)])
    return exact(figures(rounds)[name]["value"] / figures(others)[name]["value"])


def _request(number: int, prompt: list[int], output_tokens: int) -> dict:
    return {
        "request_id": str(number),
        "prompt_token_ids": prompt,
        "max_tokens": output_tokens,
        "temperature": 0.0,
        "seed": 0,
        "ignore_eos": True,
    }
