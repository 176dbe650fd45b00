"""The figures of every arm, made of its answers and of forward passes; and the student beside the other arms."""

import gc
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.console import say
from pipeline.errors import UserError
from pipeline.evaluate import judge, speed, tasks, verdict
from pipeline.evaluate.answered import Answered, Rows
from pipeline.evaluate.asked import Questions, has_tokens_of
from pipeline.evaluate.fidelity import fidelity_figures, forced_responses, preference
from pipeline.evaluate.fidelity.fidelity_figures import SumsBySection
from pipeline.evaluate.risks import risk_figures
from pipeline.evaluate.speed import cost
from pipeline.models import lookup, quantised
from pipeline.models.forward.forced import load
from pipeline.run import metrics
from pipeline.run.rundir import RunDir
from pipeline.statistics import Figure, cluster_sums, defined, exact, ratio
from pipeline.text.repetition import is_repetitive


def comparable(folders: dict[str, Path], asked: Questions) -> dict[str, Path]:
    """The arms that can be compared with the teacher token by token: with its tokens, and loadable by transformers."""
    teachers = asked.chat_formats["teacher"]
    alike = {arm: of for arm, of in folders.items() if has_tokens_of(asked.chat_formats[arm].tokenizer, teachers)}
    _leave_out_unloadable(alike)
    return alike


def _leave_out_unloadable(folders: dict[str, Path]) -> None:
    """Without evaluate.other, with a word, if transformers can't load its weights; vLLM serves it all the same."""
    if "other" in folders:
        try:
            quantised.check_loadable(lookup.Model("other", folders["other"]).config(), "evaluate.other")
        except UserError as error:
            say(f"{error}; its fidelity is not measured")
            del folders["other"]


def fidelity(
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


def arms(
    config: Config,
    folders: dict[str, Path],
    answered: Answered,
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
            "quality": _quality(config, of_arm(arm, answered.chat))
            | tasks.figures(scored[arm], settings.bootstrap, settings.seed),
            "risks": risk_scores.get(arm, {}),
            "speed": speed.figures(answered.rounds[arm]),
            "cost": cost.figures(folder, answered.rounds[arm], settings.price_per_hour, num_gpus),
            "judge": judged.arms.get(arm, {}),
        }
        for arm, folder in folders.items()
    }
    return defined(found)


def of_arm(arm: str, rows: Rows) -> Rows:
    """The rows of one arm."""
    return [row for row in rows if row["arm"] == arm]


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


def comparisons(
    config: Config,
    sums: SumsBySection,
    rounds: dict[str, list[speed.Round]],
    figures: dict[str, Any],
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
    sizes = {arm: figures[arm]["cost"][metrics.NUM_PARAMETERS]["value"] for arm in ("student", "teacher")}
    compared[metrics.PARAMETERS_OVER_TEACHER] = exact(sizes["student"] / sizes["teacher"])
    return compared
