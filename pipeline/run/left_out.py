"""What prepare and filter leave out, in sentences: how much, why, and which setting keeps it.

Whoever needs what is missing says so by these: the stage that left it out, `retort run` before the next stage, and the
stage that finds nothing.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.console import counted
from pipeline.run.reasons import REASONS

LARGE_FRAC = 0.2  # of the rows or answers: a stage says so if it leaves out more
MIN_HELD_OUT = 20  # of fewer prompts an interval says little
NUM_REMEDIES = 3
MAX_ADVISED_FRAC = 0.5  # of the prompts to be held out

# Of each reason of prepare: what is left out, and what to do about it.
PROMPTS = {
    "duplicates": ("exact copies of earlier prompts", "each prompt is taken once"),
    "near_duplicates": (
        "near duplicates of earlier prompts",
        "prepare/near_duplicates.jsonl lists them, prepare.near_duplicates=null keeps them",
    ),
    "contaminated": (
        "repetitions of evaluation items",
        "prepare/contamination.jsonl lists them, prepare.decontaminate=[] keeps them",
    ),
    "bad_rows": ("rows without a usable prompt", "prepare.bad_rows=error stops at the first and says why"),
    "personal": ("prompts with personal data", "privacy.prompts=redact keeps them without it"),
    "unsafe": ("prompts with a safety label", "safety.max_prompt_score=null keeps them"),
}
# What keeps the answers that a rule drops, where that is more than a rule turned off.
REMEDIES = {
    "empty": "the teacher says nothing; check its chat template, and if reasoning fills generate.max_tokens",
    "truncated": "raise generate.max_tokens, or filter.drop_truncated=false keeps them",
    "contaminated": "filter/contamination.jsonl lists the items; to keep them, remove their sets from decontaminate",
    "pii": "privacy.answers=mask keeps them",
    "unsafe": "safety.max_answer_score=null keeps them",
}


def of_sources(manifest: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each source and reason by which prepare leaves out more than LARGE_FRAC of the source's rows."""
    read: dict[str, int] = {}
    for of in (*manifest["licences"]["sources"], *manifest["left_out"]):
        read[of["source"]] = read.get(of["source"], 0) + of["prompts"]
    for of in manifest["left_out"]:
        num, source = of["prompts"], of["source"]
        if num > LARGE_FRAC * read[source]:
            what, remedy = PROMPTS[of["reason"]]
            yield (
                f"{num} of the {counted(read[source], 'row')} of {source} ({num / read[source]:.0%}) are left out,"
                f" as {what}: {remedy}"
            )


def of_held_out_prompts(manifest: Mapping[str, Any]) -> str | None:
    """What is said where prepare holds out fewer than MIN_HELD_OUT prompts; None where they are enough.

    `manifest` is prepare's; one of an earlier version does not know what was left out.
    """
    num, held_out = manifest["counts"]["prompts"], manifest["counts"]["held_out"]
    if held_out >= MIN_HELD_OUT:
        return None
    lost, frac = manifest.get("held_out_left_out", {}), manifest["fingerprint"].get("prepare.held_out_frac")
    told = f"{held_out or 'none'} of its {counted(num, 'prompt')} {'are' if held_out > 1 else 'is'} held out"
    told += f", and intervals need about {MIN_HELD_OUT}"
    if lost:
        listed = (f"{n} as {PROMPTS[why][0]} ({PROMPTS[why][1]})" for why, n in _most(lost))
        told += f"; prepare left out {'; '.join(listed)}"
    if held_out + sum(lost.values()) < MIN_HELD_OUT:
        told += f"; {_more_held_out(num + sum(lost.values()), frac)}"
    return told


def of_held_out_answers(manifest: Mapping[str, Any]) -> str | None:
    """What is said where filter keeps no held-out answer, or too few of enough; None else. `manifest` is filter's."""
    kept, held_out = manifest["counts"]["kept"] - manifest["counts"]["kept_train"], manifest.get("held_out")
    if kept >= MIN_HELD_OUT or (kept and held_out is None):
        return None
    if held_out is None:  # of an earlier version
        return "no held-out answer was kept; `retort report` shows what each rule drops"
    if not held_out["responses"]:
        return (
            "no held-out answer was kept, because no prompt was held out; raise prepare.held_out_frac, or give"
            " more prompts"
        )
    reasons, of = held_out["dropped"], f"of {counted(held_out['responses'], 'held-out answer')}"
    if not kept:
        return f"none {of} was kept ({dropped(reasons)}); {remedies(reasons)}"
    if sum(reasons.values()) <= LARGE_FRAC * held_out["responses"]:
        return None
    are = "are" if kept > 1 else "is"
    return f"{kept} {of} {are} kept, and intervals need about {MIN_HELD_OUT} ({dropped(reasons)}); {remedies(reasons)}"


def of_rule(reason: str, num: int, num_all: int, example: str, run: str) -> str:
    """What is said of a rule that drops many answers: how many, one of them, how to see them and how to keep them."""
    return (
        f"{reason} drops {num} of {counted(num_all, 'answer')} ({num / num_all:.0%}), such as {example}; to read some:"
        f" retort sample {run} --reason {reason}; {remedy(reason)}"
    )


def dropped(reasons: Mapping[str, int]) -> str:
    """`dropped: truncated 56, echo 1`: the commonest first."""
    return "dropped: " + ", ".join(f"{reason} {num}" for reason, num in _most(reasons))


def remedies(reasons: Mapping[str, int]) -> str:
    """What keeps the answers that the commonest reasons drop."""
    return "; ".join(f"{reason}: {remedy(reason)}" for reason, _ in _most(reasons)[:NUM_REMEDIES])


def remedy(reason: str) -> str:
    """What to do about the answers that a rule drops."""
    if reason in REMEDIES:
        return REMEDIES[reason]
    setting = REASONS[reason].setting or ""
    return f"filter.{setting}={'false' if setting.startswith('drop_') else 'null'} keeps them"


def _more_held_out(num: int, frac: float | None) -> str:
    """How so many prompts come to MIN_HELD_OUT held-out ones."""
    wanted = math.ceil(100 * MIN_HELD_OUT / max(num, 1)) / 100
    if frac is None or frac >= wanted:
        return "give more prompts, or raise prepare.held_out_frac"
    if wanted <= MAX_ADVISED_FRAC:
        return f"raise prepare.held_out_frac from {frac:g} to {wanted:g}, or give more prompts"
    usual = frac or 0.1
    return f"give more prompts, about {math.ceil(MIN_HELD_OUT / usual)} at prepare.held_out_frac={usual:g}"


def _most(reasons: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(((reason, num) for reason, num in reasons.items() if num), key=lambda each: -each[1])
