"""evaluate: each arm against the teacher: fidelity, tasks, chat, risks, speed, cost."""

import gc
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline.config import Config, Evaluate, output_settings
from pipeline.console import counted, progress, say
from pipeline.data import shipped
from pipeline.errors import UserError
from pipeline.eval_sets import chat_set, task_set
from pipeline.evaluate import judge, risks, speed, tasks, verdict
from pipeline.evaluate.fidelity import fidelity_figures, forced_responses, preference
from pipeline.evaluate.fidelity.fidelity_figures import SumsBySection
from pipeline.evaluate.risks import risk_figures
from pipeline.evaluate.speed import cost, memory
from pipeline.evaluate.tasks import chat, harness
from pipeline.evaluate.tasks.chat import ChatFormat
from pipeline.inference.child_engine import ChildEngine
from pipeline.inference.kv_cache import Load
from pipeline.judge import fingerprint as judge_fingerprint
from pipeline.machine import hardware
from pipeline.models import lookup, model_checks, quantised
from pipeline.models.forward.forced import load
from pipeline.models.tokenizer import tokens
from pipeline.models.tokenizer.chat_template import ChatTemplate
from pipeline.records import ARMS, SAMPLES, TASKS
from pipeline.report.summary import summary
from pipeline.run import artifacts, metrics
from pipeline.run.files import file_hash, read_committed, write_json
from pipeline.run.rundir import RunDir, Stage
from pipeline.statistics import Figure, cluster_sums, defined, exact, ratio
from pipeline.text.repetition import is_repetitive

Rows = list[dict[str, Any]]
SPEED_FALLBACK_PROMPT = "Tell me something about the sea."


@dataclass(frozen=True)
class _Asked:
    """What every arm is asked, and how the teacher was set up when it answered in generate."""

    items: list[chat_set.ChatItem]
    tasks: list[task_set.TaskItem]
    chat_formats: dict[str, ChatFormat]  # by arm
    engine_args: dict[str, Any]
    probes: risks.Probes


class _Answered(NamedTuple):
    """What the arms said, as rows of records.SAMPLES, and how fast each was."""

    chat: Rows
    tasks: Rows
    risks: Rows
    rounds: dict[str, list[speed.Round]]
    together: bool = True  # whether all arms were up at once, and timed in turn


def run(config: Config, run_dir: RunDir) -> None:
    """Write evaluate/scores.json, and the rows that its figures were counted from."""
    lookup.quiet_transformers()
    stage = run_dir.begin("evaluate", config, _fingerprint(config, run_dir))
    if stage.complete:
        return
    run_dir.check_files("train")
    next(forced_responses.held_out(config, run_dir))  # before an arm is served: there is one
    teacher = lookup.teacher_of(run_dir)
    lookup.check_weights(teacher, run_dir)
    model_checks.check_runs_in_transformers(teacher)
    folders = {"teacher": teacher.path, **{arm: run_dir.stage_path("train") / arm for arm in ARMS[1:-1]}}
    folders = {arm: folder for arm, folder in folders.items() if folder.is_dir()}
    if config.evaluate.other:
        folders["other"] = lookup.find(config.evaluate.other).path
    asked = _asked(config, run_dir, teacher, folders)
    answered = _serve(config, stage, folders, asked)
    judged = judge.run(config.evaluate, answered.chat, stage.path, config.teacher.model, asked.items)
    templates = {arm: chat_format.template for arm, chat_format in asked.chat_formats.items()}
    engine_of = partial(_arm_engine, config=config, asked=asked)
    benchmarks = harness.run(config.evaluate, folders, engine_of, templates, stage)
    teachers = asked.chat_formats["teacher"]
    alike = {arm: of for arm, of in folders.items() if _has_tokens_of(asked.chat_formats[arm].tokenizer, teachers)}
    _leave_out_unloadable(alike)
    sums, preferred = _fidelity(config, run_dir, alike, answered.chat, lookup.teacher_dtype(run_dir))
    scored = {arm: tasks.scores(asked.tasks, _of(arm, answered.tasks)) for arm in folders}
    arms = _arms(config, folders, answered, sums, scored, risks.figures(asked.probes, answered.risks), judged)
    for arm, figures in benchmarks.arms.items():
        arms[arm]["harness"] = figures
    compared_arms = _comparisons(config, sums, answered.rounds, arms, answered.together)
    comparisons = defined(compared_arms | judged.comparisons | preferred)
    compared = tasks.comparisons(scored, config.evaluate.bootstrap, config.evaluate.seed) if asked.tasks else {}
    compared |= benchmarks.comparisons
    costs = cost.comparisons(run_dir, stage, answered.rounds, answered.together, config.evaluate.price_per_hour)
    told_of_risks = risk_figures.sentences({arm: of["risks"] for arm, of in arms.items()})
    claims = [
        *verdict.claims(arms, comparisons, compared),
        *verdict.resting_on(judge.VERDICTS, judged.sentences),
        *verdict.resting_on(verdict.RISK_ROWS, told_of_risks),
        *verdict.resting_on(verdict.SPEED_ROWS, [cost.sentence(arms, costs)]),
    ]
    stage.commit(fidelity_figures.rows(sums), verdict.FIDELITY_ROWS)
    stage.commit(speed.rows(answered.rounds), verdict.SPEED_ROWS)
    stage.commit(pa.Table.from_pylist(answered.chat, schema=SAMPLES), verdict.CHAT_ROWS)
    checked = [row for arm in folders for row in tasks.checked_rows(asked.tasks, _of(arm, answered.tasks), scored[arm])]
    stage.commit(pa.Table.from_pylist(checked, schema=TASKS), verdict.TASK_ROWS)
    decided = {"claims": [claim._asdict() for claim in claims], **comparisons, **compared, **costs}
    write_json(stage.path / artifacts.SCORES, {"arms": arms, "verdict": decided})
    for sentence in summary(arms, decided):
        say(sentence.text)
    say(f"evaluate: {counted(len(claims), 'claim')} with intervals in {stage.path / artifacts.SCORES}")
    counts = {
        "held_out_answers": sums["fidelity"]["teacher"].num_texts,
        "chat_answers": len(answered.chat),
        "task_answers": len(answered.tasks),
        "risk_answers": len(answered.risks),
        "arms": len(arms),
    }
    rows = (verdict.FIDELITY_ROWS, verdict.TASK_ROWS, verdict.SPEED_ROWS, verdict.CHAT_ROWS)
    written = [stage.path / name for name in (artifacts.SCORES, *rows)]
    files = [*written, *risks.write(asked.probes, answered.risks, stage), *judged.files, *benchmarks.files]
    stage.finish(files, counts)
    harness.clear(stage, folders)
    for arm in folders:
        risks.answers_path(stage, arm).unlink(missing_ok=True)
        for name in ("answers", "task-answers"):
            _answers_path(stage, name, arm).unlink(missing_ok=True)


def _asked(config: Config, run_dir: RunDir, teacher: lookup.Model, folders: dict[str, Path]) -> _Asked:
    fingerprint = run_dir.fingerprint("generate")
    tags = (tags[0], tags[1]) if (tags := fingerprint.get("teacher.reasoning_tags")) else None
    teachers = ChatFormat(lookup.chat_template_of(run_dir, teacher.tokenizer()), tags)
    chat_formats = dict.fromkeys(folders, teachers)
    if "other" in folders:
        tokenizer = lookup.Model("other", folders["other"]).tokenizer()
        prepared = run_dir.manifest("prepare")
        day = prepared["fingerprint"].get("teacher.date") or prepared["finished"][:10]
        chat_formats["other"] = _chat_format(tokenizer, teachers, day)
    return _Asked(
        items=_items(config),
        tasks=_tasks(config),
        chat_formats=chat_formats,
        engine_args=fingerprint["teacher.engine"] | config.evaluate.engine,
        probes=risks.load(config, run_dir, chat_formats),
    )


def _chat_format(tokenizer: Any, teachers: ChatFormat, day: str) -> ChatFormat:
    """The other model's: the teacher's, if it has the teacher's tokens and its template writes the same."""
    if not tokenizer.chat_template:
        raise UserError("evaluate.other: its tokenizer has no chat template; choose an instruction-tuned model")
    if _has_tokens_of(tokenizer, teachers) and tokens.renders_alike(teachers.tokenizer, tokenizer):
        return teachers
    return ChatFormat(ChatTemplate(tokenizer, day=day), teachers.reasoning_tags)


def _has_tokens_of(tokenizer: Any, chat_format: ChatFormat) -> bool:
    """Whether distributions over its tokens can be held against each other."""
    return tokenizer is chat_format.tokenizer or tokens.difference(chat_format.tokenizer, tokenizer) is None


def _leave_out_unloadable(folders: dict[str, Path]) -> None:
    """Without evaluate.other, with a word, if transformers can't load its weights; vLLM serves it all the same."""
    if "other" in folders:
        try:
            quantised.check_loadable(lookup.Model("other", folders["other"]).config(), "evaluate.other")
        except UserError as error:
            say(f"{error}; its fidelity is not measured")
            del folders["other"]


def _arms(
    config: Config,
    folders: dict[str, Path],
    answered: _Answered,
    sums: SumsBySection,
    scored: dict[str, list[tasks.Score]],
    risk_scores: dict[str, risk_figures.Figures],
    judged: judge.Judged,
) -> dict[str, Any]:
    """Every figure of each arm, by section."""
    settings = config.evaluate
    num_gpus = cost.machine_gpus(answered.rounds.values())
    found = {
        arm: {
            **fidelity_figures.sections(sums, arm, settings),
            "quality": _quality(config, _of(arm, answered.chat))
            | tasks.figures(scored[arm], settings.bootstrap, settings.seed),
            "risks": risk_scores.get(arm, {}),
            "speed": speed.figures(answered.rounds[arm]),
            "cost": cost.figures(folder, answered.rounds[arm], settings.price_per_hour, num_gpus),
            "judge": judged.arms.get(arm, {}),
        }
        for arm, folder in folders.items()
    }
    return defined(found)


def _of(arm: str, rows: Rows) -> Rows:
    return [row for row in rows if row["arm"] == arm]


def _load(config: Config, asked: _Asked) -> Load:
    """What an arm's engine will be asked."""
    settings, probes = config.evaluate, [item for probe in asked.probes.probes for item in probe.items()]
    sets: list[tuple[list[chat_set.ChatItem], int]] = [
        (asked.items, settings.max_tokens),
        ([*asked.tasks], settings.tasks.max_tokens),
        (probes, settings.risks.max_tokens),
    ]
    return memory.load_of(sets, asked.probes.openings, asked.chat_formats.values(), settings)


def _serve(config: Config, stage: Stage, folders: dict[str, Path], asked: _Asked) -> _Answered:
    """What every arm answers, and its timings, by vLLM; arms of a group are up at once, and timed in turn."""
    settings, load_of_all = config.evaluate, _load(config, asked)
    task_settings = settings.model_copy(update={"max_tokens": settings.tasks.max_tokens})
    engines = {arm: (folder, _arm_engine(arm, folder, config, asked)) for arm, folder in folders.items()}
    done = _Answered([], [], [], {}, memory.are_up_together(engines, load_of_all, settings))
    for group in [engines] if done.together else [{arm: engine} for arm, engine in engines.items()]:
        say(f"evaluate: starting vLLM with {', '.join(group)}")
        with ExitStack() as stack:
            served: list[ChildEngine] = []
            for arm, (arguments, its_load) in memory.shared_out(group, load_of_all).items():
                served.append(stack.enter_context(ChildEngine(arm, str(folders[arm]), arguments, its_load)))
                if not hardware.is_cpu():  # vLLM takes what others put on a card meanwhile for its own
                    served[-1].wait_until_ready()
            for arm in served:
                arm.wait_until_ready()
            done.chat.extend(_answers("chat answers", "answers", asked.items, settings, stage, served, asked))
            of_tasks = _answers("task answers", "task-answers", asked.tasks, task_settings, stage, served, asked)
            done.tasks.extend(of_tasks)
            done.risks.extend(risks.answer(asked.probes, served, stage))
            say(f"evaluate: timing {', '.join(group)}")
            prompts = {arm.name: _speed_prompts(config, asked, asked.chat_formats[arm.name]) for arm in served}
            done.rounds.update(speed.time_arms(served, prompts, settings))
    return done


def _answers(
    what: str,
    name: str,
    items: Sequence[chat_set.ChatItem],
    settings: Evaluate,
    stage: Stage,
    served: list[ChildEngine],
    asked: _Asked,
) -> Rows:
    """The arms' answers to a set; those of an arm that a stopped try finished are read back."""
    rows: Rows = []
    with progress("arms") as bar:
        task = bar.add_task(what, total=len(served), note="")
        for arm in served:
            path = _answers_path(stage, name, arm.name)
            if path.exists():
                rows += read_committed(path, SAMPLES.names).to_pylist()
            elif items:
                answers = chat.answer(arm, items, asked.chat_formats[arm.name], settings)
                stage.commit(pa.Table.from_pylist(answers, schema=SAMPLES), path.name)
                rows += answers
            bar.update(task, advance=1, note=arm.name)
    return rows


def _fidelity(
    config: Config, run_dir: RunDir, folders: dict[str, Path], rows: Rows, dtype: str
) -> tuple[SumsBySection, dict[str, Figure]]:
    """Sums by prompt of every arm on every set of texts, against the teacher; and which answers it finds likelier."""
    loaded: dict[str, Any] = {
        arm: load(folder, dtype, f"evaluate: {arm} ({folder})") for arm, folder in folders.items()
    }
    vocab_size = len(loaded["teacher"].get_output_embeddings().weight)
    answers = {arm: forced_responses.of_arm(rows, arm, vocab_size) for arm in loaded}
    settings = config.evaluate
    sums = fidelity_figures.measure_all(loaded, forced_responses.held_out(config, run_dir), answers, settings)
    preferred = preference.self_preference(
        loaded["teacher"], rows, ("sft_only",), settings.batch_tokens, settings.bootstrap, settings.seed
    )
    del loaded
    gc.collect()
    return sums, {f"{name}_over_{rival}": figure for rival, of in preferred.items() for name, figure in of.items()}


def _quality(config: Config, rows: Rows) -> dict[str, Figure]:
    """Health of the chat answers: share cut off, share that loops, mean length; intervals over items."""
    if not rows:
        return {}
    measured = {
        metrics.TRUNCATED_FRAC: [float(row["finish_reason"] != "stop") for row in rows],
        metrics.REPETITION_FRAC: [float(is_repetitive(row["answer"])) for row in rows],
        "answer_tokens": [float(row["num_tokens"]) for row in rows],
    }
    items = [row["item_id"] for row in rows]
    return {
        name: ratio(*cluster_sums(items, values), config.evaluate.bootstrap, config.evaluate.seed)
        for name, values in measured.items()
    }


def _comparisons(
    config: Config,
    sums: SumsBySection,
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
                student_kl, other_kl = (sums[section][arm].of(metrics.FORWARD_KL_NATS) for arm in ("student", other))
                name = f"{prefix}kl_over_{other}"
                compared[name] = ratio(student_kl, other_kl, settings.bootstrap, settings.seed)
        if "sft_only" in sums[section]:
            for measure in verdict.OTHER_MEASURES:
                student, other = (sums[section][arm].of(measure) for arm in ("student", "sft_only"))
                compared[f"{prefix}{measure}_over_sft_only"] = ratio(student, other, settings.bootstrap, settings.seed)
    compared[metrics.SPEED_OVER_TEACHER] = speed.over(rounds["student"], rounds["teacher"], together)
    sizes = {arm: arms[arm]["cost"][metrics.NUM_PARAMETERS]["value"] for arm in ("student", "teacher")}
    compared[metrics.PARAMETERS_OVER_TEACHER] = exact(sizes["student"] / sizes["teacher"])
    return compared


def _items(config: Config) -> list[chat_set.ChatItem]:
    chosen = config.evaluate.chat_set
    return chat_set.load(Path(chosen), config.evaluate.chat_items) if chosen else []


def _tasks(config: Config) -> list[task_set.TaskItem]:
    settings = config.evaluate.tasks
    return task_set.load(Path(settings.path), settings.limit) if settings.path else []


def _speed_prompts(config: Config, asked: _Asked, chat_format: ChatFormat) -> list[list[int]]:
    questions = [item.turns[0] for item in asked.items] or [SPEED_FALLBACK_PROMPT]
    chosen = [questions[n % len(questions)] for n in range(max(config.evaluate.speed_concurrency))]
    return [chat_format.template.render([{"role": "user", "content": question}]) for question in chosen]


def _arm_engine(arm: str, folder: Path, config: Config, asked: _Asked) -> dict[str, Any]:
    """The teacher keeps its engine's arguments; a student keeps what is about type and length, as far as it reaches."""
    kept = asked.engine_args
    if arm != "teacher":
        kept = {k: v for k, v in kept.items() if k in {"dtype", "max_model_len", *config.evaluate.engine}}
        if kept.get("max_model_len"):  # null is the model's own
            kept["max_model_len"] = min(kept["max_model_len"], lookup.Model(arm, folder).context_tokens())
    return {**kept, "enable_prefix_caching": False}  # a repeated prompt would not be timed


def _answers_path(stage: Stage, name: str, arm: str) -> Path:
    return stage.path / f"{name}-{arm}.parquet"


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
