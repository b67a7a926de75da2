"""How far the runs of a table are, told while they are trained."""

import json
import re

import pytest
from conftest import TINY_OVERRIDES

from stn_train.runs.directory import RunDirectory
from stn_train.runs.result import reference_results
from stn_train.table import progress
from stn_train.table.engines import Outcome, Progressed, Warned
from stn_train.table.paper import TABLES
from stn_train.table.plan import Job, cells_like, jobs_for
from stn_train.table.progress import Progress, TimeLeft, share_done

MNIST = TABLES["mnist"]


@pytest.fixture
def jobs() -> list[Job]:
    cells = [cell for cell in MNIST.cells if (cell.distortion, cell.backbone) == ("R", "FCN")]
    return jobs_for(MNIST, cells[:3], [1], TINY_OVERRIDES)


def ended(job: Job, elsewhere: bool = False) -> Outcome:
    return Outcome(job, None, "it failed", 1, elsewhere)


def reached(folder, job, step, **more):
    """A run directory as a run of 10 steps a pass leaves it."""
    (folder / job.name).mkdir(exist_ok=True)
    record = {"kind": "train", "step": step, "pass": step / 10, "loss": 1.0, **more}
    with (folder / job.name / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps(record) + "\n")


def test_progress_is_read_from_the_directories_and_told_with_the_time_left(
    jobs, monkeypatch, capfd, tmp_path
):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    result = next(each for each in reference_results() if str(each.cell) == "R:FCN:none")
    tell = Progress(jobs, jobs, tmp_path, quiet=False)
    tell.begin("; 2 at a time")
    tell(Progressed(jobs[0], 0.0))
    reached(tmp_path, jobs[0], 5)
    tell(Progressed(jobs[1], 0.2))
    tell(Outcome(jobs[0], result, "", 0))
    begun, first, second, last = capfd.readouterr().err.splitlines()
    assert begun == "3 runs, 0 of them finished already; 2 at a time"
    assert first == "r_fcn-seed1 0%; inf min left"
    assert re.fullmatch(r"r_fcn-seed1 25%, r_affine_fcn-seed1 20%; \d+ min left", second)
    assert re.fullmatch(r"1 of 3: r_fcn-seed1 .* \d+ min left", last)
    quiet = Progress(jobs, jobs, tmp_path, quiet=True)
    quiet.begin()
    quiet(Progressed(jobs[0], 0.5))
    quiet(Outcome(jobs[0], result, "", 0))
    assert capfd.readouterr().err == ""


def test_warnings_and_failures_are_told_with_the_runs_name(jobs, capfd, tmp_path):
    failed = Outcome(jobs[0], None, "the disk is full", 1)
    elsewhere = Outcome(jobs[1], None, "process 7 has it", 6, elsewhere=True)
    tell = Progress(jobs, jobs, tmp_path, quiet=True)
    for event in (Warned(jobs[0], "it may have collapsed"), failed, elsewhere):
        tell(event)
    assert (tell.failed, tell.elsewhere, tell.finished) == ([failed], 1, 0)
    assert capfd.readouterr().err.splitlines() == [
        "warning: r_fcn-seed1: it may have collapsed",
        "1 of 3: r_fcn-seed1 failed: the disk is full",
        f"{jobs[1].name} is left out: process 7 has it",
    ]


def test_what_a_run_has_done_is_in_its_last_whole_line(jobs, tmp_path):
    job, run = jobs[0], RunDirectory(tmp_path / jobs[0].name)
    assert share_done(run, job.config) == 0
    for step in range(1, 16):
        reached(tmp_path, job, step, note="x" * 500)
    assert share_done(run, job.config) == 15 / 20
    with run.metrics.open("a") as stream:
        stream.write('{"kind": "train", "step": 1')  # it is being written
    assert share_done(run, job.config) == 15 / 20
    by_steps = job.config.model_copy(
        update={"train": job.config.train.model_copy(update={"epochs": None, "steps": 30})}
    )
    assert share_done(run, by_steps) == 15 / 30
    run.metrics.write_text("no json\n")
    assert share_done(run, job.config) == 0


def test_time_left_follows_the_work_that_is_done(monkeypatch, tmp_path):
    seconds = 0.0
    monkeypatch.setattr(progress.time, "perf_counter", lambda: seconds)
    fcn, cnn = (
        jobs_for(MNIST, cells_like([pattern], MNIST), [1], ["train.epochs=2"])[0].config
        for pattern in ("R:FCN:none", "R:CNN:none")
    )
    jobs = [Job("a", fcn), Job("b", fcn), Job("c", cnn)]
    left = TimeLeft(jobs, tmp_path)
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
