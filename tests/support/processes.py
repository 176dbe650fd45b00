"""Whether processes have ended."""

import time

import psutil


def survivors(processes: list[psutil.Process], timeout: float) -> list[psutil.Process]:
    """Those of them that still run after so many seconds; an orphan that nobody has waited for has ended, too."""
    deadline = time.monotonic() + timeout
    while (alive := [process for process in processes if _runs(process)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return alive


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
