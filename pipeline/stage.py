"""One stage in the process that cli.py starts for it: `python -m pipeline.stage STAGE`, its order on standard input.

Training in several processes: this one hands the order on through the environment, and starts them with accelerate.
"""

import importlib
import json
import os
import subprocess
import sys

from pydantic import BaseModel

from pipeline import hardware
from pipeline.config import Config
from pipeline.console import say, user_errors
from pipeline.errors import UserError
from pipeline.rundir import Fresh, RunDir, user_disk_errors

HANDED_ON = "RETORT_ORDER"


class Order(BaseModel):
    """What a stage is started with."""

    config: Config
    fresh: Fresh = "no"
    accept: tuple[str, ...] = ()


def main() -> None:
    """Run the stage on the run that its config names."""
    stage, handed_on = sys.argv[1], os.environ.get(HANDED_ON)
    with user_errors():
        order = Order.model_validate(json.loads(handed_on or sys.stdin.buffer.read()))
        target = RunDir(order.config.run_path, order.fresh, order.accept)
        if handed_on:
            hardware.die_with_parent()
            with user_disk_errors(target.path):
                importlib.import_module(f"pipeline.{stage}").run(order.config, target)
            return
        with target.lock(), user_disk_errors(target.path):
            if stage == "train" and order.config.train.launch:
                _launch(stage, order)
            else:
                importlib.import_module(f"pipeline.{stage}").run(order.config, target)


def _launch(stage: str, order: Order) -> None:
    """`accelerate launch` of this stage; ends with the exit code of the process that failed first."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    module = ["--module", "pipeline.stage", stage]
    try:
        arguments = launch_command_parser().parse_args([*order.config.train.launch, *module])
    except SystemExit:  # argparse has said what is wrong
        raise UserError("train.launch: not what `accelerate launch` takes; see accelerate launch --help") from None
    os.environ[HANDED_ON] = order.model_dump_json()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, hardware.num_cores() // (arguments.num_processes or 1))))
    try:
        launch_command(arguments)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        say(f"{stage}: process {failure.local_rank} of those that accelerate started failed first")
        raise SystemExit(max(1, failure.exitcode)) from None
    except subprocess.CalledProcessError as error:  # a single one
        raise SystemExit(max(1, error.returncode)) from None


if __name__ == "__main__":
    main()
