"""A small training, to be started by `accelerate launch` as well as alone: `in_processes.py FOLDER SETTINGS`."""

import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from support.listed import Listed, captured, settings, tiny
from support.numbered_words import word_tokenizer

from pipeline.train.trainer import fit


def main() -> None:
    folder, changes = Path(sys.argv[1]), json.loads(sys.argv[2])
    teacher = tiny().eval()
    num_validation = changes.pop("validation", 0)
    validation = captured(teacher, num_validation, seed=1) if num_validation else Listed([])
    PartialState(cpu=True)
    fitted = fit(
        settings(**changes),
        "student",
        tiny(1),
        word_tokenizer(),
        captured(teacher, 24),
        validation,
        folder,
        folder / "checkpoints",
        teacher if changes.get("targets") == "live" else None,
    )
    if PartialState().is_main_process:
        torch.save(fitted["state_dict"] or fitted["model"].state_dict(), folder / "weights.pt")


if __name__ == "__main__":
    main()
