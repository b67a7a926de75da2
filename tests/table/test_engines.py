"""What trains the runs of a table: here one after another, and the choice of Ray."""

import gc
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from conftest import CPU, TINY_OVERRIDES
from torch.optim import AdamW

from stn_train.cell import Cell
from stn_train.data.sources import load_splits
from stn_train.errors import ConfigError
from stn_train.runs.checkpoint import load_checkpoint
from stn_train.runs.directory import RunDirectory
from stn_train.runs.result import reference_results
from stn_train.runs.signals import StoppedError
from stn_train.table import engines
from stn_train.table.engines import (
    InThisProcess,
    Outcome,
    Progressed,
    Warned,
    Work,
    engine_for,
    run_job,
)
from stn_train.table.paper import TABLES
from stn_train.table.plan import cells_like, jobs_for, missing
from stn_train.trainer.loop import train

MNIST = TABLES["mnist"]

CELLS = ["R:FCN:none", "R:FCN:Aff", "E:FCN:TPS"]


def tiny_jobs(seeds=(1,), *changes):
    return jobs_for(MNIST, cells_like(CELLS, MNIST), seeds, [*TINY_OVERRIDES, *changes])


def work_in(folder):
    return Work(folder, "cpu", None)


def run(jobs, folder):
    """The events of an engine in this process."""
    events = []
    InThisProcess(work_in(folder)).run(jobs, events.append)
    return events


def outcomes_of(events):
    return [event for event in events if isinstance(event, Outcome)]


def test_runs_one_after_another_are_those_of_train(tmp_path):
    outcomes = outcomes_of(run(tiny_jobs(), tmp_path))
    assert [outcome.job for outcome in outcomes] == tiny_jobs()
    for job, outcome in zip(tiny_jobs(), outcomes, strict=True):
        with RunDirectory.claim(tmp_path / "alone" / job.name) as directory:
            alone = train(job.config, load_splits(job.config.data), directory, CPU)
        assert outcome.result.draws_percent == alone.result.draws_percent
        assert outcome.result.config == alone.result.config
        saved = load_checkpoint(tmp_path / job.name / "last.pt").weights
        for key, value in alone.model.state_dict().items():
            assert value.equal(saved[key])
    # Nothing is left to do.
    assert missing(tiny_jobs(), tmp_path) == []
    assert missing(tiny_jobs([1, 2]), tmp_path) == tiny_jobs([2])


def test_what_happens_in_a_run_is_told_as_events(tmp_path):
    (job, *_) = tiny_jobs()
    first, last = run([job], tmp_path)
    assert first == Progressed(job, 0.0)
    assert json.loads((tmp_path / job.name / "result.json").read_text()) == last.result.as_dict()
    (tmp_path / job.name / "result.json").unlink()
    (tmp_path / job.name / "last.pt").write_bytes(b"damaged")
    warned, resumed, _ = run([job], tmp_path)
    assert isinstance(warned, Warned)
    assert "going on from previous.pt, step 10" in warned.message
    assert resumed == Progressed(job, 0.5)


def test_nothing_of_a_run_stays_in_memory(tmp_path):
    (job, *_) = tiny_jobs()
    gc.collect()
    gc.disable()  # Python must not happen to collect what run_job leaves
    try:
        before = optimizers()
        assert run_job(job, work_in(tmp_path)).result
        assert optimizers() == before
    finally:
        gc.enable()


def optimizers():
    """How many there are in this process."""
    return sum(issubclass(type(each), AdamW) for each in gc.get_objects())


def test_a_signal_ends_all_runs(tmp_path, monkeypatch):
    def stopped(*_: object) -> None:
        raise StoppedError("stopped at step 3", 15)

    monkeypatch.setattr(engines, "train", stopped)
    events = []
    with pytest.raises(StoppedError, match="step 3"):
        InThisProcess(work_in(tmp_path)).run(tiny_jobs(), events.append)
    assert events == []


def test_a_run_of_another_process_is_tried_again_at_the_end(tmp_path):
    first, *others = tiny_jobs()
    holder = RunDirectory.claim(tmp_path / first.name)
    ended = []

    def tell(event):
        if isinstance(event, Outcome):
            ended.append(event)
            holder.close()  # the other process gives up while we train another run

    InThisProcess(work_in(tmp_path)).run([first, *others], tell)
    assert [outcome.job for outcome in ended] == [*others, first]
    assert all(outcome.result for outcome in ended)


PROCESS = """
import sys
from pathlib import Path
import torch
from conftest import TINY_OVERRIDES
from stn_train.table.engines import InThisProcess, Outcome, Work
from stn_train.table.paper import TABLES
from stn_train.table.plan import cells_like, jobs_for
torch.set_num_threads(1)
table = TABLES["mnist"]
cells = cells_like(["R:FCN:*", "P:FCN:none", "P:FCN:Aff"], table)
jobs = jobs_for(table, cells, [1], [*TINY_OVERRIDES, "train.epochs=10"])
def tell(event):
    if isinstance(event, Outcome):
        assert event.result or event.elsewhere, event.problem
InThisProcess(Work(Path(sys.argv[1]), "cpu", None)).run(jobs, tell)
"""


def test_three_processes_share_the_runs_of_a_folder(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", PROCESS, str(tmp_path)]
    processes = [subprocess.Popen(command, env=environment) for _ in range(3)]
    assert [process.wait(timeout=120) for process in processes] == [0] * 3
    runs = [path.parent for path in tmp_path.glob("*/result.json")]
    assert len(runs) == 6
    for path in runs:  # each was trained once, in one go
        assert json.loads((path / "result.json").read_text())["resumed_at_steps"] == []
        steps = [line["step"] for line in RunDirectory(path).read_metrics()]
        assert steps == sorted(steps)
    holders = {json.loads((path / ".lock").read_text())["pid"] for path in runs}
    assert len(holders) > 1


def test_without_ray_runs_go_one_after_another(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert isinstance(engine_for(work_in(tmp_path), None, None), InThisProcess)
    with pytest.raises(ConfigError, match=r"--address head:6379 needs Ray: pip install .*\[ray\]"):
        engine_for(work_in(tmp_path), None, "head:6379")


def test_one_run_at_a_time_needs_no_ray(tmp_path):
    assert isinstance(engine_for(work_in(tmp_path), 1, None), InThisProcess)


@pytest.mark.parametrize("left", [[], ["config.yaml"], ["config.yaml", "metrics.jsonl"]])
def test_a_run_killed_before_its_first_save_starts_anew(tmp_path, left):
    (job, *_) = tiny_jobs()
    (tmp_path / job.name).mkdir()
    for name in left:
        (tmp_path / job.name / name).write_text("")
    assert run_job(job, work_in(tmp_path)).problem == ""
    assert (tmp_path / job.name / "result.json").exists()


def test_a_folder_that_is_not_a_run_is_left_alone(tmp_path):
    (job, *_) = tiny_jobs()
    (tmp_path / job.name).mkdir()
    (tmp_path / job.name / "thesis.txt").write_text("years of work")
    outcome = run_job(job, work_in(tmp_path))
    assert outcome.exit_code == 6
    assert "not a run directory" in outcome.problem
    assert (tmp_path / job.name / "thesis.txt").read_text() == "years of work"


def test_a_run_in_use_is_left_to_the_other_process(tmp_path):
    (job, *_) = tiny_jobs()
    with RunDirectory.claim(tmp_path / job.name):
        outcome = run_job(job, work_in(tmp_path))
    assert outcome.elsewhere
    assert outcome.exit_code == 6


def test_a_disk_that_is_full_is_told(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engines, "train", full)
    outcome = run_job(tiny_jobs()[0], work_in(tmp_path))
    assert (outcome.problem, outcome.exit_code) == ("[Errno 28] No space left on device", 1)


def test_a_bug_is_told_and_ends_no_other_run(tmp_path, monkeypatch):
    def faulty(*_: object) -> None:
        raise KeyError("exp_avg")

    monkeypatch.setattr(engines, "train", faulty)
    outcome = run_job(tiny_jobs()[0], work_in(tmp_path))
    assert (outcome.problem, outcome.exit_code) == ("KeyError: 'exp_avg'", 1)


def test_outcome_has_the_published_value_only_where_there_is_one():
    result = replace(
        reference_results()[0],
        cell=Cell("RTS", "CNN", "Aff"),
        test_percent=0.823,
        validation_percent=1.5,
        total_seconds=534.4,
    )
    (job, *_) = tiny_jobs()

    def told(result):
        return str(Outcome(job, result, "", 0))

    assert told(result) == "0.82 % (paper 0.5), validation 1.50 % in 534 s"
    assert told(replace(result, validation_percent=None)) == "0.82 % (paper 0.5) in 534 s"
    assert told(replace(result, data="kmnist")) == "0.82 %, validation 1.50 % in 534 s"
    outside = replace(result, cell=Cell("none", "tutorial", "Aff"))
    assert told(outside) == "0.82 %, validation 1.50 % in 534 s"
