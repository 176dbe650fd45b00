"""The shipped configs: each is valid, says how it is run, and refers to files that are there."""

import re
from pathlib import Path

import pytest

import pipeline
from pipeline import config as config_module
from pipeline.config import Config
from pipeline.inference.engine import OURS

ROOT = Path(pipeline.__file__).parent.parent
SHIPPED = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.fixture(params=SHIPPED, ids=lambda path: path.name)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def config(path: Path) -> Config:
    return config_module.load(path)


def test_there_is_a_quickstart() -> None:
    assert "quickstart.yaml" in [path.name for path in SHIPPED]


def test_its_first_line_is_the_command_that_runs_it(path: Path) -> None:
    assert path.read_text(encoding="utf-8").splitlines()[0] == f"# retort run configs/{path.name}"


def test_its_header_says_what_it_is_for(path: Path) -> None:
    header = path.read_text(encoding="utf-8").split("\nname:")[0].splitlines()
    assert all(line.startswith("#") for line in header)
    assert any(len(line.split()) > 5 for line in header[1:])


def test_it_is_valid_and_named_as_its_file(path: Path, config: Config) -> None:
    assert config.name == path.stem


def test_it_goes_through_a_dump_unchanged(config: Config, tmp_path: Path) -> None:
    (tmp_path / "dumped.yaml").write_text(config_module.dump(config), encoding="utf-8")
    assert config_module.load(tmp_path / "dumped.yaml") == config


def test_the_files_it_reads_are_shipped(config: Config) -> None:
    names = [source.path for source in config.prepare.sources] + [source.template for source in config.prepare.sources]
    names += [config.evaluate.chat_set, config.evaluate.tasks.path, config.evaluate.risks.path]
    assert [name for name in names if name and not (ROOT / name).is_file()] == []


def test_its_layers_ascend(config: Config) -> None:
    if config.student.keep_layers is not None:
        assert len(config_module.layer_indices(config.student.keep_layers)) > 1


def test_it_sets_nothing_of_the_engine_that_retort_sets_itself(config: Config) -> None:
    assert set(config.teacher.engine).isdisjoint(OURS)


def test_the_student_is_another_model_or_a_pruned_teacher(config: Config) -> None:
    if config.student.model in (None, config.teacher.model):
        assert config.student.keep_layers


def test_its_answers_fit_the_training_length_with_a_prompt(config: Config) -> None:
    assert config.generate.max_tokens < config.train.max_length


@pytest.mark.parametrize(
    "document", ["README.md", "pipeline/cli/app.py", "pipeline/cli/verbs.py", "pipeline/config/__init__.py"]
)
def test_every_config_that_is_spoken_of_is_shipped(document: str) -> None:
    spoken_of = set(re.findall(r"configs/[\w.-]+\.yaml", (ROOT / document).read_text(encoding="utf-8")))
    assert spoken_of - {f"configs/{path.name}" for path in SHIPPED} == set()
