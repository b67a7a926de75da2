"""Several runs at once, in processes of their own: what `stn-table run` does."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
import typer.main
from conftest import CPU, TINY
from typer.testing import CliRunner

from stn_train import cli_table
from stn_train import jobs as jobs_module
from stn_train.checkpoint import load_checkpoint
from stn_train.cli_table import run_table, seeds_named, tell_outcomes
from stn_train.device import cores
from stn_train.errors import CheckpointError, ConfigError, DivergenceError
from stn_train.grid import Job, cells_like, jobs_for, missing
from stn_train.jobs import Outcome, Reached, Reporter, TimeLeft, run_job, run_jobs
from stn_train.run_directory import RunDirectory
from stn_train.trainer import train

SETTINGS = [
    "data.source=embedded",
    "data.training_digits=600",
    "data.validation=100",
    "data.test_digits=200",
    "model.hidden=32",
    "model.localisation_hidden=8",
    "train.batch_size=50",
    "train.epochs=2",
    "evaluate.draws=2",
]
CELLS = ["R:FCN:none", "R:FCN:Aff", "E:FCN:TPS"]


def tiny_grid(seeds=(1,), *changes):
    return jobs_for(cells_like(CELLS), seeds, [*SETTINGS, *changes])


def table(*arguments):
    result = CliRunner().invoke(run_table, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def set_options(*changes):
    return [part for change in [*SETTINGS, *changes] for part in ("--set", change)]


def outcomes_of(events):
    return [event for event in events if isinstance(event, Outcome)]


def test_runs_in_processes_equal_runs_one_by_one(tmp_path, splits):
    outcomes = outcomes_of(run_jobs(tiny_grid(), tmp_path, 2, CPU, None))
    assert sorted(outcome.job.name for outcome in outcomes) == [
        "e_tps_fcn-seed1",
        "r_affine_fcn-seed1",
        "r_fcn-seed1",
    ]
    threads, one_by_one = torch.get_num_threads(), {}
    torch.set_num_threads(max(1, cores() // 2))
    try:
        for job in tiny_grid():
            run = RunDirectory.claim(tmp_path / "alone" / job.name)
            one_by_one[job.name] = train(job.config, splits, run, CPU)
    finally:
        torch.set_num_threads(threads)
    for outcome in outcomes:
        alone = one_by_one[outcome.job.name]
        assert outcome.result["draws_percent"] == alone.summary["draws_percent"]
        assert outcome.result["config"] == alone.summary["config"]
        saved = load_checkpoint(tmp_path / outcome.job.name / "last.pt").weights
        for key, value in alone.model.state_dict().items():
            assert value.equal(saved[key])
    # Nothing is left to do.
    assert missing(tiny_grid(), tmp_path) == []
    assert missing(tiny_grid([1, 2]), tmp_path) == tiny_grid([2])


def test_what_is_missing_is_trained_and_shown(tmp_path):
    chosen = ["--cells", "R:FCN:*", "--seeds", 1, "--out", tmp_path, "--jobs", 2]
    result = table("run", *chosen, *set_options())
    assert result.exit_code == 0
    assert "4 runs, 0 of them finished already; 2 at a time" in result.output
    assert re.search(
        r"4 of 4: r_\w*fcn-seed1 [\d.]+ % \(paper 1.\d\), validation [\d.]+ % in", result.output
    )
    assert re.search(r"\| ST-FCN TPS \| [\d.]+ \(1.1, \+[\d.]+\) \|", result.output)
    again = table("run", *chosen, *set_options())
    assert "4 runs, 4 of them finished already" in again.output
    (tmp_path / "r_fcn-seed1" / "result.json").unlink()
    one_more = table("run", *chosen, *set_options())
    assert "4 runs, 3 of them finished already" in one_more.output
    other = table("run", *chosen, *set_options("train.epochs=3"))
    assert other.exit_code == ConfigError.exit_code
    assert "train.epochs is 2 in the run, 3 was asked for" in other.output
    rows = json.loads(table("show", tmp_path, "--json").output)
    assert [row["transform"] for row in rows] == ["none", "Aff", "Proj", "TPS"]
    compared = table("compare", tmp_path / "r_fcn-seed1", tmp_path / "r_affine_fcn-seed1")
    assert re.search(r"FCN on R against ST-FCN Aff on R +A +[\d.]+ +B +[\d.]+", compared.output)
    same = json.loads(table("compare", tmp_path, tmp_path, "--json").output)
    assert [(each["difference"], each["interval_95"]) for each in same] == [(0, [0, 0])] * 4
    assert table("show", tmp_path, "--csv").output.startswith("distortion,backbone,transform,")


def test_a_run_that_fails_does_not_stop_the_others(tmp_path):
    diverging = set_options("train.learning_rate=1e30", "train.optimizer=sgd")
    chosen = ["--cells", "R:FCN:none", "--seeds", 2, "--out", tmp_path, "--jobs", 2]
    result = table("run", *chosen, *diverging)
    assert result.exit_code == DivergenceError.exit_code
    failed = r"(\d) of 2: (r_fcn-seed\d) failed: the loss is not finite at step"
    told = re.findall(failed, result.output)  # whichever ends first
    assert [number for number, _ in told] == ["1", "2"]
    assert {name for _, name in told} == {"r_fcn-seed1", "r_fcn-seed2"}
    assert "2 runs failed: r_fcn-seed1, r_fcn-seed2" in result.output


@pytest.mark.parametrize(("sent", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGKILL", -9)])
def test_killed_and_run_again_it_goes_on(tmp_path, sent, code):
    program = "from stn_train.cli_table import run_table; run_table()"
    chosen = ["--cells", "R:FCN:Aff", "--seeds", "1", "--out", str(tmp_path), "--jobs", "2"]
    options = [*chosen, *set_options("train.epochs=40")]
    process = subprocess.Popen(
        [sys.executable, "-c", program, "run", *options],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        # A suite that runs in the background of a shell is deaf to it, and so would this be.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    last = tmp_path / "r_affine_fcn-seed1" / "last.pt"
    while not last.exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(getattr(signal, sent))
    assert process.wait(timeout=60) == code
    assert not (last.parent / "result.json").exists()
    time.sleep(0.5)
    reached = load_checkpoint(last).step
    time.sleep(0.5)
    assert load_checkpoint(last).step == reached  # the worker has ended too
    result = table("run", *options)
    assert result.exit_code == 0
    done = json.loads((last.parent / "result.json").read_text())
    assert done["resumed_at_steps"] == [reached]
    assert done["steps"] == 400


def test_a_run_that_is_killed_is_told_and_the_others_go_on(tmp_path, monkeypatch):
    wait, killed = jobs_module.wait, []

    def kill_one_and_wait(connections):
        if not killed:
            killed.extend(multiprocessing.active_children())
            os.kill(killed[0].pid, signal.SIGKILL)
        return wait(connections)

    monkeypatch.setattr(jobs_module, "wait", kill_one_and_wait)
    first, *others = outcomes_of(run_jobs(tiny_grid(), tmp_path, 1, CPU, None))
    assert first.job == tiny_grid()[0]
    assert str(first).startswith("failed: killed, perhaps for want of memory")
    assert first.exit_code == 1
    assert [outcome.job for outcome in others] == tiny_grid()[1:]
    assert all(outcome.result for outcome in others)
    assert missing(tiny_grid(), tmp_path) == tiny_grid()[:1]


def test_runs_report_how_far_they_are(tmp_path, monkeypatch, capfd):
    events = [*run_jobs(tiny_grid()[:1], tmp_path, 1, CPU, None)]
    assert events[0] == Reached(tiny_grid()[0], 0.0)
    monkeypatch.setattr(cli_table, "SECONDS_BETWEEN_LINES", 0)
    reached = [Reached(tiny_grid()[0], 0.0), Reached(tiny_grid()[0], 0.5)]
    told = tell_outcomes([*reached, events[-1]], tiny_grid(), tiny_grid(), quiet=False)
    assert told == [events[-1]]
    first, second, last = capfd.readouterr().err.splitlines()
    assert first == "r_fcn-seed1 0%; inf min left"
    assert re.fullmatch(r"r_fcn-seed1 50%; \d+ min left", second)
    assert re.fullmatch(r"1 of 3: r_fcn-seed1 .* \d+ min left", last)


def test_warnings_of_a_run_are_told_with_its_name(tmp_path, capfd):
    (job, *_) = tiny_grid()
    here, there = multiprocessing.Pipe(duplex=False)
    Reporter(job, there).warned("it may have collapsed")
    assert tell_outcomes([here.recv()], [job], [job], quiet=True) == []
    assert capfd.readouterr().err == "warning: r_fcn-seed1: it may have collapsed\n"


def test_given_up_it_leaves_no_process(tmp_path):
    short, long = tiny_grid()[:1], tiny_grid([2], "train.epochs=10000")
    events = run_jobs(short + long, tmp_path, 2, CPU, None)
    assert next(event for event in events if isinstance(event, Outcome)).job == short[0]
    assert multiprocessing.active_children()
    events.close()
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("left", [[], ["config.yaml"], ["config.yaml", "metrics.jsonl"]])
def test_a_run_killed_before_its_first_save_starts_anew(tmp_path, left):
    (job, *_) = tiny_grid()
    (tmp_path / job.name).mkdir()
    for name in left:
        (tmp_path / job.name / name).write_text("")
    assert run_job(job, tmp_path, CPU, None).problem == ""
    assert (tmp_path / job.name / "result.json").exists()


def test_a_folder_that_is_not_a_run_is_left_alone(tmp_path):
    (job, *_) = tiny_grid()
    (tmp_path / job.name).mkdir()
    (tmp_path / job.name / "thesis.txt").write_text("years of work")
    _, _, problem, exit_code, _ = run_job(job, tmp_path, CPU, None)
    assert exit_code == 6
    assert "is not a run directory; choose another folder" in problem
    assert (tmp_path / job.name / "thesis.txt").read_text() == "years of work"


def test_a_disk_that_is_full_is_told(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jobs_module, "train", full)
    _, _, problem, exit_code, _ = run_job(tiny_grid()[0], tmp_path, CPU, None)
    assert (problem, exit_code) == ("[Errno 28] No space left on device", 1)


def test_time_left_follows_the_work_that_is_done(monkeypatch):
    seconds = 0.0
    monkeypatch.setattr(jobs_module.time, "perf_counter", lambda: seconds)
    config = tiny_grid()[0].config
    jobs = [Job("a", config), Job("b", config)]
    jobs += [Job("c", config.model_copy(update={"backbone": "CNN"}))]
    left = TimeLeft(jobs)
    seconds = 10.0
    assert left.seconds == float("inf")
    left.note(ended(jobs[0]))
    assert left.seconds == pytest.approx(110)  # a CNN counts for ten
    seconds = 15.0
    left.note(Reached(jobs[1], 0.5))
    assert left.running == {"b": 0.5}
    assert left.seconds == pytest.approx(15 / 1 * 10.5)  # what it had done before is no work
    left.note(Reached(jobs[1], 0.9))
    assert left.seconds == pytest.approx(15 / 1.4 * 10.1)
    left.note(ended(jobs[1]))
    left.note(ended(jobs[2], elsewhere=True))
    assert (left.running, left.seconds) == ({}, 0)


def ended(job: Job, elsewhere: bool = False) -> Outcome:
    return Outcome(job, None, "it failed", 1, elsewhere)


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("1", [1]), ("3", [1, 2, 3]), ("4-6", [4, 5, 6]), ("7-7", [7]), ("0-1", [0, 1])],
)
def test_seeds_are_a_number_or_a_range(text, seeds):
    assert list(seeds_named(text)) == seeds


@pytest.mark.parametrize("text", ["0", "", "-1", "2-1", "1,2", "x", "1-200", "1-2-3"])
def test_other_seeds_are_refused(text):
    with pytest.raises(ConfigError, match="a number, as 3, or a range, as 4-6"):
        seeds_named(text)


@pytest.mark.parametrize("key", ["distortion", "backbone", "transform", "seed"])
def test_what_names_a_run_is_no_setting_to_change(key):
    with pytest.raises(ConfigError, match="--cells and --seeds say that here"):
        tiny_grid([1], f"{key}=E")


def test_cells_are_the_shipped_ones_whatever_lies_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r_fcn.yaml").write_text("distortion: R\nmodel: {hidden: 7}\n")
    (job, *_) = tiny_grid()
    assert job.config.model.hidden != 7


def test_a_fault_of_the_program_is_told_and_ends_no_other_run(tmp_path, monkeypatch):
    def faulty(*_: object) -> None:
        raise KeyError("exp_avg")

    monkeypatch.setattr(jobs_module, "train", faulty)
    outcome = run_job(tiny_grid()[0], tmp_path, CPU, None)
    assert (outcome.problem, outcome.exit_code) == ("KeyError: 'exp_avg'", 1)


# The command line.


def test_flags_are_these():
    commands = typer.main.get_command(run_table).commands
    flags = {
        name: {flag for option in command.params for flag in option.opts}
        for name, command in commands.items()
    }
    run = "--cells --seeds --recipe --jobs --set --out --device --data-dir --json --quiet"
    show = "runs --json --markdown --csv --png"
    assert flags == {
        "run": set(run.split()),
        "show": set(show.split()),
        "compare": {"runs_a", "runs_b", "--json"},
        "report": {"runs", "--out", "--data-dir"},
    }


def test_shows_the_reference_without_runs():
    result = table("show")
    assert result.exit_code == 0
    assert re.search(r"model +on +error in % +paper +minus paper +all draws", result.output)
    assert table("show", "--markdown").output.startswith("| model | R | RTS | P | E |")


def test_table_is_drawn(tmp_path):
    assert str(tmp_path / "t.png") in table("show", "--png", tmp_path / "t.png").output
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")
    wrong = table("show", "--png", tmp_path / "t.txt")
    assert wrong.exit_code == ConfigError.exit_code
    assert "--png" in wrong.output
    assert table("show", "--png", tmp_path / "t.png", "--json").exit_code == ConfigError.exit_code


def test_folder_without_runs_is_told(tmp_path):
    result = table("show", tmp_path)
    assert result.exit_code == CheckpointError.exit_code
    assert "holds no finished run" in result.output


def test_help_needs_no_torch():
    code = "import sys, stn_train.cli_table; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_these_settings_are_those_of_the_tiny_run():
    (job,) = jobs_for(cells_like(["R:FCN:none"]), [1], SETTINGS)
    assert job.config.data.training_digits == TINY["data"]["training_digits"]
