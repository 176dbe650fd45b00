"""What leaves a run is read by transformers 4 as by transformers 5: tokens, text, template and settings."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.read_by_transformers_4 import read
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.models import model_folder
from pipeline.models.lookup import Model

pytestmark = [pytest.mark.e2e, pytest.mark.ci, pytest.mark.timeout(900)]
# configs and tokenizers need no torch
PINNED = ("transformers==4.57.6", "tokenizers==0.22.2", "huggingface-hub==0.36.2", "jinja2==3.1.6")
SCRIPT = Path(__file__).parents[1] / "support/read_by_transformers_4.py"
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8, "pad_token_id": None}
SMALL |= {"num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": True, "eos_token_id": 1}
LLAMA_3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA_3 |= {"original_max_position_embeddings": 64}
GEMMA_3 = {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
# by tokenizer: the architecture of a student, and its rotary settings as the hub has them
STUDENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "demo": ("llama", {"rope_theta": 1e5}),
    "qwen3": ("qwen3", {"rope_theta": 1e6}),
    "gemma3": ("gemma3_text", GEMMA_3),
    "llama3_1": ("llama", {"rope_theta": 5e5, "rope_scaling": LLAMA_3}),
    "deepseek_v3": ("llama", {"rope_theta": 5e5}),
}


@pytest.fixture(scope="module")
def python_with_transformers_4() -> Path:
    """The interpreter of an environment that has transformers 4: made once, and kept in the cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "retort"
    target = cache / PINNED[0].replace("==", "-")
    if not target.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            made = Path(folder) / "made"
            subprocess.run([sys.executable, "-m", "venv", str(made)], check=True)
            install = [str(made / "bin" / "python"), "-m", "pip", "install", "--quiet", *PINNED]
            done = subprocess.run(install, capture_output=True, text=True, timeout=600, check=False)
            if done.returncode:
                unmade = pytest.fail if os.environ.get("CI") else pytest.skip
                unmade(f"transformers 4 can't be installed: {done.stderr[-300:]}")
            made.rename(target)
    return target / "bin" / "python"


def write(folder: Path, origin: Path, kind: str, settings: dict[str, Any]) -> None:
    words = Model("m", origin).tokenizer()
    config = AutoConfig.for_model(kind, **SMALL, vocab_size=len(words), **json.loads(json.dumps(settings)))
    model_folder.save(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16), words, folder, origin)


@pytest.fixture(scope="module")
def folders(
    tmp_path_factory: pytest.TempPathFactory, demo_teacher: Path, real_tokenizer: Callable[[str], Path]
) -> dict[str, Path]:
    """A student's folder by its tokenizer."""
    made = {name: tmp_path_factory.mktemp(name) for name in STUDENTS}
    for name, (kind, settings) in STUDENTS.items():
        write(made[name], demo_teacher if name == "demo" else real_tokenizer(name), kind, settings)
    return made


@pytest.fixture(scope="module")
def told(folders: dict[str, Path], python_with_transformers_4: Path) -> dict[str, dict[str, Any]]:
    """What transformers 4 makes of each."""
    command = [str(python_with_transformers_4), str(SCRIPT), *map(str, folders.values())]
    alone = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=alone | {"HF_HUB_OFFLINE": "1"}, check=False)
    assert done.returncode == 0, done.stderr
    of_folder = json.loads(done.stdout)
    return {name: of_folder[str(folder)] for name, folder in folders.items()}


@pytest.mark.parametrize("name", STUDENTS)
def test_both_read_the_same(folders: dict[str, Path], told: dict[str, dict[str, Any]], name: str) -> None:
    by_4, by_5 = dict(told[name]), json.loads(json.dumps(read(str(folders[name]))))
    by_4.pop("rotary")
    assert by_4 == by_5
    assert by_4["inputs"] == ["attention_mask", "input_ids"]
    assert by_4["dtype"] == "bfloat16"


@pytest.mark.parametrize("name", STUDENTS)
def test_the_rotary_base_is_the_students(told: dict[str, dict[str, Any]], name: str) -> None:
    wanted = STUDENTS[name][1]
    assert {key: told[name]["rotary"][key] for key in wanted} == wanted
