"""Keeps off the screen what libraries say that is neither an error nor ours: advice, and progress bars of conversions.

Downloads keep their bars, which no line of ours replaces.
"""

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

ENVIRONMENT = {  # read by a library when it is imported, here or in a process that is started from here
    "PYTHONWARNINGS": "ignore",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TOKENIZERS_PARALLELISM": "false",  # else it warns of each fork
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "BITSANDBYTES_NOWELCOME": "1",
}
LOGGERS = (
    "accelerate",
    "bitsandbytes",  # kernels that it would like to download
    "peft",
    "torch._library.triton",  # a CPU has no Triton, which torch tells on every start
    "torchao",
    "trl",
)


def libraries() -> None:
    """Have libraries that are not imported yet say errors alone. The user's own settings win."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def bars() -> Iterator[None]:
    """Nothing is shown that is written to standard error meanwhile: for bars that no setting turns off.

    What goes wrong is raised as ever.
    """
    with redirect_stderr(io.StringIO()):
        yield
