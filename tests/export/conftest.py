"""transformers 4 in an environment of its own, made once and kept in the cache."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

# no torch: configs and tokenizers load without it
PINNED = ("transformers==4.57.6", "tokenizers==0.22.2", "huggingface-hub==0.36.2", "jinja2==3.1.6")


@pytest.fixture(scope="session")
def python_with_transformers_4() -> Path:
    """The interpreter of an environment that has transformers 4."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "retort"
    target = cache / PINNED[0].replace("==", "-")
    if not target.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            made = Path(folder) / "made"
            subprocess.run([sys.executable, "-m", "venv", str(made)], check=True)
            install = [str(made / "bin" / "python"), "-m", "pip", "install", "--quiet", *PINNED]
            done = subprocess.run(install, capture_output=True, text=True, timeout=600, check=False)
            if done.returncode:
                unmade = pytest.fail if os.environ.get("CI") else pytest.skip
                unmade(f"transformers 4 can't be installed: {done.stderr[-300:]}")
            made.rename(target)
    return target / "bin" / "python"
