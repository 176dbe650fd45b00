"""A judge: a chat model that is asked how good answers are. What it may cost is told first, what it says is kept."""

from typing import Any

from pipeline import config
from pipeline.config import output_settings
from pipeline.console import progress, say
from pipeline.errors import UserError
from pipeline.judge.client import Client, estimated_tokens
from pipeline.judge.ledger import JudgeVerdict, Ledger, Tokens
from pipeline.judge.questions import Asker, JudgeRequest, template_hashes

MESSAGE_TOKENS = 8  # that a chat template puts around a message, about


def fingerprint(settings: config.Grader) -> dict[str, Any] | None:
    """The settings and templates that verdicts follow from; None without a judge. Raises UserError as `Asker` does."""
    if settings.url is None:
        return None
    Asker(settings)
    return {**output_settings(settings), "templates.hash": template_hashes(settings)}


def ask(settings: config.Grader, questions: list[JudgeRequest], ledger: Ledger, *fewer: str) -> None:
    """Ask what the ledger lacks; afterwards it has a verdict on each question. `fewer`: settings that lessen them.

    Raises UserError before the first call where it may be too dear, and while it is; and as `Client.ask` does.
    """
    missing = ledger.missing(questions, settings.retries + 1)
    _check_cost(settings, missing, len({question.key for question in questions}), ledger, fewer)
    if not missing:
        return
    with progress("verdicts") as bar:
        task = bar.add_task("judge", total=len(missing), note="")

        def take(verdict: JudgeVerdict) -> None:
            ledger.add(verdict)
            cost = cost_of(settings, ledger.tokens(settings.model))
            bar.update(task, advance=1, note=f"cost {cost:.2f}" if settings.price_in or settings.price_out else "")
            if cost > settings.max_cost:
                raise UserError(
                    f"{settings.place}: its verdicts have cost {cost:.2f}, above {settings.place}.max_cost="
                    f"{settings.max_cost:g}; raise it and run the same command again: they are kept"
                )

        Client(settings).ask(missing, ledger.has_answers(settings), take)
    if refused := ledger.num_refused(missing):
        say(
            f"{_stage(settings)}: {refused} questions were refused by the judge's server, and are invalid: see"
            f" {ledger.path}"
        )


def cost_of(settings: config.Grader, tokens: Tokens) -> float:
    """What so many tokens of this judge cost."""
    return (tokens.prompt * settings.price_in + tokens.completion * settings.price_out) / 1e6


def _check_cost(
    settings: config.Grader, missing: list[JudgeRequest], num_all: int, ledger: Ledger, fewer: tuple[str, ...]
) -> None:
    """Say what is to come; each reply counts at its longest, each verdict as read at once."""
    place, request = settings.place, settings.request
    longest = request.get("max_completion_tokens") or request.get("max_tokens") or settings.max_tokens
    tokens_in = sum(estimated_tokens(question.text) + MESSAGE_TOKENS for question in missing)
    tokens_out = longest * len(missing)
    already = cost_of(settings, ledger.tokens(settings.model))
    cost = already + cost_of(settings, Tokens(tokens_in, tokens_out))
    is_priced = settings.price_in or settings.price_out
    priced = f": at most {cost:.2f} in all" if is_priced else f"; its price is not set ({place}.price_in, price_out)"
    say(
        f"{_stage(settings)}: judge {settings.model}: {len(missing)} of {num_all} verdicts to come, about {tokens_in}"
        f" tokens in and at most {tokens_out} out{priced}" + (f", {already:.2f} of it spent" if already else "")
    )
    if missing and cost > settings.max_cost:
        raise UserError(
            f"{place}: {len(missing)} verdicts may cost {cost:.2f} in all, above {place}.max_cost="
            f"{settings.max_cost:g}; raise it, or ask less: {', '.join((*fewer, f'{place}.max_tokens'))}"
        )


def _stage(settings: config.Grader) -> str:
    return settings.place.partition(".")[0]
