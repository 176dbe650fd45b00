"""What capture costs here: Retort's generation with its own settings against hand-tuned vLLM, side by side.

    .venv/bin/python scripts/bench/capture.py [--quick] [--json FILE]

Each arm is a fresh process that answers the same prompts with the same number of tokens; the arms alternate
A-B-B-A, the first answers of each process are a warm-up and are not counted.

- `retort`: the environment and engine that `retort generate` makes, log-probs captured (K=64), packed and written.
- `hand_tuned_N`: plain vLLM, no log-probs, nothing written; threads, malloc, OpenMP and cache set by hand, N sequences.

Figures: `retort_tokens_per_s`, `hand_tuned_tokens_per_s` (the best N), `retort_over_hand_tuned`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HAND_TUNED_SEQS = (64, 128)
ROOT = Path(__file__).parent.parent.parent


def questions() -> list[str]:
    lines = (ROOT / "prompts/seeds.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["messages"][-1]["content"] for line in lines[::3]]


def time_retort(num: int, tokens: int) -> float:
    """Tokens per second of the product's engine, log-probs packed and written to disk."""
    import pyarrow as pa

    from pipeline import codec, models
    from pipeline.generate.engine import Engine, Request
    from pipeline.rundir import write_table

    teacher = models.find("demo")
    tokenizer = teacher.tokenizer()
    engine = Engine(str(teacher.path), {}, k=64)
    prompts = [models.render(tokenizer, [{"role": "user", "content": q}], {}) for q in questions()]

    def once(count: int) -> float:
        began, packed = time.perf_counter(), []
        requests = (
            Request(str(i), prompts[i % len(prompts)], tokens, 0.7, i, 64, ignore_eos=True) for i in range(count)
        )
        for answer in engine.answers(requests):
            packed.append(
                codec.encode(answer.ids_TK, answer.logprobs_TK, codec.log_tail(answer.logprobs_TK, engine.vocab_size))
            )
        with tempfile.TemporaryDirectory() as folder:
            write_table(pa.table({"logprobs": pa.array(packed, pa.binary())}), Path(folder) / "rows.parquet")
        return count * tokens / (time.perf_counter() - began)

    once(16)
    return once(num)


def time_hand_tuned(num: int, tokens: int, max_num_seqs: int) -> float:
    """Tokens per second of vLLM by itself, as one who knows it would set it on this machine."""
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    from pipeline import models

    teacher = models.find("demo")
    tokenizer = teacher.tokenizer()
    llm = LLM(
        str(teacher.path),
        dtype="float32",
        enforce_eager=True,
        max_num_seqs=max_num_seqs,
        disable_log_stats=True,
    )
    ids = [models.render(tokenizer, [{"role": "user", "content": q}], {}) for q in questions()]

    def once(count: int) -> float:
        began = time.perf_counter()
        prompts = [TokensPrompt(prompt_token_ids=ids[i % len(ids)]) for i in range(count)]
        settings = SamplingParams(temperature=0.7, max_tokens=tokens, ignore_eos=True, detokenize=False)
        llm.generate(prompts, settings, use_tqdm=False)
        return count * tokens / (time.perf_counter() - began)

    once(16)
    return once(num)


def in_process(arm: str, num: int, tokens: int) -> float:
    """One arm in a process of its own; its last line of output is its tokens per second."""
    from pipeline import hardware

    environment = hardware.stage_environment()  # the preloads; a person would set the same two by hand
    if arm != "retort":
        cores = len(os.sched_getaffinity(0))
        environment |= {"VLLM_CPU_OMP_THREADS_BIND": f"0-{cores - 1}", "VLLM_CPU_KVCACHE_SPACE": "4"}
        environment |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
    command = [sys.executable, __file__, "--arm", arm, "--num", str(num), "--tokens", str(tokens)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def figure(values: list[float], unit: str) -> dict[str, object]:
    return {
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
        "num": len(values),
        "unit": unit,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of few answers: a rough figure in two minutes")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    parser.add_argument("--num", type=int, default=256, help="answers per round")
    parser.add_argument("--tokens", type=int, default=64, help="tokens per answer")
    options = parser.parse_args()
    if options.arm:
        name, _, seqs = options.arm.rpartition("_")
        rate = (
            time_hand_tuned(options.num, options.tokens, int(seqs))
            if name
            else time_retort(options.num, options.tokens)
        )
        print(rate)
        return
    num = 64 if options.quick else options.num
    seqs = HAND_TUNED_SEQS[:1] if options.quick else HAND_TUNED_SEQS
    arms = ["retort", *(f"hand_tuned_{n}" for n in seqs)]
    order = arms if options.quick else [*arms, *arms[::-1]]
    rates: dict[str, list[float]] = {arm: [] for arm in arms}
    for arm in order:
        rates[arm].append(in_process(arm, num, options.tokens))
        print(f"{arm:>16}  {rates[arm][-1]:7.1f} tokens/s", flush=True)
    best = max(arms[1:], key=lambda arm: statistics.median(rates[arm]))
    figures = {
        "retort_tokens_per_s": figure(rates["retort"], "tokens/s"),
        "hand_tuned_tokens_per_s": figure(rates[best], "tokens/s"),
        "retort_over_hand_tuned": figure([a / b for a, b in zip(rates["retort"], rates[best], strict=True)], "ratio"),
    }
    for name, values in figures.items():
        print(f"{name:>26}  {values['median']:.3f}  ({values['low']:.3f}–{values['high']:.3f}, {values['num']} rounds)")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
