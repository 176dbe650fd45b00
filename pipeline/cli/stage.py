"""One stage in the process that verbs.py starts for it (pipeline/cli/child.py), its order on standard input.

Training in several processes: this one hands the order on through the environment, and starts them with accelerate.
"""

import importlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from pipeline import quiet
from pipeline.cli import interrupt
from pipeline.config import Config
from pipeline.console import say, user_errors
from pipeline.errors import UnsureError, UserError
from pipeline.machine import hardware
from pipeline.run.files import first_line, user_disk_errors
from pipeline.run.rundir import Fresh, RunDir

HANDED_ON, NUM_PROCESSES = "RETORT_ORDER", "RETORT_PROCESSES"


UNSURE = 75  # exit code: nothing was done, and cli.py asks whether it may


class StageOrder(BaseModel):
    """What a stage is started with."""

    config: Config
    path: Path | None = None  # the run's folder; None: the config's
    fresh: Fresh = "no"
    is_sure: bool = False  # that more than a minute's work may be discarded
    can_ask: bool = False  # at a terminal
    accept: tuple[str, ...] = ()

    def run_dir(self, fresh: Fresh) -> RunDir:
        return RunDir(self.path or self.config.run_path, fresh, self.accept, self.is_sure)


def main() -> None:
    """Run the stage on the run that its order names."""
    quiet.libraries()
    stage, handed_on = sys.argv[1], os.environ.get(HANDED_ON)
    with user_errors():
        order = StageOrder.model_validate(json.loads(handed_on or sys.stdin.buffer.read()))
        try:
            _do(stage, order, handed_on is not None)
        except UnsureError as unsure:
            if not order.can_ask:
                raise
            say(unsure.what)
            raise SystemExit(UNSURE) from None


def _do(stage: str, order: StageOrder, is_handed_on: bool) -> None:
    target = order.run_dir(order.fresh)
    if is_handed_on:
        hardware.die_with_parent()
        _check_number(order)
        if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":  # --fresh has discarded, the first time
            target = order.run_dir("no")
        with user_disk_errors(target.path):
            _module(stage).run(order.config, target)
        return
    with target.lock(), user_disk_errors(target.path):
        if stage == "train" and order.config.train.launch:
            if order.fresh == "always":  # before there are processes that would wait for the one that refuses
                target.check_discard(stage)
            _launch(stage, order)
        else:
            _module(stage).run(order.config, target)


def _module(stage: str) -> Any:
    with interrupt.quiet():  # torch and vLLM take seconds, and are of C extensions
        return importlib.import_module(f"pipeline.{stage}")


def _launch(stage: str, order: StageOrder) -> None:
    """`accelerate launch` of this stage; ends with the exit code of the process that failed first."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    module = ["--module", "pipeline.cli.child", stage]
    try:
        arguments = launch_command_parser().parse_args([*order.config.train.launch, *module])
    except SystemExit:  # argparse has said what is wrong
        raise UserError("train.launch: not what `accelerate launch` takes; see accelerate launch --help") from None
    if (arguments.num_machines or 1) > 1:
        raise UserError("train.launch: several machines are not supported; a run is one machine's")
    os.environ |= {HANDED_ON: order.model_dump_json(), "PYTHONSAFEPATH": "1"}
    if (arguments.num_processes or 1) > 1:
        os.environ[NUM_PROCESSES] = str(arguments.num_processes)
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, hardware.num_cores() // arguments.num_processes)))
    if arguments.main_process_port is None:
        arguments.main_process_port = 0  # any that is free: another training may have the usual one
    for name in ("accelerate.commands.launch", "torch.distributed.elastic"):  # defaults taken, children killed
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        launch_command(arguments)
    except (ValueError, OSError, AssertionError, yaml.YAMLError) as error:
        raise UserError(f"train.launch: accelerate can't start: {first_line(error)}") from None
    except SignalException as error:
        raise SystemExit(128 + error.sigval) from None
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        if failure.exitcode == UNSURE:
            raise SystemExit(UNSURE) from None
        say(f"{stage}: process {failure.local_rank} of those that accelerate started failed first")
        raise SystemExit(max(1, failure.exitcode)) from None
    except subprocess.CalledProcessError as error:  # a single one
        raise SystemExit(max(1, error.returncode)) from None


def _check_number(order: StageOrder) -> None:
    started = os.environ.get("WORLD_SIZE", "1")
    wanted = os.environ.get(NUM_PROCESSES, started)
    if wanted != started:
        raise UserError(
            f"train.launch={list(order.config.train.launch)}: {wanted} processes were asked for, and accelerate started"
            f" {started}; put --multi_gpu in front (on a CPU too)"
        )
