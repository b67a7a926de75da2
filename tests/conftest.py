"""Fixtures shared by the tests of whole runs: a tiny config, its images, one finished run."""

import functools
import importlib
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from typer.testing import CliRunner

from stn_train.cell import Cell
from stn_train.cli import export as cli_export
from stn_train.cli import model as cli_model
from stn_train.cli import table as cli_table
from stn_train.cli import train as cli_train
from stn_train.config import Config
from stn_train.config_errors import ConfigSource, check
from stn_train.data import mnist
from stn_train.data.images import ImageFormat
from stn_train.data.source import DATA_DIR_VARIABLE
from stn_train.data.sources import Splits, load_splits
from stn_train.runs.directory import Run, RunDirectory
from stn_train.trainer.loop import TrainResult, train

# For Ray, read when it is imported: all listeners on 127.0.0.1, workers as urgent as the tests.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_worker_niceness", "0")

# Several processes of pytest-xdist share the cores: a thread each, here and in what tests start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)

NEEDED = {"colocalisation": {"distortion": "T", "transform": "Attention"}}
"""What some names of registries need elsewhere in the config."""

CPU = torch.device("cpu")
ROOT = Path(__file__).parent.parent
MNIST = ImageFormat((1, 28, 28), mnist.CLASSES)

TINY: dict[str, Any] = {
    "distortion": "R",
    "backbone": {"FCN": {"hidden": 32, "localisation_hidden": 8}},
    "data": {"training_digits": 600, "validation": 100, "test_digits": 200},
    "train": {"epochs": 2, "batch_size": 50, "learning_rate": 0.01, "log_every": 5},
    "evaluate": {"draws": 2},
}
"""A run of 20 steps, well under a second."""


TINY_OVERRIDES = [
    "data.training_digits=600",
    "data.validation=100",
    "data.test_digits=200",
    "backbone.FCN.hidden=32",
    "backbone.FCN.localisation_hidden=8",
    "train.batch_size=50",
    "train.epochs=2",
    "evaluate.draws=2",
]
"""What makes a shipped config about as small, by ``--set``."""


def tiny_config(**changes: Any) -> Config:
    """TINY with some settings changed; a section is merged, not replaced."""
    merged = {
        key: {**TINY[key], **value}
        if isinstance(value, dict) and key in ("data", "train", "evaluate")
        else value
        for key, value in changes.items()
    }
    return check({**TINY, **merged}, ConfigSource("tiny"))


@pytest.fixture(scope="session")
def tiny():
    """The config of a tiny run, as a function of what differs."""
    return tiny_config


@pytest.fixture(scope="session", autouse=True)
def _mnist_is_unpacked_once():
    """Every command unpacks 55 MB; tests/data/test_mnist.py tells whether they are right."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mnist, "read_idx", functools.cache(mnist.read_idx))
        yield


@pytest.fixture(scope="session")
def splits() -> Splits:
    """500 training, 100 validation and 200 test digits."""
    return load_splits(tiny_config().data)


@pytest.fixture(scope="session")
def all_mnist():
    """MNIST's training and test digits."""
    return mnist.load_mnist()


class Finished(NamedTuple):
    """A run that `train` has finished."""

    config: Config
    run: RunDirectory
    result: TrainResult


AVAILABLE = {
    "cpu": True,
    "cuda": torch.cuda.is_available(),
    "mps": torch.backends.mps.is_available(),
}


@pytest.fixture(params=[name for name, there in AVAILABLE.items() if there])
def device(request) -> torch.device:
    """Every device of this machine in turn: on one with a GPU the test runs there too."""
    return torch.device(request.param)


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


def untrained(tmp_path, images: ImageFormat = MNIST, **choices) -> Run:
    """A run of a network with random weights, whose transformers do something."""
    config = Config.model_validate({"distortion": "R", "backbone": "FCN", **choices})
    torch.manual_seed(0)
    network = config.build_network(images)
    for transformer in network.transformers.values():  # else it is the identity
        torch.nn.init.normal_(transformer.regression.weight, std=0.02)
    return Run(tmp_path / "last.pt", config, network, 0, images)


def load_script(name: str) -> Any:
    """A module of scripts/, which find each other as they do when one of them is run."""
    if str(ROOT / "scripts") not in sys.path:
        sys.path.append(str(ROOT / "scripts"))
    return importlib.import_module(name)


COMMANDS = {
    "stn-train": cli_train.run_train,
    "stn-eval": cli_model.run_eval,
    "stn-visualize": cli_model.run_visualize,
    "stn-export": cli_export.run_export,
    "stn-demo": cli_export.run_demo,
    "stn-table": cli_table.run_table,
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
    """An empty working directory, with an empty cache of data sets."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(DATA_DIR_VARIABLE, raising=False)
    return tmp_path


def of_cell(cell, seed):
    """What a result says of the run it is of."""
    return Cell(*cell).as_dict() | {"seed": seed}
