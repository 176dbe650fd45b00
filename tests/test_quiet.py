"""What libraries may say on the screen: their errors, and nothing else."""

import subprocess
import sys

import pytest
from tqdm import tqdm

from pipeline import quiet
from pipeline.machine import hardware

SPEAK = """
from pipeline import quiet
quiet.libraries()
import logging, sys, warnings
for name in ("bitsandbytes.backends.cpu.ops", "torch._library.triton", "accelerate.big_modeling"):
    logging.getLogger(name).warning("advice")
    logging.getLogger(name).error("fault of %s", name)
warnings.warn("advice")
import datasets
from datasets.utils.logging import get_logger
get_logger("datasets.load").warning("advice")
get_logger("datasets.load").error("fault of datasets")
assert datasets.utils.are_progress_bars_disabled()
"""


def test_libraries_say_their_errors_alone() -> None:
    done = subprocess.run([sys.executable, "-c", SPEAK], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert (done.stdout + done.stderr).splitlines() == [
        "fault of bitsandbytes.backends.cpu.ops",
        "fault of torch._library.triton",
        "fault of accelerate.big_modeling",
        "fault of datasets",
    ]


def test_the_users_own_settings_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONWARNINGS", "default")
    monkeypatch.delenv("DATASETS_VERBOSITY", raising=False)
    started_with = hardware.stage_environment()
    assert (started_with["PYTHONWARNINGS"], started_with["DATASETS_VERBOSITY"]) == ("default", "error")


def test_bars_that_no_setting_turns_off_are_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with quiet.bars():
        list(tqdm(range(3)))
    assert capsys.readouterr().err == ""
    list(tqdm(range(3)))
    assert "3/3" in capsys.readouterr().err
