"""The real engine that the tests of this folder share, and read only."""

from pathlib import Path

import pytest
from support.real_engine import ENGINE, K

from pipeline.inference.engine import Engine


@pytest.fixture(scope="session")
def engine(demo_teacher: Path) -> Engine:
    return Engine(str(demo_teacher), ENGINE, k=K)
