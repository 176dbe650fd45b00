"""A few prompts answered, measured, and multiplied: what the whole of generate will take, before it is begun."""

import itertools
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from pipeline import generate
from pipeline.config import Config
from pipeline.console import console, progress
from pipeline.errors import UserError
from pipeline.inference.engine import Completion
from pipeline.inference.engine_args import num_gpus
from pipeline.models import lookup
from pipeline.records import RESPONSES
from pipeline.run import artifacts
from pipeline.run.files import read_json, write_json, write_table
from pipeline.run.rundir import RunDir
from pipeline.run.shards import read_planned

Row = dict[str, Any]
WIDEST_K = 128
KS = (8, 16, 32, 50, 64, 100, 128)
ENOUGH_GAIN = 0.01  # a doubled K that holds less than this more of the mass is not worth its bytes
DISK_MARGIN = 1.1


def run(config: Config, run_dir: RunDir) -> None:
    """Answer some prompts, write plan.json, print it. Raises UserError where the disk is too small."""
    prompts = run_dir.manifest("prepare")["counts"]["prompts"]
    teacher = lookup.find(config.teacher.model, config.teacher.revision)
    k = min(max(config.generate.k, WIDEST_K), teacher.vocab_size())
    every = max(1, prompts // config.generate.pilot_prompts)
    columns = ["split", "category", "prompt_token_ids", "completion_token_ids"]
    chosen = list(itertools.islice(read_planned(run_dir, columns, 1), 0, every * config.generate.pilot_prompts, every))
    began = time.monotonic()
    engine = generate.open_teacher(config, teacher, k, generate.load_of(config, run_dir, len(chosen)))
    start_s = time.monotonic() - began
    wide = config.model_copy(update={"generate": config.generate.model_copy(update={"k": k})})
    answers: list[Completion] = []
    began = time.monotonic()
    with progress("answers") as bar:
        task = bar.add_task("plan", total=len(chosen), note="")
        for answer in engine.answers(generate.request(row, wide.generate) for row in chosen):
            answers.append(answer)
            bar.update(task, advance=1)
    answering_s = time.monotonic() - began
    place = {row["response_id"]: row for row in chosen}
    by_k = measure_supports(answers, place, teacher, engine.vocab_size, config)
    tokens = [len(answer.token_ids) for answer in answers]
    plan = estimate(config, prompts, tokens, answering_s, start_s, by_k)
    write_json(run_dir.path / artifacts.PLAN, plan)
    console.print(describe(plan))
    free = shutil.disk_usage(run_dir.path).free
    if free < DISK_MARGIN * plan["disk_bytes"]:
        raise UserError(
            f"{run_dir.path}: {free / 1e9:.1f} GB are free, and generate will write about"
            f" {plan['disk_bytes'] / 1e9:.1f}; free some, put runs_dir elsewhere, or lower generate.k"
        )


def measure_supports(
    answers: list[Completion], place: dict[str, Row], teacher: lookup.Model, vocab_size: int, config: Config
) -> dict[int, dict[str, float]]:
    """For each K: the mean mass that the K best hold, and bytes a token of the shard, every column included.

    What is stored of the K best is what generate.support asks for.
    """
    tokenizer = teacher.tokenizer()
    num_tokens = sum(len(answer.token_ids) for answer in answers)
    by_k: dict[int, dict[str, float]] = {}
    for k in sorted({*KS, config.generate.k}):
        if k > answers[0].ids_TK.shape[1]:
            continue
        cut = [
            Completion(**{**vars(a), "ids_TK": a.ids_TK[:, :k], "logprobs_TK": a.logprobs_TK[:, :k]}) for a in answers
        ]
        mass = sum(float(np.exp(a.logprobs_TK.astype(np.float64)).sum()) for a in cut) / num_tokens
        rows = [generate.response(place[a.request.request_id], a, tokenizer, vocab_size, config) for a in cut]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.parquet"
            write_table(pa.Table.from_pylist(rows, schema=RESPONSES), path, generate.ZSTD_LEVEL)
            # each shard has a footer: the pilot's are fewer answers, or more, than a shard's
            footer = pq.read_metadata(path).serialized_size
            per_shard = num_tokens / len(answers) * config.generate.shard_responses
            by_k[k] = {
                "mass_frac": mass,
                "bytes_per_token": (path.stat().st_size - footer) / num_tokens + footer / per_shard,
            }
    return by_k


def estimate(
    config: Config,
    num_prompts: int,
    tokens: list[int],
    answering_s: float,
    start_s: float,
    by_k: dict[int, dict[str, float]],
) -> Row:
    """The whole of generate from the pilot's `tokens` per answer, its time, and its supports."""
    responses = num_prompts * config.generate.num_samples
    mean = float(np.mean(tokens))
    spread = 1.96 * float(np.std(tokens, ddof=1)) / len(tokens) ** 0.5 if len(tokens) > 1 else None
    rate = sum(tokens) / answering_s
    generate_s = start_s + responses * mean / rate
    price = config.generate.price_per_hour
    return {
        "pilot_prompts": len(tokens),
        "responses": responses,
        "tokens_per_response": mean,
        "tokens_per_response_error": spread,
        "tokens_per_s": rate,
        "tokens": responses * mean,
        "k": config.generate.k,
        "by_k": {str(k): measured for k, measured in by_k.items()},
        "recommended_k": recommend(by_k),
        "bytes_per_token": by_k[config.generate.k]["bytes_per_token"],
        "disk_bytes": responses * mean * by_k[config.generate.k]["bytes_per_token"],
        "memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "generate_s": generate_s,
        "gpu_hours": num_gpus(config.teacher.engine) * generate_s / 3600,
        "cost": None if price is None else price * generate_s / 3600,
    }


def recommend(by_k: dict[int, dict[str, float]]) -> int:
    """The smallest K whose double (or the next above) holds less than ENOUGH_GAIN more of the mass."""
    for k in by_k:
        wider = [other for other in by_k if other >= 2 * k]
        if not wider or by_k[wider[0]]["mass_frac"] - by_k[k]["mass_frac"] < ENOUGH_GAIN:
            return k
    return max(by_k)


def describe(plan: Row) -> Table:
    """The estimate as a table; K by K, then the whole."""
    error = plan["tokens_per_response_error"]
    table = Table(title=f"generate, from a pilot of {plan['pilot_prompts']} prompts", title_justify="left")
    table.add_column("K")
    for column in ("mass held", "bytes/token", "disk"):
        table.add_column(column, justify="right")
    for k, measured in plan["by_k"].items():
        mark = " ← generate.k" if int(k) == plan["k"] else ""
        mark += " ← recommended" if int(k) == plan["recommended_k"] else ""
        disk = measured["bytes_per_token"] * plan["tokens"]
        table.add_row(
            f"{k}{mark}", f"{measured['mass_frac']:.1%}", f"{measured['bytes_per_token']:.0f}", f"{disk / 1e6:,.0f} MB"
        )
    cost = "" if plan["cost"] is None else f", cost {plan['cost']:,.2f}"
    table.caption = (
        f"{plan['responses']:,} answers of {plan['tokens_per_response']:.0f}"
        + (f" ± {error:.0f}" if error is not None else "")
        + f" tokens: {plan['tokens']:,.0f} tokens at {plan['tokens_per_s']:,.0f}/s (a full batch may be faster)\n"
        f"time {plan['generate_s'] / 3600:.2f} h, disk {plan['disk_bytes'] / 1e6:,.0f} MB,"
        f" memory {plan['memory_bytes'] / 1e9:.1f} GB, GPU-hours {plan['gpu_hours']:.2f}{cost}\n"
        "Training and evaluation come on top."
    )
    table.caption_justify = "left"
    return table


def against_actuals(run_dir: RunDir) -> Table | None:
    """What was planned beside what came; None where nothing was planned, or by another version."""
    path = run_dir.path / artifacts.PLAN
    plan, manifest = read_json(path) if path.is_file() else {}, run_dir.manifest("generate")
    counts, answering_s = manifest["counts"], manifest.get("generating_s")
    actual = {
        "responses": counts["responses"],
        "tokens_per_response": counts["answer_tokens"] / max(counts["responses"], 1),
        "tokens_per_s": manifest["generated_tokens"] / answering_s if answering_s else None,
        "bytes_per_token": counts["bytes"] / max(counts["answer_tokens"], 1),
        "disk_bytes": counts["bytes"],
        "generate_s": manifest["elapsed_s"],
    }
    if not actual.keys() <= plan.keys():
        return None
    table = Table("generate", "planned", "came", title_justify="left")
    for name, value in actual.items():
        table.add_row(name, f"{plan[name]:,.1f}", "–" if value is None else f"{value:,.1f}")
    return table
