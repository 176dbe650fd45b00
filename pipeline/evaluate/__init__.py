"""evaluate: each arm against the teacher: fidelity, tasks, chat, risks, speed, cost.

The arms answer (answered.py), their answers and distributions are measured (measured.py) and judged (judge/), and the
figures, their rows and the verdict are written.
"""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline.config import Config, output_settings
from pipeline.console import counted, say
from pipeline.data import shipped
from pipeline.errors import UserError
from pipeline.evaluate import answered, asked, judge, measured, risks, speed, tasks, verdict
from pipeline.evaluate.answered import Answered
from pipeline.evaluate.asked import Questions
from pipeline.evaluate.fidelity import fidelity_figures, forced_responses
from pipeline.evaluate.fidelity.fidelity_figures import SumsBySection
from pipeline.evaluate.risks import risk_figures
from pipeline.evaluate.speed import cost
from pipeline.evaluate.tasks import harness
from pipeline.judge import fingerprint as judge_fingerprint
from pipeline.models import lookup, model_checks
from pipeline.records import SAMPLES, TASKS
from pipeline.report.summary import summary
from pipeline.run import artifacts
from pipeline.run.commit import Stage
from pipeline.run.files import file_hash, write_json
from pipeline.run.rundir import RunDir
from pipeline.statistics import defined


class _Found(NamedTuple):
    """All figures, and what their rows are made of."""

    arms: dict[str, Any]
    verdict: dict[str, Any]
    sums: SumsBySection
    scored: dict[str, list[tasks.Score]]


def run(config: Config, run_dir: RunDir) -> None:
    """Write evaluate/scores.json, and the rows that its figures were counted from."""
    lookup.quiet_transformers()
    stage = run_dir.begin("evaluate", config, _fingerprint(config, run_dir))
    if stage.complete:
        return
    teacher = _teacher(config, run_dir)
    folders = asked.arm_folders(config, run_dir, teacher)
    questions = asked.of_run(config, run_dir, teacher, folders)
    answers = answered.serve(config, stage, folders, questions)
    judged = judge.run(config.evaluate, answers.chat, stage.path, config.teacher.model, questions.items)
    benchmarks = _benchmarks(config, folders, questions, stage)
    found = _measure(config, run_dir, stage, folders, questions, answers, judged, benchmarks)
    files = [*_write(stage, questions, answers, found), *judged.files, *benchmarks.files]
    _tell(stage, found)
    stage.finish(files, _counts(answers, found))
    harness.clear(stage, folders)
    answered.clear(stage, list(folders))


def _teacher(config: Config, run_dir: RunDir) -> lookup.Model:
    """The teacher of the run, fit to be measured against. Raises UserError before an arm is served."""
    run_dir.check_files("train")
    next(forced_responses.held_out(config, run_dir))  # there is one
    teacher = lookup.teacher_of(run_dir)
    lookup.check_weights(teacher, run_dir)
    model_checks.check_runs_in_transformers(teacher)
    return teacher


def _benchmarks(config: Config, folders: dict[str, Path], questions: Questions, stage: Stage) -> harness.HarnessResults:
    templates = {arm: chat_format.template for arm, chat_format in questions.chat_formats.items()}
    engine_of = partial(answered.arm_engine, config=config, asked=questions)
    return harness.run(config.evaluate, folders, engine_of, templates, stage)


def _measure(
    config: Config,
    run_dir: RunDir,
    stage: Stage,
    folders: dict[str, Path],
    questions: Questions,
    answers: Answered,
    judged: judge.Judged,
    benchmarks: harness.HarnessResults,
) -> _Found:
    """Every arm's figures, the student beside the others, and the claims that both allow."""
    settings = config.evaluate
    alike = measured.comparable(folders, questions)
    sums, preferred = measured.fidelity(config, run_dir, alike, answers.chat, lookup.teacher_dtype(run_dir))
    scored = {arm: tasks.scores(questions.tasks, measured.of_arm(arm, answers.tasks)) for arm in folders}
    risk_scores = risks.figures(questions.probes, answers.risks)
    arms = measured.arms(config, folders, answers, sums, scored, risk_scores, judged)
    for arm, figures in benchmarks.arms.items():
        arms[arm]["harness"] = figures
    between_arms = measured.comparisons(config, sums, answers.rounds, arms, answers.together)
    comparisons = defined(between_arms | judged.comparisons | preferred)
    compared = tasks.comparisons(scored, settings.bootstrap, settings.seed) if questions.tasks else {}
    compared |= benchmarks.comparisons
    costs = cost.comparisons(run_dir, stage, answers.rounds, answers.together, settings.price_per_hour)
    claims = [
        *verdict.claims(arms, comparisons, compared),
        *verdict.resting_on(judge.VERDICTS, judged.sentences),
        *verdict.resting_on(verdict.RISK_ROWS, risk_figures.sentences({arm: of["risks"] for arm, of in arms.items()})),
        *verdict.resting_on(verdict.SPEED_ROWS, [cost.sentence(arms, costs)]),
    ]
    decided = {"claims": [claim._asdict() for claim in claims], **comparisons, **compared, **costs}
    return _Found(arms, decided, sums, scored)


def _write(stage: Stage, questions: Questions, answers: Answered, found: _Found) -> list[Path]:
    """scores.json and the rows behind it."""
    of_tasks = [
        row
        for arm, scored in found.scored.items()
        for row in tasks.checked_rows(questions.tasks, measured.of_arm(arm, answers.tasks), scored)
    ]
    tables = {
        verdict.FIDELITY_ROWS: fidelity_figures.rows(found.sums),
        verdict.TASK_ROWS: pa.Table.from_pylist(of_tasks, schema=TASKS),
        verdict.SPEED_ROWS: speed.rows(answers.rounds),
        verdict.CHAT_ROWS: pa.Table.from_pylist(answers.chat, schema=SAMPLES),
    }
    for name, table in tables.items():
        stage.commit(table, name)
    scores = stage.path / artifacts.SCORES
    write_json(scores, {"arms": found.arms, "verdict": found.verdict})
    return [scores, *(stage.path / name for name in tables), *risks.write(questions.probes, answers.risks, stage)]


def _tell(stage: Stage, found: _Found) -> None:
    for sentence in summary(found.arms, found.verdict):
        say(sentence.text)
    say(f"evaluate: {counted(len(found.verdict['claims']), 'claim')} with intervals in {stage.path / artifacts.SCORES}")


def _counts(answers: Answered, found: _Found) -> dict[str, int]:
    return {
        "held_out_answers": found.sums["fidelity"]["teacher"].num_texts,
        "chat_answers": len(answers.chat),
        "task_answers": len(answers.tasks),
        "risk_answers": len(answers.risks),
        "arms": len(found.arms),
    }


def _fingerprint(config: Config, run_dir: RunDir) -> dict[str, Any]:
    hashes = {}
    for setting, chosen in (("chat_set", config.evaluate.chat_set), ("tasks.path", config.evaluate.tasks.path)):
        if chosen and not shipped.find(chosen).is_file():
            raise UserError(f"{chosen}: no such file (evaluate.{setting}; null for none)")
        hashes[f"evaluate.{setting}.hash"] = file_hash(shipped.find(chosen)) if chosen else None
    return {
        **{f"evaluate.{key}": value for key, value in output_settings(config.evaluate).items()},
        "evaluate.judge": judge_fingerprint(config.evaluate.judge),
        **harness.fingerprint(config.evaluate.harness),
        **hashes,
        **risks.fingerprint(config.evaluate.risks),
        **({"evaluate.other.weights": lookup.find(other).weights_hash()} if (other := config.evaluate.other) else {}),
        "input.generate": run_dir.output_hash("generate"),
        "input.filter": run_dir.output_hash("filter"),
        "input.train": run_dir.output_hash("train"),
    }
