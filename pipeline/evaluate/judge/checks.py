"""Whether the judge can be believed: it is shown what has a known verdict, beside every judgement."""

import random
import re
from bisect import bisect_right
from dataclasses import replace

from pipeline.console import counted
from pipeline.evaluate.judge.win_rates import Figures, Outcome, wilson
from pipeline.judge.questions import JudgedAnswer, Pair
from pipeline.run import metrics
from pipeline.statistics import Figure

MIN_SENTENCES = 3  # of an answer that is to be shuffled and halved
# Below or beyond these the judge should not be believed.
MIN_SOUND = 0.6  # low end of the interval: how often the sound answer is preferred to the one made worse
MAX_LEAN = 0.15  # how far the whole interval may be from a half, where both answers are the same
MAX_FLIPS = 0.5  # low end of the interval: verdicts that turn round with the order
MAX_INVALID = 0.1  # verdicts that could not be read
IDENTICAL, CUT, FOREIGN = "identical", "cut", "foreign"
MADE_WORSE = {
    CUT: "the same answer, its sentences shuffled and half of them gone",
    FOREIGN: "a longer answer to another question",
}


def planted(replies: list[JudgedAnswer], num_items: int, seed: int) -> list[Pair]:
    """Pairs with a known verdict, made of the teacher's answers to first turns: at most `num_items` of each kind.

    The same answer twice; a sound answer beside itself, cut and shuffled; and beside the next longer answer of another
    item, so that a judge that goes by length is wrong.
    """
    sound = sorted((r for r in replies if r.turn == 0 and r.answer), key=lambda r: r.item_id)
    random.Random(seed).shuffle(sound)  # noqa: S311 - no secret
    same = [Pair(IDENTICAL, reply, reply) for reply in sound[:num_items]]
    halves = [(reply, _cut(reply, seed)) for reply in sound]
    cut = [Pair(CUT, reply, replace(reply, answer=half)) for reply, half in halves if half]
    by_length = sorted(sound, key=lambda r: len(r.answer))
    lengths = [len(reply.answer) for reply in by_length]
    longer = {reply.item_id: by_length[bisect_right(lengths, len(reply.answer)) :] for reply in sound}
    foreign = [
        Pair(FOREIGN, reply, replace(reply, answer=longer[reply.item_id][0].answer))
        for reply in sound
        if longer[reply.item_id]
    ]
    return same + cut[:num_items] + foreign[:num_items]


def figures(outcomes: dict[str, list[Outcome]]) -> Figures:
    """Of each kind of planted pairs: how it went, with Wilson's interval over items."""
    found: Figures = {}
    first = [outcome.scores()[0] for outcome in outcomes.get(IDENTICAL, []) if outcome.is_valid]
    if first:
        found[metrics.IDENTICAL_FIRST_PLACE_SCORE] = wilson(sum(first), len(first))
    for name in MADE_WORSE:
        scores = [outcome.score() for outcome in outcomes.get(name, []) if outcome.is_valid]
        if scores:
            found[f"sound_over_{name}_frac"] = wilson(sum(scores), len(scores))
    verdicts = [choice for each in outcomes.values() for outcome in each for choice in outcome.choices]
    if verdicts:
        found[metrics.INVALID_FRAC] = wilson(sum(choice is None for choice in verdicts), len(verdicts))
    return found


def doubts(checks: Figures, compared: Figures) -> list[str]:
    """Why the judge should not be believed, each with figure, interval and threshold; none: it passed."""
    found = []
    for name, what in MADE_WORSE.items():
        sound = checks.get(f"sound_over_{name}_frac")
        if sound is None:
            found.append(f"whether it sees {what} was not checked: no answer was fit for it")
        elif sound["low"] is None or sound["low"] < MIN_SOUND:
            pairs = counted(sound["num"], "pair")
            found.append(
                f"beside {what}, it prefers the sound answer in {percent(sound)} of {pairs} (the"
                f" interval's low end must reach {MIN_SOUND:.0%})"
            )
    same = checks.get(metrics.IDENTICAL_FIRST_PLACE_SCORE)
    if same and _reach(same, 0.5) > MAX_LEAN:
        found.append(
            f"of two answers that are the same it gives {percent(same)} to the first (the interval must come within"
            f" {MAX_LEAN:.0%} of a half)"
        )
    flips = compared.get(metrics.POSITION_FLIP_FRAC)
    if flips and flips["low"] is not None and flips["low"] > MAX_FLIPS:
        found.append(
            f"in {percent(flips)} of pairs its verdict turns round with the order (the interval's low end may be"
            f" {MAX_FLIPS:.0%} at most)"
        )
    invalid = [figure for figure in (checks.get(metrics.INVALID_FRAC), compared.get(metrics.INVALID_FRAC)) if figure]
    worst = max(invalid, key=lambda figure: figure["value"], default=None)
    if worst and worst["value"] > MAX_INVALID:
        found.append(f"{percent(worst)} of its verdicts can't be read (at most {MAX_INVALID:.0%} may be so)")
    return found


def percent(figure: Figure) -> str:
    """`31% (25%–38%)`."""
    if figure["low"] is None or figure["high"] is None:
        return f"{figure['value']:.0%}"
    return f"{figure['value']:.0%} ({figure['low']:.0%}–{figure['high']:.0%})"


def _reach(figure: Figure, to: float) -> float:
    """How far a value is from the nearest end of an interval; 0 inside it."""
    if figure["low"] is None or figure["high"] is None:
        return 0.0
    return max(0.0, figure["low"] - to, to - figure["high"])


def _cut(reply: JudgedAnswer, seed: int) -> str:
    """Half of the sentences, in another order; empty where there are too few."""
    sentences = [part for part in re.split(r"(?<=[.!?])\s+|\n+", reply.answer) if part.strip()]
    if len(sentences) < MIN_SENTENCES:
        return ""
    kept = random.Random(f"{seed} {reply.item_id}").sample(range(len(sentences)), len(sentences) // 2)  # noqa: S311
    if kept == sorted(kept):
        kept.reverse()
    return " ".join(sentences[place] for place in kept)
