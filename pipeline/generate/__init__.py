"""generate: the teacher answers every prompt; text, token ids and the log-probs behind each token, in one pass."""

import hashlib
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import codec, hardware, models
from pipeline.config import Config, output_settings
from pipeline.console import console, progress, say
from pipeline.errors import UserError
from pipeline.generate.engine import LOGPROBS_MODE, Answer, Engine, Request
from pipeline.generate.server import Server
from pipeline.records import ALIGNMENT, RESPONSES
from pipeline.rundir import RunDir, Stage, read_committed, read_planned

Row = dict[str, Any]


def run(config: Config, run_dir: RunDir) -> None:
    """Write generate/responses-*.parquet, shard by shard; shards already there are kept."""
    prompts = run_dir.manifest("prepare")
    teacher = models.find(config.teacher.model, config.teacher.revision)
    models.check_support(teacher, config.generate.k)
    fingerprint, engine = _fingerprint(config, run_dir, teacher, prompts), None
    if config.teacher.server.urls:
        served = _recorded_server(config, run_dir, fingerprint)
        if served is None:
            engine = Server(config.teacher.server, teacher.vocab_size(), config.generate.k)
            served = asdict(engine.served)
        fingerprint |= {"vllm": served["vllm"], "teacher.served": {k: v for k, v in served.items() if k != "vllm"}}
    stage = run_dir.begin("generate", config, fingerprint)
    if stage.complete:
        return
    plan = planned(run_dir, config)
    done = _committed(stage, plan)
    todo = {name: rows for name, rows in plan.items() if name not in done}
    if done:
        say(f"generate: {len(done)} of {len(plan)} shards are there; going on")
    if todo:
        began = time.monotonic()
        engine = engine or open_teacher(config, teacher, config.generate.k)
        stage.remember(engine_start_s=round(time.monotonic() - began, 1), teacher_dtype=engine.dtype)
        stage.remember(**_generate(stage, engine, config, teacher.tokenizer(), todo))
    counts = _counts(stage, list(plan))
    facts = {"alignment": ALIGNMENT, "k": config.generate.k, "vocab_size": teacher.vocab_size()}
    stage.finish([stage.path / name for name in plan], counts, **facts)


def open_teacher(config: Config, teacher: models.Model, k: int) -> Engine | Server:
    """The servers that the config names, or else a vLLM engine in this process, for up to K log-probs a token."""
    if config.teacher.server.urls:
        return Server(config.teacher.server, teacher.vocab_size(), k)
    say(f"starting vLLM with {teacher.name}")
    return Engine(str(teacher.path), config.teacher.engine, k)


def response_seed(seed: int, response_id: str) -> int:
    """The sampling seed of one response: the same in every run, whatever else is generated beside it."""
    return int(hashlib.sha256(f"{seed} {response_id}".encode()).hexdigest()[:8], 16)


def planned(run_dir: RunDir, config: Config) -> dict[str, list[Row]]:
    """Which responses each shard holds; the same every time, so a shard is done or not done as a whole."""
    columns = ["prompt_id", "split", "category", "prompt_token_ids"]
    rows = list(read_planned(run_dir, columns, config.generate.num_samples))
    size = config.generate.shard_responses
    return {f"responses-{i // size:05d}.parquet": rows[i : i + size] for i in range(0, len(rows), size)}


def _committed(stage: Stage, plan: dict[str, list[Row]]) -> set[str]:
    """The shards of the plan that are on disk. Raises UserError for one that is damaged."""
    done = set(stage.shards("responses"))
    for name in done:
        ids = read_committed(stage.path / name, ["response_id"]).column("response_id").to_pylist()
        if ids != [row["response_id"] for row in plan.get(name, [])]:
            raise UserError(f"{stage.path / name}: holds other responses than planned; delete it and run again")
    return done


def _generate(stage: Stage, engine: Engine | Server, config: Config, tokenizer: Any, todo: dict[str, list[Row]]) -> Row:
    """Answer every row of `todo`; commit each shard when its last answer is in."""
    place = {row["response_id"]: (name, row) for name, rows in todo.items() for row in rows}
    open_shards: dict[str, dict[str, Row]] = {name: {} for name in todo}
    num_tokens, began = 0, time.monotonic()
    with progress("answers") as bar:
        task = bar.add_task("generate", total=len(place), note="")
        for answer in engine.answers(requests(todo, config)):
            name, row = place[answer.request.request_id]
            open_shards[name][row["response_id"]] = response(row, answer, tokenizer, engine.vocab_size)
            num_tokens += len(answer.token_ids)
            if len(open_shards[name]) == len(todo[name]):
                rows = open_shards.pop(name)
                ordered = [rows[planned["response_id"]] for planned in todo[name]]
                stage.commit(pa.Table.from_pylist(ordered, schema=RESPONSES), name)
            bar.update(task, advance=1, note=f"{num_tokens / (time.monotonic() - began):.0f} tokens/s")
    elapsed_s = time.monotonic() - began
    if not console.is_terminal:
        say(f"generate: {len(place)} answers, {num_tokens} tokens, {num_tokens / elapsed_s:.0f} tokens/s")
    return {"generated_tokens": num_tokens, "generating_s": round(elapsed_s, 3)}


def requests(todo: dict[str, list[Row]], config: Config) -> Iterator[Request]:
    settings = config.generate
    for rows in todo.values():
        for row in rows:
            yield Request(
                request_id=row["response_id"],
                prompt_token_ids=row["prompt_token_ids"],
                max_tokens=settings.max_tokens,
                temperature=settings.temperature,
                top_p=settings.top_p,
                top_k=settings.top_k,
                seed=response_seed(settings.seed, row["response_id"]),
                k=settings.k,
            )


def response(row: Row, answer: Answer, tokenizer: Any, vocab_size: int) -> Row:
    """One row of RESPONSES."""
    return {
        **row,
        "text": tokenizer.decode(answer.token_ids, skip_special_tokens=True).strip(),
        "finish_reason": answer.finish_reason,
        "token_ids": answer.token_ids,
        "token_logprobs": answer.token_logprobs,
        "logprobs": codec.encode(answer.ids_TK, answer.logprobs_TK, codec.log_tail(answer.logprobs_TK, vocab_size)),
    }


def _counts(stage: Stage, names: list[str]) -> dict[str, int]:
    counts: Counter[str] = Counter(responses=0, answer_tokens=0, prompt_tokens=0, truncated=0)
    for name in names:
        columns = ["token_ids", "prompt_token_ids", "finish_reason"]
        table = pq.read_table(stage.path / name, columns=columns)
        counts["responses"] += table.num_rows
        counts["answer_tokens"] += len(table.column("token_ids").combine_chunks().flatten())
        counts["prompt_tokens"] += len(table.column("prompt_token_ids").combine_chunks().flatten())
        counts["truncated"] += table.column("finish_reason").to_pylist().count("length")
    counts["bytes"] = sum((stage.path / name).stat().st_size for name in names)
    return dict(counts)


def _fingerprint(config: Config, run_dir: RunDir, teacher: models.Model, prompts: Row) -> Row:
    prepared = prompts["fingerprint"]
    return {
        **{f"generate.{key}": value for key, value in output_settings(config.generate).items()},
        "teacher.model": config.teacher.model,
        "teacher.revision": config.teacher.revision,
        "teacher.engine": config.teacher.engine,
        "teacher.weights": teacher.weights_hash(),
        "teacher.tokenizer": prepared["teacher.tokenizer"],
        "teacher.chat_template": prepared["teacher.chat_template"],
        "vllm": hardware.vllm_version(),
        "logprobs_mode": LOGPROBS_MODE,
        "input.prepare": run_dir.output_hash("prepare"),
    }


def _recorded_server(config: Config, run_dir: RunDir, fingerprint: Row) -> Row | None:
    """What a finished stage knows of its server, where nothing will be made anew: then the server need not run."""
    if not run_dir.is_done("generate") or run_dir.lost_files("generate") or run_dir.fresh == "always":
        return None
    made = run_dir.manifest("generate")["fingerprint"]
    if "teacher.served" not in made:
        return None
    keys = {"vllm", "teacher.served"}
    is_changed = any(made.get(key) != value for key, value in fingerprint.items() if key not in keys)
    if run_dir.fresh == "changed" and is_changed:
        return None
    named = config.teacher.server.model
    return {**made["teacher.served"], "vllm": made["vllm"]} | ({"model": named} if named else {})
