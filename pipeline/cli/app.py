"""`retort` itself: what its help says, and how a mistake ends. The verbs are in verbs.py and run_verbs.py."""

import re
from typing import Any

import typer

from pipeline.cli import interrupt, run_verbs, verbs
from pipeline.console import user_errors
from pipeline.errors import UserError

THEIR_WORDS = {  # of pydantic, by which typer reads numbers
    r"Input should be a valid integer.*": "must be a whole number",
    r"Input should be greater than or equal to": "must be at least",
    r"Input should be less than or equal to": "must be at most",
}
_UsageError: Any = typer.BadParameter.__base__  # typer has no name for it

app = typer.Typer(
    help=(
        "Distil a large chat model into a small one: prepare → generate → filter → train → evaluate → export.\n\n"
        "Begin with `retort run configs/quickstart.yaml`. Settings are changed as `section.key=value` after the"
        " config; `retort check CONFIG` lists them all with their meaning. Each verb takes a config, or the folder of"
        " an existing run. RETORT_DEBUG=1 in the environment shows the traceback behind an error."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(verbs.app)
app.add_typer(run_verbs.app)


def main() -> None:
    """Entry point: a user's mistake is one line and exit code 2."""
    with user_errors():
        try:
            code = app(prog_name="retort", standalone_mode=False)
        except typer.Abort:
            raise KeyboardInterrupt from None  # what typer has made of ctrl-C
        except _UsageError.__base__ as error:
            if type(error).__name__ == "NoArgsIsHelpError":
                error.show()
                raise SystemExit(2) from None
            raise UserError(_misused(error)) from None
    if code == interrupt.CODE:
        raise KeyboardInterrupt  # typer has made an exit code of ctrl-C
    if code:
        raise SystemExit(code)


def _misused(error: Any) -> str:
    """Typer's error about the words of a command, as one line of ours."""
    message = error.format_message().rstrip(".")
    for theirs, ours in THEIR_WORDS.items():
        message = re.sub(theirs, ours, message)
    command = error.ctx.command_path if getattr(error, "ctx", None) else "retort"
    return f"{message}; see `{command} --help`"
