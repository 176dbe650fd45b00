"""What capture costs: vLLM with the log-probs kept, packed and written, against vLLM without, side by side.

    .venv/bin/python scripts/bench/capture.py [--quick] [--json FILE] [--only engine,score,server,hand_tuned,memory]

The demo teacher answers the same seed prompts with answers of one length (`ignore_eos`). Arms that are compared run in
one process and one engine, in turn (A-B-B-A), warmed up first; processes are fresh and alternate too.

- `engine`: `plain` keeps no log-probs and writes nothing; `capture` is what `retort generate` does with K=64: rows
  packed, text decoded, shards written. `k20` and `k100` are the same with other K; `naive` is vLLM as its manual shows
  it: log-probs as dictionaries, every candidate detokenised, written as JSON.
- `score`: the log-probs (K=64) of the text that `engine` has written, packed and written.
- `server`: `plain` and `capture` through `retort serve` on this machine.
- `hand_tuned`: vLLM by itself, threads, malloc, OpenMP and cache set by hand, 64 or 128 sequences, the better of both.
- `memory`: peak memory of `retort generate`, with ten times the prompts.

Figures: `capture_ratio` (capture over plain), `naive_ratio`, `server_ratio`, `k100_over_k20` (time), `score_ratio`
(answer tokens per second, scoring over capture), `retort_over_hand_tuned`, `rss_10x_engine`, `rss_10x_server`,
`rss_per_added_token_engine`, `rss_per_added_token_server`.
"""

import argparse
import contextlib
import json
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from answers import figure

ROOT = Path(__file__).parent.parent.parent
K = 64
HAND_TUNED_SEQS = (64, 128)
PARTS = ("engine", "score", "server", "hand_tuned", "memory")
Rates = dict[str, list[float]]  # arm: tokens per second, round by round


def prompts() -> list[list[int]]:
    from pipeline.models import lookup
    from pipeline.models.tokenizer.chat_template import ChatTemplate

    template = ChatTemplate(lookup.find("demo").tokenizer())
    lines = (ROOT / "prompts/seeds.jsonl").read_text(encoding="utf-8").splitlines()
    return [template.render(json.loads(line)["messages"]) for line in lines[::3]]


def requests(num: int, tokens: int, k: int, texts: list[list[int]] | None = None) -> Iterator[Any]:
    """Requests for answers of one length, or for the scores of these texts."""
    from pipeline.inference.engine import Request

    asked = prompts()
    for i in range(num):
        completion = tuple(texts[i]) if texts else None
        yield Request(
            f"r{i}", asked[i % len(asked)], tokens, 0.7, i, k, ignore_eos=True, completion_token_ids=completion
        )


def capture(teacher: Any, asked: list[Any], folder: Path) -> list[list[int]]:
    """Answer, pack and write as `retort generate` does; returns the answers' tokens, in order."""
    import pyarrow as pa

    from pipeline import generate
    from pipeline.config import Config
    from pipeline.models import lookup
    from pipeline.records import RESPONSES
    from pipeline.run.files import write_table

    config, tokenizer = Config(name="bench"), lookup.find("demo").tokenizer()
    rows: list[dict[str, Any]] = []
    tokens: dict[str, list[int]] = {}
    for answer in teacher.answers(iter(asked)):
        name = answer.request.request_id
        row = {"response_id": name, "prompt_id": name, "sample": 0, "split": "train", "category": "chat"}
        row["prompt_token_ids"] = answer.request.prompt_token_ids
        rows.append(generate.response(row, answer, tokenizer, teacher.vocab_size, config))
        tokens[name] = answer.token_ids
        if len(rows) == 256 or len(tokens) == len(asked):
            write_table(pa.Table.from_pylist(rows, schema=RESPONSES), folder / f"{name}.parquet", generate.ZSTD_LEVEL)
            rows = []
    return [tokens[request.request_id] for request in asked]


def naive(teacher: Any, asked: list[Any], folder: Path) -> None:
    """vLLM's own `generate`, its dictionaries written as JSON."""
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    settings = [
        SamplingParams(temperature=r.temperature, seed=r.seed, max_tokens=r.max_tokens, logprobs=r.k, ignore_eos=True)
        for r in asked
    ]
    given = [TokensPrompt(prompt_token_ids=r.prompt_token_ids) for r in asked]
    outputs = teacher._llm.generate(given, settings, use_tqdm=False)
    with (folder / "naive.jsonl").open("w", encoding="utf-8") as stream:
        for output in outputs:
            rows = output.outputs[0].logprobs
            kept = [{str(i): [p.logprob, p.decoded_token] for i, p in row.items()} for row in rows]
            stream.write(json.dumps({"text": output.outputs[0].text, "logprobs": kept}) + "\n")


def timed(work: Callable[[], Any], num_tokens: int) -> float:
    began = time.perf_counter()
    work()
    return num_tokens / (time.perf_counter() - began)


def time_teacher(teacher: Any, arms: list[str], num: int, tokens: int, rounds: int) -> Rates:
    """The arms in turn, there and back, `rounds` times."""
    k_of = {"plain": 0, "capture": K, "k20": 20, "k100": 100, "naive": K}

    def once(arm: str, count: int) -> float:
        asked = list(requests(count, tokens, k_of[arm]))
        with tempfile.TemporaryDirectory() as folder:
            work: dict[str, Callable[[], Any]] = {
                "plain": lambda: list(teacher.answers(iter(asked))),
                "naive": lambda: naive(teacher, asked, Path(folder)),
            }
            return timed(work.get(arm, lambda: capture(teacher, asked, Path(folder))), count * tokens)

    for arm in arms:
        once(arm, 16)
    rates: Rates = {arm: [] for arm in arms}
    for _ in range(rounds):
        for arm in [*arms, *arms[::-1]]:
            rates[arm].append(once(arm, num))
            print(f"{arm:>16}  {rates[arm][-1]:7.1f} tokens/s", file=sys.stderr, flush=True)
    return rates


def engine_arm(num: int, tokens: int, rounds: int, texts: Path) -> Rates:
    from pipeline.inference.engine import Engine
    from pipeline.models import lookup

    engine = Engine(str(lookup.find("demo").path), {}, k=100)
    rates = time_teacher(engine, ["plain", "capture"], num, tokens, 2 * rounds)  # the figure that matters most
    rates |= time_teacher(engine, ["k20", "k100"], num, tokens, rounds)
    rates |= time_teacher(engine, ["naive"], num, tokens, 1)
    with tempfile.TemporaryDirectory() as folder:
        texts.write_text(json.dumps(capture(engine, list(requests(num, tokens, K)), Path(folder))), encoding="utf-8")
    return rates


def score_arm(num: int, tokens: int, rounds: int, texts: Path) -> Rates:
    from pipeline.inference.engine import Engine
    from pipeline.models import lookup

    engine = Engine(str(lookup.find("demo").path), {}, k=K, scoring=True)
    asked = list(requests(num, 1, K, json.loads(texts.read_text(encoding="utf-8"))))
    rates: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        capture(engine, asked[:16], Path(folder))
        for _ in range(2 * rounds):
            engine._llm.reset_prefix_cache()  # a text that was scored before is no new text
            rates.append(timed(lambda: capture(engine, asked, Path(folder)), num * tokens))
    return {"score": rates}


def server_arm(num: int, tokens: int, rounds: int, texts: Path) -> Rates:
    from pipeline import config
    from pipeline.inference.servers import TeacherServers
    from pipeline.models import lookup

    with served() as url:
        settings = config.Server(urls=(url,), concurrency=256)
        server = TeacherServers(settings, lookup.find("demo").vocab_size(), k=K)
        rates = time_teacher(server, ["plain", "capture"], num, tokens, rounds)
    return {f"server_{arm}": values for arm, values in rates.items()}


@contextlib.contextmanager
def served() -> Iterator[str]:
    """`retort serve` with a key in the environment, until the end of the block."""
    os.environ.setdefault("RETORT_SERVER_KEY", secrets.token_urlsafe(24))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "pipeline", "serve", "configs/quickstart.yaml", "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        if not any(line.startswith("retort run") for line in process.stderr):
            raise SystemExit("retort serve did not start")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def hand_tuned_arm(num: int, tokens: int, seqs: int) -> Rates:
    """vLLM by itself, as one who knows it would set it on this machine."""
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    from pipeline.models import lookup

    path = str(lookup.find("demo").path)
    llm = LLM(path, dtype="float32", enforce_eager=True, max_num_seqs=seqs, disable_log_stats=True)
    ids = prompts()

    def once(count: int) -> float:
        given = [TokensPrompt(prompt_token_ids=ids[i % len(ids)]) for i in range(count)]
        settings = SamplingParams(temperature=0.7, max_tokens=tokens, ignore_eos=True, detokenize=False)
        return timed(lambda: llm.generate(given, settings, use_tqdm=False), count * tokens)

    once(16)
    return {f"hand_tuned_{seqs}": [once(num)]}


def peak_memory(num_prompts: int, url: str | None) -> tuple[float, int]:
    """Peak resident memory of `retort generate` and what it waits for, bytes; and the tokens that it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "prompts.txt"
        source.write_text("".join(f"Count from {i} on.\n" for i in range(num_prompts)), encoding="utf-8")
        settings = [f"runs_dir={folder}", "name=memory", f"prepare.sources=[{{path: {source}}}]"]
        settings += ["generate.max_tokens=32", "generate.shard_responses=64", f"generate.k={K}"]
        settings += [f"teacher.server.urls=[{url}]"] if url else []
        for stage in ("prepare", "generate"):
            command = [sys.executable, "-m", "pipeline", stage, "configs/quickstart.yaml", *settings]
            process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            if status:
                raise SystemExit(f"retort {stage} failed")
        manifest = json.loads((Path(folder) / "memory/generate/manifest.json").read_text(encoding="utf-8"))
    return usage.ru_maxrss * 1024.0, manifest["counts"]["answer_tokens"]


def memory_figures(num_prompts: int) -> dict[str, Any]:
    figures = {}
    with served() as url:
        for name, at in (("server", url), ("engine", None)):
            (few, few_tokens), (many, many_tokens) = peak_memory(num_prompts, at), peak_memory(10 * num_prompts, at)
            figures[f"rss_10x_{name}"] = figure([many / few], "ratio")
            added = (many - few) / (many_tokens - few_tokens)
            figures[f"rss_per_added_token_{name}"] = figure([added], "bytes")  # what is captured of one takes 500
            print(f"{name}: {few / 1e6:.0f} MB for {few_tokens} tokens, {many / 1e6:.0f} MB for {many_tokens}")
    return figures


def in_process(arm: str, options: argparse.Namespace, texts: Path) -> Rates:
    """One arm in a process of its own; its last line of output is its rates."""
    from pipeline.machine import hardware

    environment = hardware.stage_environment()  # the preloads; a person would set the same two by hand
    if arm.startswith("hand_tuned"):
        cores = len(os.sched_getaffinity(0))
        environment |= {"VLLM_CPU_OMP_THREADS_BIND": f"0-{cores - 1}", "VLLM_CPU_KVCACHE_SPACE": "4"}
        environment |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
    command = [sys.executable, __file__, "--arm", arm, "--texts", str(texts)]
    command += [f"--{name}={getattr(options, name)}" for name in ("num", "tokens", "rounds")]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    rates: Rates = json.loads(done.stdout.strip().splitlines()[-1])
    for name, values in rates.items():
        print(f"{name:>16}  {' '.join(f'{value:7.1f}' for value in values)} tokens/s", flush=True)
    return rates


def ratios(rates: Rates) -> dict[str, Any]:
    """Each ratio of the arms that ran, one a round; A-B-B-A in turn, a drift of the machine's speed cancels out."""
    best = max((arm for arm in rates if arm.startswith("hand")), key=lambda a: statistics.median(rates[a]), default="")
    pairs = {
        "capture_ratio": ("capture", "plain"),
        "naive_ratio": ("naive", "plain"),
        "server_ratio": ("server_capture", "server_plain"),
        "k100_over_k20": ("k20", "k100"),
        "score_ratio": ("score", "capture"),
        "retort_over_hand_tuned": ("capture", best),
    }
    figures = {f"{arm}_tokens_per_s": figure(values, "tokens/s") for arm, values in rates.items()}
    for name, (above, below) in pairs.items():
        if above in rates and below in rates:
            above_r, below_r = rates[above], rates[below]
            if len(above_r) == len(below_r) > 1:
                above_r, below_r = (
                    [first + second for first, second in zip(r[::2], r[1::2], strict=True)] for r in (above_r, below_r)
                )
            elif len(above_r) != len(below_r):  # of different processes: nothing pairs them
                above_r, below_r = [statistics.median(above_r)], [statistics.median(below_r)]
            figures[name] = figure([a / b for a, b in zip(above_r, below_r, strict=True)], "ratio")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few answers, engine alone: a rough figure in two minutes")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--only", default=",".join(PARTS), help="parts to run, by comma")
    parser.add_argument("--num", type=int, default=128, help="answers per round")
    parser.add_argument("--tokens", type=int, default=64, help="tokens per answer")
    parser.add_argument("--rounds", type=int, default=1, help="rounds there and back, in each process")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    parser.add_argument("--texts", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        sizes = (options.num, options.tokens)
        arms = {"engine": engine_arm, "score": score_arm, "server": server_arm}
        if options.arm in arms:
            rates = arms[options.arm](*sizes, options.rounds, options.texts)
        else:
            rates = hand_tuned_arm(*sizes, int(options.arm.rpartition("_")[2]))
        print(json.dumps(rates))
        return
    if options.quick:
        options.num, options.rounds, options.only = 64, 1, "engine"
    parts = options.only.split(",")
    if "score" in parts and "engine" not in parts:
        parser.error("score scores the text that engine writes: --only engine,score")
    there = [part for part in ("engine", "score") if part in parts]
    there += [f"hand_tuned_{n}" for n in HAND_TUNED_SEQS if "hand_tuned" in parts]
    order = there if options.quick else [*there, *["server"][: "server" in parts], *there[::-1]]
    rates: Rates = {}
    with tempfile.TemporaryDirectory() as folder:
        for arm in order:
            for name, values in in_process(arm, options, Path(folder) / "texts.json").items():
                rates[name] = rates.get(name, []) + values
    figures = ratios(rates) | (memory_figures(options.num) if "memory" in parts else {})
    for name, values in figures.items():
        print(f"{name:>30}  {values['median']:.4g}  ({values['low']:.4g}–{values['high']:.4g}, {values['num']})")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
