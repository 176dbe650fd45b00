"""generate: the teacher answers every prompt; text, token ids and the log-probs behind each token, in one pass.

With `generate.mode: score` the answers are there already (prepare read them), and the teacher gives their log-probs.
"""

# pyarrow.compute makes its functions at import, which no type checker sees:
# pyright: reportAttributeAccessIssue=false

import hashlib
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import codec
from pipeline.config import Config, Generate, output_settings
from pipeline.console import console, counted, progress, say
from pipeline.errors import UserError
from pipeline.generate import reuse, support
from pipeline.generate.reuse import Reuse
from pipeline.inference.engine import Completion, Engine, Request
from pipeline.inference.engine_args import LOGPROBS_MODE
from pipeline.inference.kv_cache import Load
from pipeline.inference.servers import TeacherServers
from pipeline.machine import hardware
from pipeline.models import lookup
from pipeline.models.tokenizer import reasoning
from pipeline.records import ALIGNMENT, RESPONSES
from pipeline.run.commit import Stage
from pipeline.run.files import read_committed
from pipeline.run.left_out import LARGE_FRAC
from pipeline.run.manifest import ManifestRow
from pipeline.run.rundir import RunDir
from pipeline.run.shards import read_planned, read_shards
from pipeline.screening import licences

Row = dict[str, Any]
ZSTD_LEVEL = 15  # of the shards: 2-5 % smaller than at 3, for up to 20 ms per thousand tokens


def run(config: Config, run_dir: RunDir) -> None:
    """Write generate/responses-*.parquet, shard by shard; shards already there are kept."""
    prompts = run_dir.manifest("prepare")
    _check_mode(config, run_dir, prompts)
    licences.check_run(config, run_dir)
    teacher = lookup.find(config.teacher.model, config.teacher.revision)
    lookup.check_support(teacher, config.generate.k)
    fingerprint, engine = _fingerprint(config, run_dir, teacher, prompts), None
    if config.teacher.server.urls:
        served = _recorded_server(config, run_dir, fingerprint)
        if served is None:
            engine = TeacherServers(config.teacher.server, teacher.vocab_size(), config.generate.k)
            served = asdict(engine.served)
        fingerprint |= {"vllm": served["vllm"], "teacher.served": {k: v for k, v in served.items() if k != "vllm"}}
    stage = run_dir.begin("generate", config, fingerprint)
    if stage.complete:
        return
    names, done = _survey(stage, planned(run_dir, config))
    if done:
        say(f"generate: {len(done)} of {len(names)} shards are there; going on")
    if len(done) < len(names):
        with reuse.opened(config.generate.reuse, stage.path, fingerprint) as earlier:
            total = prompts["counts"]["prompts"] * config.generate.num_samples - sum(done.values())
            if earlier:
                total -= _take(stage, earlier, planned(run_dir, config), done)
                stage.remember(teacher_dtype=_common(earlier.dtypes))
            if total:
                began = time.monotonic()
                engine = engine or open_teacher(config, teacher, config.generate.k, load_of(config, run_dir, total))
                dtypes = {engine.dtype, *(earlier.dtypes if earlier else ())}
                dtypes |= {stage.facts().get("teacher_dtype", "")} if done else set()
                stage.remember(engine_start_s=round(time.monotonic() - began, 1), teacher_dtype=_common(dtypes))
                todo = ((name, rows) for name, rows in planned(run_dir, config) if name not in done)
                stage.remember(**_generate(stage, engine, config, teacher.tokenizer(), todo, total, earlier))
    counts = _counts(stage, names)
    if counts["truncated"] > LARGE_FRAC * counts["responses"] and config.generate.mode == "sample":
        say(
            f"generate: {counts['truncated']} of {counted(counts['responses'], 'answer')} are cut off at"
            f" generate.max_tokens={config.generate.max_tokens}; filter.drop_truncated decides whether they are dropped"
        )
    facts = {"alignment": ALIGNMENT, "k": config.generate.k, "vocab_size": teacher.vocab_size()}
    stage.finish([stage.path / name for name in names], counts, **facts)


def _common(dtypes: set[str]) -> str:
    """The type that the teacher answered in; empty, as of a server that does not tell, if it was several."""
    return next(iter(dtypes)) if len(dtypes) == 1 else ""


def open_teacher(config: Config, teacher: lookup.Model, k: int, load: Load) -> Engine | TeacherServers:
    """The servers that the config names, or else a vLLM engine in this process, for up to K log-probs a token."""
    if config.teacher.server.urls:
        return TeacherServers(config.teacher.server, teacher.vocab_size(), k)
    say(f"starting vLLM with {teacher.name}")
    return Engine(str(teacher.path), config.teacher.engine, k, load, scoring=config.generate.mode == "score")


def load_of(config: Config, run_dir: RunDir, num_requests: int) -> Load:
    """What so many of the planned requests ask of an engine: the longest is as long as any of the run's."""
    longest = 0
    for table in read_shards(run_dir, "prepare", ["prompt_token_ids", "completion_token_ids"]):
        of_parts = [pc.coalesce(pc.list_value_length(column), 0) for column in table.columns]
        longest = max(longest, pc.max(pc.add(*of_parts)).as_py() or 0)
    return Load(num_requests, longest + (config.generate.max_tokens if config.generate.mode == "sample" else 1))


def response_seed(seed: int, response_id: str) -> int:
    """The sampling seed of one response: the same in every run, whatever else is generated beside it."""
    return int(hashlib.sha256(f"{seed} {response_id}".encode()).hexdigest()[:8], 16)


def planned(run_dir: RunDir, config: Config) -> Iterator[tuple[str, list[Row]]]:
    """`(file, its responses)`: the same every time, so a shard is done or not done as a whole. One shard at a time.

    Prompts that were added when the run grew begin a new shard.
    """
    columns = ["conversation_id", "split", "category", "prompt_token_ids", "completion_token_ids"]
    rows, number = read_planned(run_dir, columns, config.generate.num_samples), 0
    prompts = run_dir.manifest("prepare")
    for num_prompts in prompts.get("parts", [prompts["counts"]["prompts"]]):
        part = itertools.islice(rows, num_prompts * config.generate.num_samples)
        while shard := list(itertools.islice(part, config.generate.shard_responses)):
            yield f"responses-{number:05d}.parquet", shard
            number += 1


def request(row: Row, settings: Generate) -> Request:
    """What the teacher is asked for one planned response."""
    completion = row.get("completion_token_ids")
    return Request(
        request_id=row["response_id"],
        prompt_token_ids=row["prompt_token_ids"],
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        seed=response_seed(settings.seed, row["response_id"]),
        k=settings.k,
        completion_token_ids=None if completion is None else tuple(completion),
    )


def response(row: Row, answer: Completion, tokenizer: Any, vocab_size: int, config: Config) -> Row:
    """One row of RESPONSES."""
    parts = reasoning.split(tokenizer, config.teacher.reasoning_tags, row["prompt_token_ids"], answer.token_ids)
    return {
        **row,
        "text": parts.text,
        "reasoning": parts.reasoning,
        "reasoning_tokens": parts.num_tokens,
        "reasoning_start": parts.start,
        "reasoning_end": parts.end,
        "finish_reason": answer.finish_reason,
        "token_ids": answer.token_ids,
        "token_logprobs": answer.token_logprobs,
        "logprobs": support.pack(answer.ids_TK, answer.logprobs_TK, vocab_size, config.generate, row["response_id"]),
    }


def _check_mode(config: Config, run_dir: RunDir, prompts: ManifestRow) -> None:
    prepared = prompts["fingerprint"].get("generate.mode", "sample")
    if prepared != config.generate.mode:
        again = run_dir.command("prepare", f"generate.mode={config.generate.mode}", "--fresh")
        raise UserError(
            f"generate.mode is {config.generate.mode}, but prepare was done for {prepared}: it decides whether answers"
            f" are read; do it again: {again}, or give the run a new name"
        )


def _survey(stage: Stage, plan: Iterator[tuple[str, list[Row]]]) -> tuple[list[str], dict[str, int]]:
    """The files of the plan, and the responses of those that are on disk. Raises UserError for one that is damaged."""
    there, names, done = set(stage.shards("responses")), [], {}
    for name, rows in plan:
        names.append(name)
        if name not in there:
            continue
        ids = read_committed(stage.path / name, ["response_id"]).column("response_id").to_pylist()
        if ids != [row["response_id"] for row in rows]:
            raise UserError(f"{stage.path / name}: holds other responses than planned; delete it and run again")
        done[name] = len(rows)
    if unplanned := there - set(names):
        raise UserError(f"{stage.path / min(unplanned)}: no file of this plan; delete it and run again")
    return names, done


def _take(stage: Stage, earlier: Reuse, plan: Iterator[tuple[str, list[Row]]], done: dict[str, int]) -> int:
    """Write the shards whose responses other runs have, all of them, and add them to `done`. Returns how many responses
    other runs have, those of the other shards too."""
    num = 0
    for name, rows in plan:
        if name not in done:
            found = [taken for row in rows if (taken := earlier.find(row))]
            num += len(found)
            if len(found) == len(rows):
                stage.commit(pa.Table.from_pylist(found, schema=RESPONSES), name, ZSTD_LEVEL)
                done[name] = len(rows)
    say(f"generate: {counted(num, 'answer')} taken from {', '.join(earlier.names)}")
    return num


def _generate(
    stage: Stage,
    engine: Engine | TeacherServers,
    config: Config,
    tokenizer: Any,
    todo: Iterator[tuple[str, list[Row]]],
    total: int,
    earlier: Reuse | None = None,
) -> Row:
    """Answer the `total` rows of `todo` that no `earlier` run has answered; commit each shard when its last is in.

    Only shards with answers under way are in memory: the engine reads ahead no further than keeps it full.
    """
    place: dict[str, str] = {}
    open_shards: dict[str, dict[str, Row]] = {}  # planned rows, until responses take their places

    def requests() -> Iterator[Request]:
        for name, rows in todo:
            found = {row["response_id"]: earlier.find(row) if earlier else None for row in rows}
            open_shards[name] = {row["response_id"]: found[row["response_id"]] or row for row in rows}
            asked = [row for row in rows if not found[row["response_id"]]]
            place.update({row["response_id"]: name for row in asked})
            yield from (request(row, config.generate) for row in asked)

    num_tokens, began = 0, time.monotonic()
    with progress("answers") as bar:
        task = bar.add_task("generate", total=total, note="")
        for answer in engine.answers(requests()):
            response_id = answer.request.request_id
            name = place.pop(response_id)
            shard = open_shards[name]
            shard[response_id] = response(shard[response_id], answer, tokenizer, engine.vocab_size, config)
            num_tokens += len(answer.token_ids)
            if not any(planned_id in place for planned_id in shard):
                stage.commit(pa.Table.from_pylist(list(shard.values()), schema=RESPONSES), name, ZSTD_LEVEL)
                del open_shards[name]
            bar.update(task, advance=1, note=f"{num_tokens / (time.monotonic() - began):.0f} tokens/s")
    elapsed_s = time.monotonic() - began
    if not console.is_terminal:
        say(f"generate: {total} answers, {num_tokens} tokens, {num_tokens / elapsed_s:.0f} tokens/s")
    return {"generated_tokens": num_tokens, "generating_s": round(elapsed_s, 3)}


def _counts(stage: Stage, names: list[str]) -> dict[str, int]:
    counts: Counter[str] = Counter(responses=0, answer_tokens=0, reasoning_tokens=0, prompt_tokens=0, truncated=0)
    for name in names:
        columns = ["token_ids", "reasoning_tokens", "prompt_token_ids", "finish_reason"]
        table = pq.read_table(stage.path / name, columns=columns)
        counts["responses"] += table.num_rows
        counts["answer_tokens"] += len(table.column("token_ids").combine_chunks().flatten())
        counts["reasoning_tokens"] += sum(table.column("reasoning_tokens").to_pylist())
        counts["prompt_tokens"] += len(table.column("prompt_token_ids").combine_chunks().flatten())
        counts["truncated"] += table.column("finish_reason").to_pylist().count("length")
    counts["bytes"] = sum((stage.path / name).stat().st_size for name in names)
    return dict(counts)


def _fingerprint(config: Config, run_dir: RunDir, teacher: lookup.Model, prompts: ManifestRow) -> Row:
    prepared = prompts["fingerprint"]
    return {
        **{f"generate.{key}": value for key, value in output_settings(config.generate).items()},
        "teacher.model": config.teacher.model,
        "teacher.revision": config.teacher.revision,
        "teacher.engine": config.teacher.engine,
        "teacher.reasoning_tags": list(config.teacher.reasoning_tags),
        "teacher.weights": teacher.weights_hash(),
        "teacher.tokenizer": prepared["teacher.tokenizer"],
        "teacher.chat_template": prepared["teacher.chat_template"],
        "vllm": hardware.vllm_version(),
        "logprobs_mode": LOGPROBS_MODE,
        "codec": codec.VERSION,
        "input.prepare": run_dir.output_hash("prepare"),
    }


def _recorded_server(config: Config, run_dir: RunDir, fingerprint: Row) -> Row | None:
    """What a finished stage knows of its server, where nothing will be made anew: then the server need not run."""
    if not run_dir.is_done("generate") or run_dir.lost_files("generate") or run_dir.fresh == "always":
        return None
    made = run_dir.fingerprint("generate")
    if "teacher.served" not in made:
        return None
    keys = {"vllm", "teacher.served"}
    changed = {key for key, value in fingerprint.items() if key not in keys and made.get(key) != value}
    grows = changed == {"input.prepare"} and not changed & set(run_dir.accept)  # and will ask the server
    if grows or (run_dir.fresh == "changed" and changed):
        return None
    named = config.teacher.server.model
    return {**made["teacher.served"], "vllm": made["vllm"]} | ({"model": named} if named else {})
