"""The files that come with Retort: prompts, templates and configs. pipeline/data holds them, in a clone as links."""

from pathlib import Path

DATA = Path(__file__).parent / "data"


def find(path: str | Path) -> Path:
    """Where a file or folder is that somebody named: from where they stand, or else the shipped one of that name, such
    as prompts/tasks.jsonl. The path itself if there is none."""
    here = Path(path)
    shipped = DATA / here
    is_named_so = not here.is_absolute() and ".." not in here.parts and len(here.parts) > 1
    return shipped if is_named_so and not here.exists() and shipped.exists() else here
