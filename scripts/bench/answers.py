"""Answers to train on, for the benches: a run's, or those of a small run that is made on the spot, with real vLLM."""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.run.rundir import RunDir

ROOT = Path(__file__).parent.parent.parent


def options(text: str | None) -> argparse.ArgumentParser:
    """The options that benches of training have in common; `text` is the bench's docstring."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a rough answer in a minute or two")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--run", type=Path, help="a run whose filter has finished; else one is made in runs/")
    return parser


def run_dir(chosen: Path | None, name: str, *overrides: str) -> RunDir:
    """The run that was named; else the quickstart's prompts answered with these settings, once, in runs/<name>."""
    if chosen is not None:
        return RunDir(chosen)
    for stage in ("prepare", "generate", "filter"):
        command = [sys.executable, "-m", "pipeline", stage, "configs/quickstart.yaml", f"name={name}", *overrides]
        subprocess.run(command, cwd=ROOT, check=True)
    return RunDir(ROOT / "runs" / name)


def untrained() -> Any:
    """The quickstart's student before it learns: the demo teacher with some of its layers."""
    from pipeline import config
    from pipeline.models import lookup
    from pipeline.train import student

    kept = config.load(ROOT / "configs/quickstart.yaml").student.keep_layers
    assert kept is not None
    return student.keep_layers(student.load(lookup.find("demo").path), config.layer_indices(kept))


def figure(values: list[float], unit: str = "ratio", interval: npt.NDArray[np.float64] | None = None) -> dict[str, Any]:
    """One figure as benches write it: median and spread; the 95 % interval where it was resampled."""
    spread = {"median": statistics.median(values), "low": min(values), "high": max(values), "num": len(values)}
    if interval is not None:
        spread["interval_95"] = np.quantile(interval, [0.025, 0.975]).tolist()
    return {**spread, "unit": unit}


def show(figures: dict[str, dict[str, Any]], path: Path | None) -> None:
    """Print the figures, and write them where asked."""
    for name, value in figures.items():
        interval = "95 %: {:.4g}–{:.4g}".format(*value["interval_95"]) if "interval_95" in value else ""
        print(
            f"{name:>34}  {value['median']:.4g}  ({value['low']:.4g}–{value['high']:.4g}, {value['num']})  {interval}"
        )
    if path:
        path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
