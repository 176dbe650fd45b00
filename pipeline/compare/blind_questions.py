"""What is asked: the pairs in a random order, each with its sides drawn, and the instructions that went with them."""

import random
from dataclasses import dataclass

from pipeline.console import say
from pipeline.data import shipped
from pipeline.errors import UserError
from pipeline.eval_sets import chat_set
from pipeline.run.files import file_hash
from pipeline.run.rundir import RunDir
from pipeline.run.votes import AnswerPair, Arm, pairs


@dataclass(frozen=True)
class BlindQuestion:
    """A pair, and which arm is shown as A; the same side in all turns of an item, where earlier ones are in view."""

    pair: AnswerPair
    a: Arm
    b: Arm
    instruction: str | None  # the system message that both arms were given


def draw(run_dir: RunDir, seed: int) -> list[BlindQuestion]:
    """All pairs that differ: items in an order drawn from the seed, so that whoever stops early saw a fair sample.

    Raises UserError where evaluate has not finished, or there is nothing to choose between.
    """
    shown = pairs(run_dir)
    if all(pair.is_identical() for pair in shown):
        found = "teacher and student gave the same answers" if shown else "no answers of both teacher and student"
        raise UserError(f"{run_dir.path}: {found}; evaluate needs a chat set on which they differ (evaluate.chat_set)")
    order = list(dict.fromkeys(pair.item_id for pair in shown))
    random.Random(seed).shuffle(order)  # noqa: S311  the same every time
    place = {item_id: number for number, item_id in enumerate(order)}
    instructions = _instructions(run_dir)
    questions = []
    for pair in sorted(shown, key=lambda pair: (place[pair.item_id], pair.turn)):
        if not pair.is_identical():
            a, b = _sides(pair.item_id, seed)
            questions.append(BlindQuestion(pair, a, b, instructions.get(pair.item_id)))
    return questions


def _sides(item_id: str, seed: int) -> tuple[Arm, Arm]:
    is_student_first = random.Random(f"{seed}:{item_id}").random() < 0.5  # noqa: S311  the same every time
    return ("student", "teacher") if is_student_first else ("teacher", "student")


def _instructions(run_dir: RunDir) -> dict[str, str]:
    """System messages by item, from the chat set that was asked; none, and a word of it, where it is not here."""
    made = run_dir.fingerprint("evaluate")
    path = shipped.find(made.get("evaluate.chat_set") or "")
    if not path.is_file() or file_hash(path) != made.get("evaluate.chat_set.hash"):
        said = made.get("evaluate.chat_set") or "the chat set"
        say(f"{said} is no longer here as it was asked: instructions that went with some questions can't be shown")
        return {}
    return {item.id: item.system for item in chat_set.load(path, None) if item.system}
