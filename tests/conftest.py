"""Fixtures of the tiers that use the real demo teacher."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def demo_teacher() -> Path:
    """The bundled teacher's folder, unpacked on first use."""
    from pipeline.models import demo_path

    return demo_path()


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
