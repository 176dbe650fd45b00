"""report.html: one run on one page, which needs nothing but itself."""

import base64
import hashlib
import json
import re
import shlex
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from pipeline.console import counted
from pipeline.models import lookup
from pipeline.records import ARMS, STAGES
from pipeline.report import charts, figures
from pipeline.report.summary import summary
from pipeline.report.tables import benchmarks, counted_rows, decided, judged, preferred, prepared, risks, served, voted
from pipeline.run import artifacts
from pipeline.run.files import json_lines, read_committed, read_json, write_text
from pipeline.run.manifest import ManifestRow
from pipeline.run.rundir import RunDir
from pipeline.text.repetition import is_repetitive

NUM_OPEN_ITEMS = 6
LOOPS = "↻ repeats itself"
NUM_PREVIEWED = 3
CHAPTER = re.compile(r'<section id="(\w+)"[^>]*>\s*<details class="chapter"><summary><h2>(.*?)</h2>')
NUM_EXAMPLES, EXAMPLE_CHARS = 2, 160  # of what each rule dropped
CONTRACT = {  # what train/contract.py measured, for people
    "worst_sampled_difference_nats": "Largest gap between a token's log-prob and its stored row, beyond rounding, nats",
    "proof_tokens": "Tokens that the models were run on",
    "student_kl_nats": "Untrained student's KL to the rows as they stand, nats",
    "student_kl_shifted_nats": "The same with the rows shifted by one token, nats: far more, if they are aligned",
    "teacher_logprob_difference_nats": "The teacher's log-probs of its tokens, stored against computed again, nats",
    "teacher_kl_nats": "The teacher's own KL to the rows, through batch and loss, nats: 0 but for rounding",
    "tempering_error_nats": "What is stored, made softer, against the teacher made softer, nats a token",
    "teacher_tolerance_nats": "The largest KL that is accepted, nats",
}


def write(run_dir: RunDir) -> Path:
    """Write <run>/report.html. Raises UserError where evaluate has not finished, or what it wrote is damaged."""
    run_dir.check_files("evaluate")
    path = run_dir.path / artifacts.REPORT
    write_text(path, render(run_dir))
    return path


def render(run_dir: RunDir) -> str:
    """The page as HTML: nothing of it is fetched, and of what models wrote nothing is run."""
    manifests = {"evaluate": run_dir.manifest("evaluate")} | _finished_stages(run_dir)
    scores = read_json(run_dir.stage_path("evaluate") / artifacts.SCORES)
    arms, verdict = scores.get("arms", {}), scores.get("verdict", {})
    row_tables, row_answers = counted_rows.tables(run_dir, arms), counted_rows.answers(run_dir)
    shown, chat = [each[0] for each in (*row_tables, *row_answers)], _chat(run_dir)
    context = {
        "name": run_dir.path.resolve().name,
        "models": _models(manifests),
        "evaluated": _minute(manifests["evaluate"]["finished"]),
        "contents": [],
        "summary": summary(arms, verdict),
        "preview": _preview(chat),
        "claims": verdict.get("claims", []),
        "comparisons": figures.verdict_cells(verdict),
        "arms": arms,
        "tables": {
            "headline": figures.table(arms, figures.HEADLINE),
            "fidelity": figures.table(arms, figures.FIDELITY),
            "fidelity_chat": figures.table(arms, figures.FIDELITY_CHAT),
            "fidelity_own": figures.table(arms, figures.FIDELITY_OWN),
            "calibration": figures.table(arms, figures.CALIBRATION),
            "tasks": figures.table(arms, figures.TASKS),
            "task_categories": figures.table(arms, figures.task_categories(arms)),
            "health": figures.table(arms, figures.HEALTH),
            "speed": served.speed(arms),
            "takes": served.takes(arms),
        },
        "breakdowns": [
            (where, tables)
            for section, where in figures.BROKEN_DOWN.items()
            if (tables := figures.breakdowns(arms, section))
        ],
        "self_preference": preferred.rows(verdict),
        "judge_tables": judged.tables(arms),
        "judge_cost": judged.cost(arms),
        "benchmark_tables": benchmarks.tables(arms, verdict),
        "judge_model": (manifests["evaluate"]["fingerprint"].get("evaluate.judge") or {}).get("model"),
        "risk_tables": risks.tables(arms),
        "num_probes": risks.num_probes(arms),
        "charts": _charts(run_dir, scores, manifests),
        "capture": _capture(manifests),
        "filter": _filter(run_dir, manifests),
        "prompts": prepared.described(run_dir) if "prepare" in manifests else None,
        "chat": chat,
        "votes": voted.summary(run_dir),
        "row_tables": row_tables,
        "row_answers": [(name, note, side_by_side(of)) for name, note, of in row_answers],
        "rows_places": {name: counted_rows.PLACES[name] for name in (*shown, artifacts.SAMPLES)},
        "num_open": NUM_OPEN_ITEMS,
        "num_held_out": figures.num_range(arms, figures.FIDELITY),
        "num_items": figures.num_range(arms, figures.HEALTH),
        "num_tasks": figures.num_range(arms, figures.TASKS[:1]),
        "reproduce": _reproduce(run_dir, manifests),
    }
    page = environment().get_template("page.html.j2")
    chapters = re.findall(
        r'<section id="(\w+)" class="chapter[^"]*">\s*<details><summary><h2>(.*?)</h2>', page.render(context)
    )
    return page.render(context | {"contents": chapters})


def script_hash(script: str) -> str:
    """A script's source for a content security policy: this text may run, and no other."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def side_by_side(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of samples.parquet by item and turn, each turn with its answers in the order of records.ARMS."""
    place = {item: number for number, item in enumerate(dict.fromkeys(row["item_id"] for row in answers))}
    arm_place = {arm: number for number, arm in enumerate(ARMS)}
    ordered = sorted(answers, key=lambda r: (place[r["item_id"]], r["turn"], arm_place.get(r["arm"], len(ARMS))))
    items = []
    for item_id, of_item in groupby(ordered, key=lambda row: row["item_id"]):
        turns = [list(of_turn) for _, of_turn in groupby(of_item, key=lambda row: row["turn"])]
        items.append({"item_id": item_id, "category": turns[0][0]["category"], "turns": turns})
    return items


def templates(folder: str) -> Environment:
    """The templates of a folder of this package: everything that is put into them is escaped."""
    environment = Environment(
        loader=PackageLoader("pipeline", folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(counted=counted)
    return environment


def environment() -> Environment:
    """The pages' templates, with what all pages need."""
    environment = templates("report/templates")
    environment.filters.update(script_hash=script_hash, seconds=figures.seconds, whole=figures.whole)
    environment.globals.update(plotly=get_plotlyjs(), arm_names=figures.ARM_NAMES, arm_colours=figures.ARM_COLOURS)
    return environment


def _finished_stages(run_dir: RunDir) -> dict[str, ManifestRow]:
    return {stage: run_dir.manifest(stage) for stage in STAGES if run_dir.is_done(stage)}


def _models(manifests: dict[str, Any]) -> dict[str, str]:
    """Which teacher, and what the student was made of."""
    teacher = manifests.get("generate", {}).get("fingerprint", {}).get("teacher.model") or figures.NONE
    made = manifests.get("train", {}).get("fingerprint", {})
    origin, layers = made.get("student.model"), lookup.kept_layers(manifests.get("train", {}))
    student = lookup.described(origin) if origin and origin != teacher else "the same"
    if made.get("student.config"):
        student = f"random weights, made as {made['student.config']} says"
    return {
        "teacher": lookup.described(teacher),
        "student": f"{student}, layers {layers} kept" if layers else student,
    }


def _charts(run_dir: RunDir, scores: dict[str, Any], manifests: dict[str, Any]) -> dict[str, charts.Chart]:
    """The charts that there are figures for, by name."""
    arms, verdict = scores.get("arms", {}), scores.get("verdict", {})
    of_arms = {
        "forward_kl": charts.forward_kl(arms),
        "kl_by_position": charts.by_position(arms),
        "throughput": charts.throughput(arms),
        "break_even": charts.break_even(arms, verdict),
    }
    drawn = {name: chart for name, chart in of_arms.items() if chart}
    if metrics := _metrics(run_dir):
        steps, validations = ([row for row in metrics if key in row] for key in ("loss", "eval_kl_nats"))
        drawn["loss"] = charts.curves(steps, "loss", "loss")
        drawn["kl"] = charts.curves(steps, "kl_nats", "KL, nats a token")
        if validations:
            drawn["validation_kl"] = charts.curves(validations, "eval_kl_nats", "KL, nats a token")
            drawn["validation_acceptance"] = charts.curves(validations, "eval_acceptance_frac", "acceptance")
    if waterfall := manifests.get("filter", {}).get("waterfall"):
        drops = [(figures.words(row["reason"]), row["dropped"]) for row in waterfall]
        drawn["waterfall"] = charts.waterfall(manifests["filter"]["counts"]["responses"], drops)
    return drawn


def _metrics(run_dir: RunDir) -> list[dict[str, Any]]:
    """The rows of train/metrics.jsonl; a line that a kill cut short is left out, as train itself does."""
    path = run_dir.stage_path("train") / artifacts.TRAIN_METRICS
    rows = []
    for line in json_lines(path) if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def _capture(manifests: dict[str, Any]) -> dict[str, Any] | None:
    """What generate stored, at what rate and size; None where the stage's folder is gone."""
    manifest = manifests.get("generate")
    if manifest is None:
        return None
    counts, generating_s = manifest["counts"], manifest.get("generating_s")
    return {
        **counts,
        "k": manifest.get("k", figures.NONE),
        "tokens_per_s": manifest.get("generated_tokens", 0) / generating_s if generating_s else None,
        "bytes_per_token": counts["bytes"] / max(counts["answer_tokens"], 1),
    }


def _filter(run_dir: RunDir, manifests: dict[str, Any]) -> dict[str, Any] | None:
    """Counts, and each rule with what it dropped, the share of all, what was left, its setting, and examples."""
    manifest = manifests.get("filter")
    if manifest is None:
        return None
    counts, settings, limits = manifest["counts"], manifest.get("settings", {}), manifest.get("limits")
    is_current = "generate" in manifests and manifest["fingerprint"]["input.generate"] == run_dir.output_hash(
        "generate"
    )
    examples = decided.examples(run_dir, NUM_EXAMPLES, EXAMPLE_CHARS) if is_current else {}
    left, rules = counts["responses"], []
    for row in manifest["waterfall"]:
        left -= row["dropped"]
        rules.append(
            {
                "name": figures.words(row["reason"]),
                "dropped": row["dropped"],
                "alone": figures.NONE if row.get("alone") is None else figures.whole(row["alone"]),
                "rate": figures.percent(row["dropped"] / max(counts["responses"], 1)),
                "left": left,
                "setting": figures.setting_text(row["reason"], settings, limits),
                "examples": examples.get(row["reason"], []),
            }
        )
    return {
        **counts,
        "rules": rules,
        "kept_rate": figures.percent(counts["kept"] / max(counts["responses"], 1)),
        "graded": _graded(manifest.get("graded")),
    }


def _graded(graded: dict[str, Any] | None) -> dict[str, Any] | None:
    """What came of a judge's grades; None where none was asked."""
    if graded is None:
        return None
    return {**graded, "invalid_rate": figures.percent(graded["invalid"] / max(graded["answers"], 1))}


def _chat(run_dir: RunDir) -> list[dict[str, Any]]:
    path = run_dir.stage_path("evaluate") / artifacts.SAMPLES
    answers = read_committed(path, counted_rows.ANSWER_COLUMNS).to_pylist() if path.is_file() else []
    return side_by_side([row | {"mark": LOOPS if is_repetitive(row["answer"]) else ""} for row in answers])


def _preview(chat: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """The first questions of the chat set, each with the teacher's and the student's answer."""
    first = [item["turns"][0] for item in chat]
    pairs = [(turn[0]["question"], [row for row in turn if row["arm"] in ("teacher", "student")]) for turn in first]
    return [(question, rows) for question, rows in pairs if len(rows) > 1][:NUM_PREVIEWED]


def _reproduce(run_dir: RunDir, manifests: dict[str, Any]) -> dict[str, Any]:
    config = run_dir.path / artifacts.CONFIG
    ordered = [(stage, manifests[stage]) for stage in STAGES if stage in manifests]
    return {
        "command": f"retort run {shlex.quote(str(config))} name=again",
        "config": config.read_text(encoding="utf-8") if config.is_file() else "",
        "versions": manifests["evaluate"].get("versions", {}),
        "machines": list(dict.fromkeys(m["machine"] for _, m in ordered if "machine" in m)),
        "weights": manifests.get("generate", {}).get("fingerprint", {}).get("teacher.weights") or figures.NONE,
        "times": [(stage, manifest["elapsed_s"], _minute(manifest["finished"])) for stage, manifest in ordered],
        "accepted": [(stage, change) for stage, manifest in ordered for change in manifest.get("accepted", [])],
        "contract": [
            (CONTRACT.get(key, figures.words(key)), _plain(value))
            for key, value in manifests.get("train", {}).get("contract", {}).items()
        ],
    }


def _minute(finished: str) -> str:
    """A manifest's time (rundir.now) to the minute."""
    return f"{finished[:16].replace('T', ' ')} UTC"


def _plain(value: Any) -> str:
    if value is None:
        return figures.NONE
    return f"{value:.4g}" if isinstance(value, float) else str(value)
