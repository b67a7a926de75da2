"""Trackers: they are told the numbers of metrics.jsonl, offline, and cannot end a run.

A stand-in takes the place of a package that is not installed; one that is, is used.
"""

import importlib.util
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import CPU, ROOT

from stn_train.errors import ConfigError
from stn_train.runs.directory import RunDirectory
from stn_train.trainer.loop import train
from stn_train.trainer.observers import Observer
from stn_train.trainer.trackers import BEGINNINGS

NAMES = sorted(BEGINNINGS)


class StandIn(ModuleType):
    """What both packages have in common: init, and a run with log and finish."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.begun: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished = 0
        self.fails_at: str | None = None

    def Settings(self, **settings):
        return settings

    def init(self, **options):
        sys.stdout.write("* a greeting\n")
        self.fail("init")
        self.begun.append(options)
        return self

    def log(self, numbers, step):
        self.fail("log")
        self.logged.append((step, numbers))

    def finish(self):
        self.fail("finish")
        self.finished += 1

    def fail(self, where: str) -> None:
        if where == self.fails_at:
            raise RuntimeError(f"no {where}\ntoday")


@pytest.fixture
def package(monkeypatch):
    def package(name: str) -> StandIn:
        made = StandIn(name)
        monkeypatch.setitem(sys.modules, name, made)
        return made

    return package


class Warned(Observer):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def warned(self, message):
        self.messages.append(message)


class Stops(Observer):
    def stepped(self, step: int) -> None:
        if step == 17:
            raise KeyboardInterrupt


def numbers_of(run: RunDirectory) -> list[tuple[int, dict[str, float]]]:
    """The lines of metrics.jsonl as a tracker is told them."""
    return [
        (
            record["step"],
            {
                f"{record['kind']}/{key}": value
                for key, value in record.items()
                if key not in ("kind", "step", "pass")
            },
        )
        for record in run.read_metrics()
    ]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_told_every_number(name, package, tiny, splits, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    told, config = package(name), tiny(log={"tracker": name})
    run = RunDirectory.claim(tmp_path / "a-run")
    train(config, splits, run, CPU)
    assert told.logged == numbers_of(run)
    assert told.finished == 1
    (options,) = told.begun
    assert (options["project"], options["name"]) == ("stn_train", "a-run")
    assert options["config"] == config.as_dict()
    assert capsys.readouterr().out == ""
    if name == "wandb":
        assert (options["mode"], options["dir"]) == ("offline", str(run.path))


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_goes_on(name, package, tiny, splits, tmp_path):
    told, config = package(name), tiny(log={"tracker": name})
    run = RunDirectory.claim(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train(config, splits, run, CPU, Stops())
    (run.path / "wandb" / "offline-run-20260101_000000-abcd1234").mkdir(parents=True)
    train(config, splits, run, CPU)
    first, second = told.begun
    assert told.finished == 2
    assert second["resume"] == "allow"
    if name == "wandb":
        assert (first["id"], second["id"]) == (None, "abcd1234")
    else:
        assert first["resume"] == "never"
    assert [step for step, numbers in told.logged if "train/loss" in numbers] == [5, 10, 15, 15, 20]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("where", "lines"), [("init", 0), ("log", 0), ("finish", 8)])
def test_one_that_fails_is_a_warning_and_the_run_goes_on(
    name, where, lines, package, tiny, splits, tmp_path
):
    told, warned = package(name), Warned()
    told.fails_at = where
    run = RunDirectory.claim(tmp_path / "run")
    result = train(tiny(log={"tracker": name}), splits, run, CPU, warned)
    assert (result.steps, len(told.logged)) == (20, lines)
    (message,) = warned.messages
    assert message == f"log.tracker: {name} failed and is told nothing more: no {where} today"


@pytest.mark.parametrize("name", NAMES)
def test_without_the_package_it_says_how_to_get_it(name, tiny, splits, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    run = RunDirectory.claim(tmp_path / "run")
    with pytest.raises(ConfigError, match=f"log.tracker is {name}: pip install {name}"):
        train(tiny(log={"tracker": name}), splits, run, CPU)


def test_what_a_tracker_left_is_no_reason_to_refuse_a_run(tmp_path):
    path = tmp_path / "run"
    (path / "wandb").mkdir(parents=True)
    (path / "config.yaml").write_text("{}")
    with RunDirectory.claim_or_reopen(path) as run:
        assert not run.has_checkpoint()


# The real ones, each in a process of its own: they start threads and servers.

REAL = """
import sys
from pathlib import Path
from conftest import CPU, tiny_config
from stn_train.data.sources import load_splits
from stn_train.runs.directory import RunDirectory
from stn_train.trainer.loop import train
from stn_train.trainer.observers import Observer, progress

class Stops(Observer):
    def stepped(self, step):
        if step == 17:
            raise KeyboardInterrupt

config = tiny_config(log={"tracker": sys.argv[1]})
splits, run = load_splits(config.data), RunDirectory.claim(Path("a-run"))
try:
    train(config, splits, run, CPU, Stops())
except KeyboardInterrupt:
    train(config, splits, run, CPU, progress(quiet=True))
"""


def really_tracked(name: str, folder: Path) -> Path:
    """Where a run that was stopped and resumed lies; the package must be silent."""
    environment = {key: os.environ[key] for key in os.environ if not key.startswith("WANDB")}
    environment |= {
        "TRACKIO_DIR": str(folder / "trackio"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    done = subprocess.run(
        [sys.executable, "-c", REAL, name],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return folder / "a-run"


@pytest.mark.skipif(not importlib.util.find_spec("wandb"), reason="wandb is not installed")
def test_wandb_keeps_the_numbers_in_the_run_directory(tmp_path):
    run = really_tracked("wandb", tmp_path)
    files = sorted(run.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    assert len({path.stem for path in files}) == 1  # the same id: wandb sync makes one run of it
    assert all(b"validation/validation_error_percent" in path.read_bytes() for path in files)


@pytest.mark.skipif(not importlib.util.find_spec("trackio"), reason="trackio is not installed")
def test_trackio_keeps_the_numbers_on_this_machine(tmp_path):
    run = RunDirectory(really_tracked("trackio", tmp_path))
    with sqlite3.connect(tmp_path / "trackio" / "stn_train.db") as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics").fetchall()
    assert {name for name, *_ in rows} == {"a-run"}
    told = [(step, json.loads(numbers)) for _, step, numbers in rows]
    for step, numbers in numbers_of(run):
        assert any(step == own and numbers.items() <= all_.items() for own, all_ in told)
