"""The files that come with Retort: prompts, templates and configs. pipeline/data holds them, in a clone as links."""

from pathlib import Path

DATA = Path(__file__).parent
FOLDERS = ("prompts", "configs")  # what a config or a command may name; DATA's other files are nobody's to name


def find(path: str | Path) -> Path:
    """Where a file is that somebody named: from where they stand, or else the shipped one of that name, such as
    prompts/tasks.jsonl. The path itself if there is none."""
    here = Path(path)
    shipped = DATA / here
    is_named_so = len(here.parts) > 1 and here.parts[0] in FOLDERS and ".." not in here.parts
    return shipped if is_named_so and not here.exists() and shipped.is_file() else here
