"""Several runs at once, in processes of their own."""

import json
import multiprocessing
import os
import signal
from dataclasses import replace

import pytest
import torch
from conftest import CPU, TINY_OVERRIDES

from stn_train.config import Cell
from stn_train.data.sources import load_splits
from stn_train.runs.checkpoint import load_checkpoint
from stn_train.runs.directory import RunDirectory
from stn_train.runs.machine import cores
from stn_train.runs.result import reference_results
from stn_train.table import engines
from stn_train.table.engines import Outcome, Progressed, Reporter, TimeLeft, Warned, run_job
from stn_train.table.paper import TABLES
from stn_train.table.plan import Job, cells_like, jobs_for, missing
from stn_train.trainer import train

MNIST = TABLES["mnist"]

CELLS = ["R:FCN:none", "R:FCN:Aff", "E:FCN:TPS"]


def tiny_jobs(seeds=(1,), *changes):
    return jobs_for(MNIST, cells_like(CELLS, MNIST), seeds, [*TINY_OVERRIDES, *changes])


def run_jobs(jobs, folder, workers):
    return engines.run_jobs(jobs, folder, workers, CPU, None)


def outcomes_of(events):
    return [event for event in events if isinstance(event, Outcome)]


def test_runs_in_processes_equal_runs_one_by_one(tmp_path):
    outcomes = outcomes_of(run_jobs(tiny_jobs(), tmp_path, 2))
    assert sorted(outcome.job.name for outcome in outcomes) == [
        "e_tps_fcn-seed1",
        "r_affine_fcn-seed1",
        "r_fcn-seed1",
    ]
    threads, one_by_one = torch.get_num_threads(), {}
    torch.set_num_threads(max(1, cores() // 2))
    try:
        for job in tiny_jobs():
            run = RunDirectory.claim(tmp_path / "alone" / job.name)
            one_by_one[job.name] = train(job.config, load_splits(job.config.data), run, CPU)
    finally:
        torch.set_num_threads(threads)
    for outcome in outcomes:
        alone = one_by_one[outcome.job.name]
        assert outcome.result.draws_percent == alone.result.draws_percent
        assert outcome.result.config == alone.result.config
        saved = load_checkpoint(tmp_path / outcome.job.name / "last.pt").weights
        for key, value in alone.model.state_dict().items():
            assert value.equal(saved[key])
    # Nothing is left to do.
    assert missing(tiny_jobs(), tmp_path) == []
    assert missing(tiny_jobs([1, 2]), tmp_path) == tiny_jobs([2])


def test_a_run_that_is_killed_is_told_and_the_others_go_on(tmp_path, monkeypatch):
    wait, killed = engines.wait, []

    def kill_one_and_wait(connections):
        if not killed:
            killed.extend(multiprocessing.active_children())
            os.kill(killed[0].pid, signal.SIGKILL)
        return wait(connections)

    monkeypatch.setattr(engines, "wait", kill_one_and_wait)
    first, *others = outcomes_of(run_jobs(tiny_jobs(), tmp_path, 1))
    assert first.job == tiny_jobs()[0]
    assert str(first).startswith("failed: killed")
    assert first.exit_code == 1
    assert [outcome.job for outcome in others] == tiny_jobs()[1:]
    assert all(outcome.result for outcome in others)
    assert missing(tiny_jobs(), tmp_path) == tiny_jobs()[:1]


def test_runs_report_their_progress(tmp_path):
    (job, *_) = tiny_jobs()
    first, *_, last = run_jobs([job], tmp_path, 1)
    assert first == Progressed(job, 0.0)
    assert last.job == job
    assert json.loads((tmp_path / job.name / "result.json").read_text()) == last.result.as_dict()


def test_warnings_go_through_the_pipe():
    (job, *_) = tiny_jobs()
    here, there = multiprocessing.Pipe(duplex=False)
    Reporter(job, there).warned("it may have collapsed")
    assert here.recv() == Warned(job, "it may have collapsed")


def test_closed_it_leaves_no_process(tmp_path):
    short, long = tiny_jobs()[:1], tiny_jobs([2], "train.epochs=10000")
    events = run_jobs(short + long, tmp_path, 2)
    assert next(event for event in events if isinstance(event, Outcome)).job == short[0]
    assert multiprocessing.active_children()
    events.close()
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("left", [[], ["config.yaml"], ["config.yaml", "metrics.jsonl"]])
def test_a_run_killed_before_its_first_save_starts_anew(tmp_path, left):
    (job, *_) = tiny_jobs()
    (tmp_path / job.name).mkdir()
    for name in left:
        (tmp_path / job.name / name).write_text("")
    assert run_job(job, tmp_path, CPU, None).problem == ""
    assert (tmp_path / job.name / "result.json").exists()


def test_a_folder_that_is_not_a_run_is_left_alone(tmp_path):
    (job, *_) = tiny_jobs()
    (tmp_path / job.name).mkdir()
    (tmp_path / job.name / "thesis.txt").write_text("years of work")
    outcome = run_job(job, tmp_path, CPU, None)
    assert outcome.exit_code == 6
    assert "not a run directory" in outcome.problem
    assert (tmp_path / job.name / "thesis.txt").read_text() == "years of work"


def test_a_run_in_use_is_left_to_the_other_process(tmp_path):
    (job, *_) = tiny_jobs()
    with RunDirectory.claim(tmp_path / job.name):
        outcome = run_job(job, tmp_path, CPU, None)
    assert outcome.elsewhere
    assert outcome.exit_code == 6


def test_a_disk_that_is_full_is_told(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engines, "train", full)
    outcome = run_job(tiny_jobs()[0], tmp_path, CPU, None)
    assert (outcome.problem, outcome.exit_code) == ("[Errno 28] No space left on device", 1)


def test_a_bug_is_told_and_ends_no_other_run(tmp_path, monkeypatch):
    def faulty(*_: object) -> None:
        raise KeyError("exp_avg")

    monkeypatch.setattr(engines, "train", faulty)
    outcome = run_job(tiny_jobs()[0], tmp_path, CPU, None)
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


def test_time_left_follows_the_work_that_is_done(monkeypatch):
    seconds = 0.0
    monkeypatch.setattr(engines.time, "perf_counter", lambda: seconds)
    fcn, cnn = (
        jobs_for(MNIST, cells_like([pattern], MNIST), [1], ["train.epochs=2"])[0].config
        for pattern in ("R:FCN:none", "R:CNN:none")
    )
    jobs = [Job("a", fcn), Job("b", fcn), Job("c", cnn)]
    left = TimeLeft(jobs)
    seconds = 10.0
    assert left.seconds == float("inf")
    left.update(ended(jobs[0]))
    assert left.seconds == pytest.approx(110)  # a CNN counts for ten
    seconds = 15.0
    left.update(Progressed(jobs[1], 0.5))
    assert left.running == {"b": 0.5}
    assert left.seconds == pytest.approx(15 / 1 * 10.5)  # what was done before is no work of ours
    left.update(Progressed(jobs[1], 0.9))
    assert left.seconds == pytest.approx(15 / 1.4 * 10.1)
    left.update(ended(jobs[1]))
    left.update(ended(jobs[2], elsewhere=True))
    assert (left.running, left.seconds) == ({}, 0)


def ended(job: Job, elsewhere: bool = False) -> Outcome:
    return Outcome(job, None, "it failed", 1, elsewhere)
