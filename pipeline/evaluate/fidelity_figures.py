"""Figures of fidelity: each arm's sections of scores.json, made of the sums by prompt."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from pipeline.config import Evaluate
from pipeline.console import say
from pipeline.evaluate import calibration, fidelity
from pipeline.evaluate.fidelity import Sums
from pipeline.evaluate.per_prompt import FloatMatrix, interval
from pipeline.evaluate.statistics import Figure, FloatVector, ratio
from pipeline.forced import ForcedText

TEACHERS, CHAT, OWN = "fidelity", "fidelity_chat", "fidelity_own"
BREAKDOWN_MEASURES = ("forward_kl_nats", "top1_agreement_frac", "acceptance_frac")
BREAKDOWN_RESAMPLES = 1000  # hundreds of intervals, which are looked at, not tested
EXPOSURE_MEASURES = (
    "forward_kl_nats",
    "reverse_kl_nats",
    "js_divergence_nats",
    "top1_agreement_frac",
    "acceptance_frac",
)
ROUNDING = 1e-6  # of a mean over tokens, in float32

SumsBySection = dict[str, dict[str, Sums]]  # section → arm → sums


def measure_all(
    loaded: dict[str, Any],
    held_out: Iterable[ForcedText],
    answers: Mapping[str, Iterable[ForcedText]],
    settings: Evaluate,
) -> SumsBySection:
    """Every arm on the teacher's held-out and chat answers, and on its own chat answers (`answers`, by arm).

    Sections without a text are empty.
    """
    teacher, tokens = loaded["teacher"], settings.batch_tokens
    say("evaluate: fidelity on the teacher's answers to held-out prompts")
    sums = {TEACHERS: fidelity.measure(teacher, loaded, held_out, tokens)}
    say("evaluate: fidelity on the teacher's chat answers, then of each arm on its own")
    sums[CHAT] = fidelity.measure(teacher, loaded, answers["teacher"], tokens)
    sums[OWN] = {}
    for arm in loaded:
        if arm != "teacher":
            sums[OWN] |= fidelity.measure(teacher, {arm: loaded[arm]}, answers[arm], tokens)
    return {section: {arm: of for arm, of in arms.items() if of.num_texts} for section, arms in sums.items()}


def sections(sums: SumsBySection, arm: str, settings: Evaluate) -> dict[str, dict[str, Any]]:
    """What scores.json says of an arm: a section for each kind of text, `breakdowns` of each, and `own_over_chat`."""
    of_arm = {section: arms[arm] for section, arms in sums.items() if arm in arms}
    found: dict[str, dict[str, Any]] = {section: figures(of, settings) for section, of in of_arm.items()}
    found["breakdowns"] = {section: breakdowns(of, settings) for section, of in of_arm.items()}
    if {CHAT, OWN} <= set(of_arm):
        found["own_over_chat"] = own_over_chat(of_arm[OWN], of_arm[CHAT], settings)
    return found


def figures(sums: Sums, settings: Evaluate) -> dict[str, Figure]:
    """Every measure, a token; and the expected calibration error."""
    tokens = sums.num_tokens()
    measured = {name: ratio(sums.of(name), tokens, settings.bootstrap, settings.seed) for name in fidelity.MEASURES}
    return {**measured, "ece_frac": calibration.ece(sums.bins, settings.bootstrap, settings.seed)}


def breakdowns(sums: Sums, settings: Evaluate) -> dict[str, dict[str, dict[str, Figure]]]:
    """dimension → bucket → measure → figure; `num` is how many prompts have tokens in the bucket."""
    resamples = min(settings.bootstrap, BREAKDOWN_RESAMPLES)
    found: dict[str, dict[str, dict[str, Figure]]] = {}
    for bucket in sums.buckets():
        dimension, name = bucket
        found.setdefault(dimension, {})[name] = {
            measure: ratio(sums.of(measure, bucket), sums.num_tokens(bucket), resamples, settings.seed)
            for measure in BREAKDOWN_MEASURES
        }
    return found


def own_over_chat(own: Sums, chat: Sums, settings: Evaluate) -> dict[str, Figure]:
    """Exposure bias: an arm's measures a token on its own answers ÷ those on the teacher's, paired by item.

    1 where the arm follows its teacher as well in what it wrote itself. After the error accumulation of Arora et al.
    2022 (arXiv:2204.01171), with the teacher in the place of the data, and token by token. Left out: measures whose
    mean on the teacher's answers is 0 but for rounding, of which nothing is a multiple.
    """
    items = sorted({*own.prompts(), *chat.prompts()})
    found = {}
    for name in EXPOSURE_MEASURES:
        columns = np.concatenate([_paired(sums, name, items) for sums in (own, chat)], axis=1)
        if columns[:, 2].sum() > ROUNDING * columns[:, 3].sum():
            found[name] = interval(_quotient_of_means, columns, settings.bootstrap, settings.seed)
    return found


def _paired(sums: Sums, measure: str, items: list[str]) -> FloatMatrix:
    """(items, 2): sum of the measure and number of tokens; 0 where an item has none."""
    rows = dict(zip(sums.prompts(), np.column_stack([sums.of(measure), sums.num_tokens()]), strict=True))
    return np.stack([rows.get(item, np.zeros(2)) for item in items])


def _quotient_of_means(totals_R4: FloatMatrix) -> FloatVector:
    own_R, own_tokens_R, chat_R, chat_tokens_R = totals_R4.T
    chat_mean_R = np.where(chat_R > 0, chat_R / chat_tokens_R, np.nan)  # a resample without any tells nothing
    return (own_R / own_tokens_R) / chat_mean_R
