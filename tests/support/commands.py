"""The command as a user types it."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def retort(*arguments: str, timeout: float = 600, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command as a user types it, from the repository's root."""
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
