"""The weights of a model's folder as they lie on disk: whether all of them are there, and what tensors they hold.

Headers alone are read, and no torch is imported.
"""

import json
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import UserError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
AGAIN = "was its download interrupted? Fetch it again"


class Tensor(NamedTuple):
    """One tensor of a file: its type as safetensors names it (BF16, F32, I32, ...), and its shape."""

    dtype: str
    shape: tuple[int, ...]

    def numel(self) -> int:
        return prod(self.shape)


def weight_files(name: str, folder: Path) -> list[Path]:
    """The files that transformers loads: those of the index where there is one (a repository may hold copies).

    Raises UserError if the index is damaged.
    """
    index = folder / INDEX
    if index.is_file():
        return sorted({folder / file for file in _weight_map(name, index).values()})
    single = folder / SINGLE
    return [single] if single.is_file() else sorted(folder.glob("*.safetensors"))


def check(name: str, folder: Path) -> None:
    """Raises UserError if the folder holds no whole model: adapters, pickles, shards that are missing or cut short."""
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise UserError(
                f"model {name}: {folder} holds adapters (adapter_config.json), not a model; merge them into their base"
                " model (PEFT: merge_and_unload, then save_pretrained) and give that folder"
            )
        raise UserError(f"model {name}: {folder} has no config.json, so it is not a transformers model")
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"model {name}: {folder} has no .safetensors weights (pickled weights are not loaded)")
    index = folder / INDEX
    if not index.is_file() and not (folder / SINGLE).is_file():
        raise UserError(f"model {name}: {folder} has neither {SINGLE} nor {INDEX}; {AGAIN}")
    files = weight_files(name, folder)
    if missing := [path.name for path in files if not path.is_file()]:
        raise UserError(
            f"model {name}: {folder} lacks {len(missing)} of the {len(files)} weight files that {INDEX} names, such as"
            f" {missing[0]}; {AGAIN}"
        )
    held = {path.name: tensors(name, path) for path in files}
    if index.is_file():
        for tensor, file in _weight_map(name, index).items():
            if tensor not in held[file]:
                raise UserError(f"model {name}: {folder / file} lacks {tensor}, which {INDEX} says it holds; {AGAIN}")


def tensors(name: str, path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises UserError if it is damaged or cut short."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as opened:
            slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118 - no mapping
            return {key: Tensor(of.get_dtype(), tuple(of.get_shape())) for key, of in slices.items()}
    except (SafetensorError, OSError) as error:
        size = f"{path.stat().st_size:,} bytes" if path.is_file() else "no file"
        raise UserError(
            f"model {name}: {path} is damaged or cut short ({size}; {str(error).splitlines()[0][:120]}); {AGAIN}"
        ) from None


def _weight_map(name: str, index: Path) -> dict[str, str]:
    """By tensor, the name of its file."""
    try:
        found: Any = json.loads(index.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"model {name}: {index} is damaged: {str(error).splitlines()[0][:120]}; {AGAIN}") from None
    listed = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(listed, dict) or not listed or not all(isinstance(file, str) for file in listed.values()):
        raise UserError(f"model {name}: {index} has no weight_map that says which file holds which tensor; {AGAIN}")
    return listed
