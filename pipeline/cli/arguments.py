"""The arguments that several verbs of `retort` share, and what the help says of them."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

TWICE = "Give it twice to discard more than a minute's work without being asked."

ConfigPath = Annotated[
    Path,
    typer.Argument(metavar="CONFIG|RUN", help="YAML file, e.g. configs/quickstart.yaml; or the folder of a run."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Settings, e.g. train.learning_rate=1e-5. With a run's folder, they replace that run's settings; name= or"
        " runs_dir= starts another run with the same settings.",
    ),
]
RunPath = Annotated[
    Path,
    typer.Argument(metavar="RUN|CONFIG", help="Folder of a run, e.g. runs/quickstart; or the config it was made with."),
]
RunOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="After a config: overrides that tell which run it is, e.g. name=trial."
    ),
]
ShowRest = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]... [ID]",
        help="Id of a response or a prompt, or the start of one; default: the first answer that was kept.",
    ),
]
Runs = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN|CONFIG...",
        help="Folders of evaluated runs, or their configs, each followed by its KEY=VALUE.",
    ),
]
_FRESH: Any = partial(typer.Option, "--fresh", count=True, metavar="", show_default=False)
FreshStage = Annotated[int, _FRESH(help=f"Discard this stage and all stages after it, and do them again. {TWICE}")]
FreshRun = Annotated[
    int, _FRESH(help=f"Discard and redo each stage whose settings changed, and all stages after it. {TWICE}")
]
FreshCorpus = Annotated[
    int,
    typer.Option("--fresh", count=True, metavar="", show_default=False, help=f"Replace the existing corpus. {TWICE}"),
]
Accept = Annotated[
    list[str] | None,
    typer.Option(
        "--accept", metavar="KEY", help="Keep a stage's output although this setting changed; the manifest records it."
    ),
]
Explain = Annotated[
    str,
    typer.Option(
        "--explain",
        metavar="ID",
        help="Only say why an answer was kept or dropped. Id of a response or a prompt, or the start of one.",
    ),
]
