"""What `retort init` writes: a config to start from, and prompts that show their format."""

import shutil
from pathlib import Path

from pipeline.data import shipped
from pipeline.errors import UserError

CONFIG = "retort.yaml"


def write(folder: Path) -> list[Path]:
    """Copy the files of pipeline/data/start into a folder, made if need be. Returns the copies.

    Raises UserError, before anything is written, if one of them is there already or the folder can't be written to.
    """
    originals = sorted((shipped.DATA / "start").iterdir())
    copies = [folder / original.name for original in originals]
    if there := next((copy for copy in copies if copy.exists()), None):
        raise UserError(f"{there} is there already, and is left as it is; name another folder: retort init FOLDER")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for original, copy in zip(originals, copies, strict=True):
            shutil.copyfile(original, copy)
    except OSError as error:
        raise UserError(f"{folder}: can't be written to ({error.strerror}); name another folder") from None
    return copies
