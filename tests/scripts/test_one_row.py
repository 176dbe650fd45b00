"""The example that a newcomer reads first: it runs, and every step says what it made."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_one_row_goes_from_text_to_a_gradient() -> None:
    command = [sys.executable, "scripts/examples/one_row.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^(\d+)\. ", done.stdout, re.MULTILINE) == [str(n) for n in range(1, 11)]
    before, after = map(float, re.search(r"KL ([\d.]+) → ([\d.]+)\.", done.stdout).groups())  # type: ignore[union-attr]
    assert 0 < after < before
