"""Figures of fidelity: each arm's sections of scores.json, made of the sums by prompt."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config import Evaluate
from pipeline.console import say
from pipeline.evaluate import fidelity
from pipeline.evaluate.fidelity import ALL, Bucket, Sums, calibration
from pipeline.models.forward.forced import ForcedResponse
from pipeline.run import metrics
from pipeline.statistics import Figure
from pipeline.statistics.per_prompt import FloatMatrix, intervals

TEACHERS, CHAT, OWN = "fidelity", "fidelity_chat", "fidelity_own"
BREAKDOWN_MEASURES = (metrics.FORWARD_KL_NATS, metrics.TOP1_AGREEMENT_FRAC, metrics.ACCEPTANCE_FRAC)
BREAKDOWN_RESAMPLES = 1000  # hundreds of intervals, which are looked at, not tested
EXPOSURE_MEASURES = (
    metrics.FORWARD_KL_NATS,
    metrics.REVERSE_KL_NATS,
    metrics.JS_DIVERGENCE_NATS,
    metrics.TOP1_AGREEMENT_FRAC,
    metrics.ACCEPTANCE_FRAC,
)
ROUNDING = 1e-6  # of a mean over tokens, in float32

ROWS = pa.schema(
    [
        ("section", pa.string()),
        ("arm", pa.string()),
        ("cluster", pa.string()),
        ("num_tokens", pa.int64()),
        *((measure, pa.float64()) for measure in fidelity.MEASURES),
    ]
)

SumsBySection = dict[str, dict[str, Sums]]  # section → arm → sums


def measure_all(
    loaded: dict[str, Any],
    held_out: Iterable[ForcedResponse],
    answers: Mapping[str, Iterable[ForcedResponse]],
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
    names, num = fidelity.MEASURES, len(fidelity.MEASURES)
    columns_PC = np.column_stack([_columns(sums, names), sums.bins.sums()])

    def of_totals(totals_RC: FloatMatrix) -> FloatMatrix:
        means_RM = totals_RC[:, :num] / totals_RC[:, num : num + 1]
        return np.column_stack([means_RM, calibration.ece_frac(totals_RC[:, num + 1 :])])

    found = intervals(of_totals, columns_PC, settings.bootstrap, settings.seed)
    return dict(zip([*names, metrics.ECE_FRAC], found, strict=True))


def breakdowns(sums: Sums, settings: Evaluate) -> dict[str, dict[str, dict[str, Figure]]]:
    """dimension → bucket → measure → figure; `num` is how many prompts have tokens in the bucket."""
    resamples = min(settings.bootstrap, BREAKDOWN_RESAMPLES)
    found: dict[str, dict[str, dict[str, Figure]]] = {}
    for bucket in sums.buckets():
        dimension, name = bucket
        columns_PC = _columns(sums, BREAKDOWN_MEASURES, bucket)
        of_bucket = intervals(lambda totals: totals[:, :-1] / totals[:, -1:], columns_PC, resamples, settings.seed)
        found.setdefault(dimension, {})[name] = dict(zip(BREAKDOWN_MEASURES, of_bucket, strict=True))
    return found


def own_over_chat(own: Sums, chat: Sums, settings: Evaluate) -> dict[str, Figure]:
    """Exposure bias: an arm's measures a token on its own answers ÷ those on the teacher's, paired by item.

    1 where the arm follows its teacher as well in what it wrote itself. After the error accumulation of Arora et al.
    2022 (arXiv:2204.01171), with the teacher in the place of the data, and token by token. Left out: measures whose
    mean on the teacher's answers is 0 but for rounding, of which nothing is a multiple.
    """
    tokens = chat.num_tokens().sum()
    names = tuple(name for name in EXPOSURE_MEASURES if chat.of(name).sum() > ROUNDING * tokens)
    items = sorted({*own.prompts(), *chat.prompts()})
    columns_PC = np.concatenate([_in_order(sums, names, items) for sums in (own, chat)], axis=1)

    def of_totals(totals_RC: FloatMatrix) -> FloatMatrix:
        own_RC, chat_RC = np.split(totals_RC, 2, axis=1)
        means_own_RM, means_chat_RM = (of[:, :-1] / of[:, -1:] for of in (own_RC, chat_RC))
        return means_own_RM / np.where(means_chat_RM > 0, means_chat_RM, np.nan)  # of a resample without any: none

    return dict(zip(names, intervals(of_totals, columns_PC, settings.bootstrap, settings.seed), strict=True))


def rows(sums: SumsBySection) -> pa.Table:
    """fidelity.parquet: of each section, arm and prompt the measures' means over `num_tokens` answer tokens.

    `cluster` is the conversation_id of a held-out prompt, the item_id of a question of the chat set. The tokens'
    weighted mean over an arm's rows is its figure in scores.json; the calibration error needs the tokens themselves.
    """
    found: dict[str, list[Any]] = {name: [] for name in ROWS.names}
    for section, arms in sums.items():
        for arm, of in arms.items():
            num_tokens = of.num_tokens()
            found["section"] += [section] * len(num_tokens)
            found["arm"] += [arm] * len(num_tokens)
            found["cluster"] += of.prompts()
            found["num_tokens"] += num_tokens.astype(int).tolist()
            for measure in fidelity.MEASURES:
                found[measure] += (of.of(measure) / num_tokens).tolist()
    return pa.table(found, schema=ROWS)


def _columns(sums: Sums, names: tuple[str, ...], bucket: Bucket = ALL) -> FloatMatrix:
    """(P, M + 1): the measures' sums by prompt, and the tokens."""
    return np.column_stack([*(sums.of(name, bucket) for name in names), sums.num_tokens(bucket)])


def _in_order(sums: Sums, names: tuple[str, ...], items: list[str]) -> FloatMatrix:
    """`_columns` of these items; 0 where one has no tokens."""
    rows = dict(zip(sums.prompts(), _columns(sums, names), strict=True))
    return np.stack([rows.get(item, np.zeros(len(names) + 1)) for item in items])
