"""Fixtures shared by the tests of whole runs: tiny digits, a tiny model, one finished run."""

import functools
import importlib
import sys
import urllib.error
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from typer.testing import CliRunner

from stn_train import cli_model, cli_train, data, mnist
from stn_train.cli_table import run_table
from stn_train.config import Config
from stn_train.config_file import Source, check
from stn_train.data import Splits, load_splits
from stn_train.run_directory import RunDirectory
from stn_train.trainer import TrainResult, train

CPU = torch.device("cpu")
ROOT = Path(__file__).parent.parent

TINY: dict[str, Any] = {
    "distortion": "R",
    "backbone": "FCN",
    "data": {
        "source": "embedded",
        "training_digits": 600,
        "validation": 100,
        "test_digits": 200,
    },
    "model": {"hidden": 32, "localisation_hidden": 8},
    "train": {"epochs": 2, "batch_size": 50, "learning_rate": 0.01, "log_every": 5},
    "evaluate": {"draws": 2},
}
"""A run of 20 steps, well under a second."""


def tiny_config(**changes: Any) -> Config:
    """TINY with some settings changed; a section is merged, not replaced."""
    merged = {
        key: {**TINY.get(key, {}), **value} if isinstance(value, dict) else value
        for key, value in changes.items()
    }
    return check({**TINY, **merged}, Source("tiny"))


@pytest.fixture(scope="session")
def tiny():
    """The config of a tiny run, as a function of what differs."""
    return tiny_config


@pytest.fixture(scope="session", autouse=True)
def _font_digits_are_rendered_once():
    """Every command renders 10,000 digits; whether they are right, test_font_digits tells."""
    with pytest.MonkeyPatch.context() as patch:
        rendered_once = functools.cache(data.render_font_digits)
        patch.setattr(data, "render_font_digits", rendered_once)
        yield


@pytest.fixture(scope="session")
def splits() -> Splits:
    """500 training, 100 validation and 200 test digits."""
    return load_splits(tiny_config().data)


class Finished(NamedTuple):
    """A run that `train` has finished."""

    config: Config
    run: RunDirectory
    result: TrainResult


@pytest.fixture
def trained(tmp_path, splits):
    """Train a config in a new run directory."""

    def trained(config: Config, name: str = "run", digits: Splits = splits) -> Finished:
        run = RunDirectory.claim(tmp_path / name)
        return Finished(config, run, train(config, digits, run, CPU))

    return trained


@pytest.fixture(scope="session")
def finished(tmp_path_factory, splits) -> Finished:
    """One finished run for all tests that only read it."""
    config = tiny_config()
    run = RunDirectory.claim(tmp_path_factory.mktemp("finished") / "tiny")
    return Finished(config, run, train(config, splits, run, CPU))


def load_script(name: str) -> Any:
    """A module of scripts/, which find each other as they do when one of them is run."""
    if str(ROOT / "scripts") not in sys.path:
        sys.path.append(str(ROOT / "scripts"))
    return importlib.import_module(name)


COMMANDS = {
    "stn-train": cli_train.run_train,
    "stn-eval": cli_model.run_eval,
    "stn-visualize": cli_model.run_visualize,
    "stn-export": cli_model.run_export,
    "stn-table": run_table,
}


@pytest.fixture
def command():
    """Run one of the commands in this process; an exception that escapes it is a traceback."""

    def command(name: str, *arguments: object) -> Any:
        result = CliRunner().invoke(COMMANDS[name], [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return command


@pytest.fixture
def nowhere(monkeypatch, tmp_path) -> Path:
    """An empty working directory on a machine without MNIST and without network."""

    def unreachable(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(mnist.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr(mnist, "fetch", unreachable)
    return tmp_path


@pytest.fixture(scope="session")
def real_mnist():
    """MNIST's training and test digits, if they are on this machine."""
    if mnist.find_raw() is None:
        pytest.skip(
            f"MNIST is not on this machine: name its folder in {mnist.ENVIRONMENT_VARIABLE}"
        )
    return mnist.load_mnist()


def of_cell(cell, seed):
    """What a result says of the run it is of."""
    return dict(zip(("distortion", "backbone", "transform"), cell, strict=True)) | {"seed": seed}
