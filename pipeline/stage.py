"""One stage in the process that cli.py starts for it: `python -m pipeline.stage STAGE`, its order on standard input."""

import importlib
import json
import sys

from pydantic import BaseModel

from pipeline.config import Config
from pipeline.console import user_errors
from pipeline.rundir import Fresh, RunDir, user_disk_errors


class Order(BaseModel):
    """What a stage is started with."""

    config: Config
    fresh: Fresh = "no"
    accept: tuple[str, ...] = ()


def main() -> None:
    """Run the stage on the run that its config names."""
    with user_errors():
        order = Order.model_validate(json.loads(sys.stdin.buffer.read()))
        target = RunDir(order.config.run_path, order.fresh, order.accept)
        with target.lock(), user_disk_errors(target.path):
            importlib.import_module(f"pipeline.{sys.argv[1]}").run(order.config, target)


if __name__ == "__main__":
    main()
