"""A judge's grades of the answers that `selection.best_of` has to choose between.

Its verdicts stand beside the stages, not in filter's folder: filter decides anew with other settings, and pays for none
of them twice. Memory: what is asked of each of those answers.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import judge
from pipeline.config import Selection
from pipeline.console import say
from pipeline.errors import UserError
from pipeline.judge.ledger import Ledger
from pipeline.judge.questions import Asker, JudgedAnswer
from pipeline.run import artifacts

Row = dict[str, Any]
GRADES = artifacts.GRADES  # in the run's folder


def fingerprint(settings: Selection) -> Row:
    """What grades follow from; null where no judge is asked. Raises UserError where its template can't be used."""
    return {"filter.selection.judge": judge.fingerprint(settings.judge) if settings.best_by == "judge" else None}


def grades(
    settings: Selection, path: Path, answers: Iterable[tuple[Row, Row]], is_asked_N: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.float64], Row]:
    """`(grades_N, facts)`: a judge's grade of each answer that is asked about, 1-10, else NaN; and what it came to.

    `answers` are all N of the run, each with its prompt; `path` keeps the verdicts, and what stands there is not asked
    again. Raises UserError as `judge.ask` does, and where not one grade could be read.
    """
    asker, ledger = Asker(settings.judge), Ledger(path)
    asked = zip(answers, is_asked_N, strict=True)
    questions = {
        place: asker.single("teacher", _reply(answer, prompt))
        for place, ((answer, prompt), is_asked) in enumerate(asked)
        if is_asked
    }
    judge.ask(settings.judge, list(questions.values()), ledger, "generate.num_samples")
    grades_N = np.full(len(is_asked_N), np.nan)
    for place, question in questions.items():
        grade = ledger.choice(question)
        grades_N[place] = np.nan if grade is None else float(grade)
    invalid = len(questions) - int(np.isfinite(grades_N).sum())
    if questions and invalid == len(questions):
        place = settings.judge.place
        raise UserError(
            f"filter: none of {invalid} grades of the judge {settings.judge.model} could be read: see what it said in"
            f" {path}, then change {place}.model, max_tokens or request (a model that reasons needs more tokens), or"
            " choose without a judge: filter.selection.best_by=likelihood"
        )
    if invalid:
        say(
            f"filter: of {len(questions)} answers that the judge was to grade {invalid} have no grade that could be"
            f" read, and come after those that have one: see {path}"
        )
    facts = {"model": settings.judge.model, "answers": len(questions), "invalid": invalid}
    tokens = ledger.tokens_on(questions.values())
    cost = judge.cost_of(settings.judge, tokens)
    return grades_N, {**facts, "prompt_tokens": tokens.prompt, "completion_tokens": tokens.completion, "cost": cost}


def _reply(answer: Row, prompt: Row) -> JudgedAnswer:
    """An answer with all that was said before it; a tool's result is put to the assistant as a question is."""
    system: list[str] = []
    asked: list[str] = []
    history: list[tuple[str, str]] = []
    for message in prompt["messages"]:
        text = "\n".join(filter(None, (message["content"], message.get("tool_calls"))))
        if message["role"] == "assistant":
            history.append(("\n".join(asked), text))
            asked = []
        else:
            (system if message["role"] == "system" else asked).append(text)
    return JudgedAnswer(
        item_id=answer["response_id"],
        category=answer["category"] or "",
        turn=len(history),
        system="\n".join(system) or None,
        question="\n".join(asked),
        reference=None,
        history=tuple(history),
        answer=answer["text"],
        tools=prompt["tools"],
    )
