"""evaluate: the student, and what it is compared with, against the teacher: fidelity, chat, risks, speed, cost."""

import gc
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from pipeline import chat_set, hardware, models, reasoning
from pipeline.config import Config, output_settings
from pipeline.console import progress, say
from pipeline.errors import UserError
from pipeline.evaluate import chat, cost, fidelity, risk_figures, risks, speed, verdict
from pipeline.evaluate.fidelity import Sums
from pipeline.evaluate.statistics import Figure, exact, ratio
from pipeline.forced import ForcedText, load
from pipeline.records import ARMS, SAMPLES
from pipeline.rundir import RunDir, Stage, file_hash, read_answers, read_committed, write_json
from pipeline.served import Served

Rows = list[dict[str, Any]]
SPEED_FALLBACK_PROMPT = "Tell me something about the sea."


@dataclass(frozen=True)
class _Asked:
    """What every arm is asked, and how the teacher was set up when it answered in generate."""

    items: list[chat_set.Item]
    tokenizer: Any
    template_kwargs: dict[str, Any]
    engine_args: dict[str, Any]


def run(config: Config, run_dir: RunDir) -> None:
    """Write evaluate/scores.json, samples.parquet and risks.parquet."""
    models.quiet_transformers()
    generated = run_dir.manifest("generate")
    stage = run_dir.begin("evaluate", config, _fingerprint(config, run_dir))
    if stage.complete:
        return
    run_dir.check_files("train")
    teacher = models.teacher_of(run_dir)
    models.check_weights(teacher, run_dir)
    folders = {"teacher": teacher.path, **{arm: run_dir.stage_path("train") / arm for arm in ARMS[1:]}}
    folders = {arm: folder for arm, folder in folders.items() if folder.is_dir()}
    together = hardware.is_cpu() if config.evaluate.interleave_speed is None else config.evaluate.interleave_speed
    groups = [list(folders)] if together else [[arm] for arm in folders]
    asked = _Asked(
        items=_items(config),
        tokenizer=teacher.tokenizer(),
        template_kwargs=models.template_kwargs_of(run_dir),
        engine_args=generated["fingerprint"]["teacher.engine"] | config.evaluate.engine,
    )
    probes = risks.load(config, run_dir, asked.tokenizer, asked.template_kwargs)
    rows, risk_rows, rounds = _serve(config, stage, folders, groups, asked, probes)
    risk_scores = risks.figures(probes, risk_rows)
    texts = {"fidelity": _held_out(config, run_dir), "fidelity_chat": _chat_texts(rows)}
    sums = _fidelity(config, folders, texts, generated.get("teacher_dtype") or "float32")
    arms = {
        arm: {
            **{section: _fidelity_figures(config, sums[section][arm]) for section in texts if sums[section]},
            "quality": _quality(config, [row for row in rows if row["arm"] == arm]),
            "risks": risk_scores.get(arm, {}),
            "speed": speed.figures(rounds[arm]),
            "cost": cost.figures(folder, rounds[arm], config.evaluate.price_per_hour),
        }
        for arm, folder in folders.items()
    }
    comparisons = _comparisons(config, sums, rounds, arms, together)
    costs = cost.comparisons(run_dir, stage, rounds, together, config.evaluate.price_per_hour)
    sentences = verdict.sentences(arms, comparisons)
    sentences += [*risk_figures.sentences(risk_scores), cost.sentence(arms, costs)]
    stage.commit(pa.Table.from_pylist(rows, schema=SAMPLES), "samples.parquet")
    write_json(stage.path / "scores.json", {"arms": arms, "verdict": {"sentences": sentences, **comparisons, **costs}})
    for sentence in sentences:
        say(sentence)
    counts = {"held_out_answers": len(texts["fidelity"]), "chat_answers": len(rows), "arms": len(arms)}
    files = [stage.path / "scores.json", stage.path / "samples.parquet", *risks.write(probes, risk_rows, stage)]
    stage.finish(files, counts)
    for arm in folders:
        risks.answers_path(stage, arm).unlink(missing_ok=True)
        _answers_path(stage, arm).unlink(missing_ok=True)


def _serve(
    config: Config,
    stage: Stage,
    folders: dict[str, Path],
    groups: list[list[str]],
    asked: _Asked,
    probes: risks.Probes,
) -> tuple[Rows, Rows, dict[str, list[speed.Round]]]:
    """Answers to chat set and probes, and timings, of every arm; the arms of a group are up at once, timed in turn."""
    rows: Rows = []
    risk_rows: Rows = []
    rounds: dict[str, list[speed.Round]] = {}
    for group in groups:
        say(f"evaluate: starting vLLM with {', '.join(group)}")
        with ExitStack() as stack:
            share = 0.2 / len(group)  # answers are short, and their number is bounded
            served = [
                stack.enter_context(Served(arm, str(folder), _arm_engine(arm, folder, config, asked), share))
                for arm, folder in folders.items()
                if arm in group
            ]
            for arm in served:
                arm.wait_until_ready()
            rows += _chat_answers(config, stage, served, asked)
            risk_rows += risks.answer(probes, served, stage)
            say(f"evaluate: timing {', '.join(group)}")
            prompts = _speed_prompts(config, asked)
            rounds |= speed.time_arms(served, prompts, config.evaluate)
    return rows, risk_rows, rounds


def _chat_answers(config: Config, stage: Stage, served: list[Served], asked: _Asked) -> Rows:
    """The arms' answers; those of an arm that a stopped try finished are read back."""
    rows: Rows = []
    with progress("arms") as bar:
        task = bar.add_task("chat answers", total=len(served), note="")
        for arm in served:
            path = _answers_path(stage, arm.name)
            if path.exists():
                rows += read_committed(path, SAMPLES.names).to_pylist()
            elif asked.items:
                answers = chat.answer(arm, asked.items, asked.tokenizer, asked.template_kwargs, config.evaluate)
                stage.commit(pa.Table.from_pylist(answers, schema=SAMPLES), path.name)
                rows += answers
            bar.update(task, advance=1, note=arm.name)
    return rows


def _fidelity(
    config: Config, folders: dict[str, Path], texts: dict[str, list[ForcedText]], dtype: str
) -> dict[str, dict[str, Sums]]:
    """Sums per prompt of every arm on every set of texts, against the teacher."""
    loaded: dict[str, Any] = {arm: load(folder, dtype) for arm, folder in folders.items()}
    sums: dict[str, dict[str, Sums]] = {}
    for section, forced in texts.items():
        say(f"evaluate: {section} on {len(forced)} answers of the teacher")
        sums[section] = (
            fidelity.measure(loaded["teacher"], loaded, forced, config.evaluate.batch_tokens) if forced else {}
        )
    del loaded
    gc.collect()
    return sums


def _fidelity_figures(config: Config, sums: Sums) -> dict[str, Figure]:
    settings, tokens = config.evaluate, sums.num_tokens()
    return {name: ratio(sums.of(name), tokens, settings.bootstrap, settings.seed) for name in fidelity.MEASURES}


def _quality(config: Config, rows: Rows) -> dict[str, Figure]:
    """Health of the chat answers: share cut off, share that loops, mean length; intervals over items."""
    if not rows:
        return {}
    measured = {
        "truncated_frac": [float(row["finish_reason"] != "stop") for row in rows],
        "repetition_frac": [float(chat.is_repetitive(row["answer"])) for row in rows],
        "answer_tokens": [float(row["num_tokens"]) for row in rows],
    }
    items = {row["item_id"]: place for place, row in enumerate(rows) if row["turn"] == 0}
    order = {item: place for place, item in enumerate(items)}
    figures = {}
    for name, values in measured.items():
        totals = torch.zeros(len(order), 2, dtype=torch.float64)
        for row, value in zip(rows, values, strict=True):
            totals[order[row["item_id"]]] += torch.tensor([value, 1.0], dtype=torch.float64)
        numerators, denominators = totals.numpy().T
        figures[name] = ratio(numerators, denominators, config.evaluate.bootstrap, config.evaluate.seed)
    return figures


def _comparisons(
    config: Config,
    sums: dict[str, dict[str, Sums]],
    rounds: dict[str, list[speed.Round]],
    arms: dict[str, Any],
    together: bool,
) -> dict[str, Figure]:
    """What the verdict rests on: fidelity paired by prompt; throughputs paired by round where timed in turn."""
    settings = config.evaluate
    compared: dict[str, Figure] = {}
    for prefix, section in (("", "fidelity"), ("chat_", "fidelity_chat")):
        for other in ("untrained", "sft_only"):
            if other in sums[section]:
                student_kl, other_kl = (sums[section][arm].of("forward_kl_nats") for arm in ("student", other))
                name = f"{prefix}kl_over_{other}"
                compared[name] = ratio(student_kl, other_kl, settings.bootstrap, settings.seed)
        if "sft_only" in sums[section]:
            for measure in verdict.OTHER_MEASURES:
                student, other = (sums[section][arm].of(measure) for arm in ("student", "sft_only"))
                compared[f"{prefix}{measure}_over_sft_only"] = ratio(student, other, settings.bootstrap, settings.seed)
    compared["speed_over_teacher"] = speed.over(rounds["student"], rounds["teacher"], together)
    sizes = {arm: arms[arm]["cost"]["num_parameters"]["value"] for arm in ("student", "teacher")}
    compared["parameters_over_teacher"] = exact(sizes["student"] / sizes["teacher"])
    return compared


def _held_out(config: Config, run_dir: RunDir) -> list[ForcedText]:
    """The teacher's answers to held-out prompts that filter kept; the first to each prompt before the second to any.

    What is measured of an answer is what training learnt of one (train.reasoning), given the same context.
    """
    rows: Rows = []
    how = run_dir.manifest("train")["fingerprint"].get("train.reasoning", "keep")
    columns = ["conversation_id", "sample", "split", "prompt_token_ids", "token_ids"]
    for answers, kept in read_answers(run_dir, [*columns, "reasoning_tokens", "reasoning_start", "reasoning_end"]):
        rows += [row for row in answers.filter(kept).to_pylist() if row["split"] == "held_out"]
    rows.sort(key=lambda row: row["sample"])
    forced = [ForcedText(row["conversation_id"], *reasoning.learnt(row, how)) for row in rows]
    texts = [text for text in forced if text.token_ids]
    if not texts:
        raise UserError("evaluate: no held-out answer was kept; raise prepare.held_out_frac, or give more prompts")
    return texts[: config.evaluate.held_out_responses]


def _chat_texts(rows: Rows) -> list[ForcedText]:
    """The teacher's own chat answers; the turns of an item are one cluster."""
    teachers = [row for row in rows if row["arm"] == "teacher" and row["token_ids"]]
    return [ForcedText(row["item_id"], row["prompt_token_ids"], row["token_ids"]) for row in teachers]


def _items(config: Config) -> list[chat_set.Item]:
    chosen = config.evaluate.chat_set
    return chat_set.load(Path(chosen), config.evaluate.chat_items) if chosen else []


def _speed_prompts(config: Config, asked: _Asked) -> list[list[int]]:
    questions = [item.turns[0] for item in asked.items] or [SPEED_FALLBACK_PROMPT]
    chosen = [questions[n % len(questions)] for n in range(max(config.evaluate.speed_concurrency))]
    return [
        models.render(asked.tokenizer, [{"role": "user", "content": question}], asked.template_kwargs)
        for question in chosen
    ]


def _arm_engine(arm: str, folder: Path, config: Config, asked: _Asked) -> dict[str, Any]:
    """The teacher keeps its engine's arguments; a student keeps what is about type and length, as far as it reaches."""
    kept = asked.engine_args
    if arm != "teacher":
        kept = {k: v for k, v in kept.items() if k in {"dtype", "max_model_len", *config.evaluate.engine}}
        if "max_model_len" in kept:
            kept["max_model_len"] = min(kept["max_model_len"], models.Model(arm, folder).context_tokens())
    return {**kept, "enable_prefix_caching": False}  # a repeated prompt would not be timed


def _answers_path(stage: Stage, arm: str) -> Path:
    return stage.path / f"answers-{arm}.parquet"


def _fingerprint(config: Config, run_dir: RunDir) -> dict[str, Any]:
    chosen = config.evaluate.chat_set
    if chosen and not Path(chosen).is_file():
        raise UserError(f"{chosen}: no such chat set (evaluate.chat_set; null for none)")
    return {
        **{f"evaluate.{key}": value for key, value in output_settings(config.evaluate).items()},
        "evaluate.chat_set.hash": file_hash(Path(chosen)) if chosen else None,
        **risks.fingerprint(config.evaluate.risks),
        "input.generate": run_dir.output_hash("generate"),
        "input.filter": run_dir.output_hash("filter"),
        "input.train": run_dir.output_hash("train"),
    }
