"""Ctrl-C while modules are imported. C extensions turn it into errors of their own, so the signal itself is noted."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

CODE = 130  # exit code after ctrl-C, by the shells' convention


@contextmanager
def quiet(line: str = "") -> Iterator[None]:
    """After ctrl-C in here the process says this line, or nothing, and ends with 130: never a traceback."""
    has_come = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal has_come
        has_come = True
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # a shell's background jobs ignore it
        signal.signal(signal.SIGINT, note)
    try:
        yield
    except SystemExit:
        raise
    except BaseException as error:
        if not has_come and not isinstance(error, KeyboardInterrupt):
            raise
        if line:
            sys.stderr.write(f"{line}\n")
        raise SystemExit(CODE) from None
    finally:
        if signal.getsignal(signal.SIGINT) is note:
            signal.signal(signal.SIGINT, before)
