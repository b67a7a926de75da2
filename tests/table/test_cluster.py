"""The engine on Ray: nothing is lost and nothing trained twice, whatever dies."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from conftest import CPU, TINY_OVERRIDES

from stn_train.data.sources import load_splits
from stn_train.errors import ConfigError, DivergenceError, StnError
from stn_train.runs.checkpoint import load_checkpoint
from stn_train.runs.directory import RunDirectory
from stn_train.table.board import Board
from stn_train.table.engines import Outcome, Progressed, Warned, Work, engine_for
from stn_train.table.paper import TABLES
from stn_train.table.plan import Job, cells_like, jobs_for
from stn_train.trainer.loop import train

pytestmark = [
    pytest.mark.skipif(find_spec("ray") is None, reason="the extra ray is not installed"),
    pytest.mark.skipif(sys.platform != "linux", reason="several nodes work on Linux only"),
]

MNIST = TABLES["mnist"]
CELLS = ["R:FCN:none", "R:FCN:Aff", "E:FCN:TPS"]


def tiny_jobs(*changes, cells=CELLS, seeds=(1,)):
    return jobs_for(MNIST, cells_like(cells, MNIST), seeds, [*TINY_OVERRIDES, *changes])


def wait_until(reached, seconds=300):
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(scope="session")
def head():
    """A node of Ray with two cores, on 127.0.0.1; nodes can be added."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    yield cluster
    cluster.shutdown()


@pytest.fixture
def run(head, tmp_path):
    """Train jobs on the cluster, as the command line does; returns the events."""

    def run(jobs, at_once=None, folder=tmp_path / "runs", tell=lambda event: None):
        folder.mkdir(exist_ok=True)
        events = []

        def note(event):
            events.append(event)
            tell(event)

        with closing(engine_for(Work(folder, "cpu", None), at_once, head.address)) as engine:
            engine.run(jobs, note)
        return events

    return run


def alone(job: Job, folder: Path) -> RunDirectory:
    """The same run in this process, undisturbed, with one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with RunDirectory.claim(folder / job.name) as directory:
            train(job.config, load_splits(job.config.data), directory, CPU)
    finally:
        torch.set_num_threads(threads)
    return directory


def assert_same(run: RunDirectory, other: RunDirectory) -> None:
    """Two runs ended with the same bits."""
    results = [json.loads(each.result.read_text()) for each in (run, other)]
    for key in ("draws_percent", "validation_error_percent", "confusion", "config", "steps"):
        assert results[0][key] == results[1][key]
    weights = [load_checkpoint(each.last).weights for each in (run, other)]
    assert all(value.equal(weights[1][key]) for key, value in weights[0].items())


def is_progress(event) -> bool:
    return isinstance(event, Progressed)


def kill_at(directory: RunDirectory, pass_: int, kill) -> threading.Thread:
    """Call ``kill`` when a run saves itself after so many passes, or has just done so."""

    def watch() -> None:
        def reached() -> bool:
            lines = directory.metrics.read_text().count('"transformer"')
            return lines >= pass_ and directory.last.exists()

        wait_until(lambda: directory.metrics.exists() and reached())
        kill()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def holder(directory: RunDirectory) -> int:
    return json.loads((directory.path / ".lock").read_text())["pid"]


def test_runs_on_ray_equal_runs_alone(run, tmp_path):
    jobs = tiny_jobs()
    sigterm = signal.getsignal(signal.SIGTERM)
    events = run(jobs)
    assert signal.getsignal(signal.SIGTERM) == sigterm
    outcomes = [event for event in events if isinstance(event, Outcome)]
    assert sorted(outcome.job.name for outcome in outcomes) == sorted(job.name for job in jobs)
    for outcome in outcomes:
        trained = RunDirectory(tmp_path / "runs" / outcome.job.name)
        assert outcome.result.as_dict() == json.loads(trained.result.read_text())
        assert outcome.result.environment["threads"] == 1
        assert outcome.result.environment["command"][1:] == sys.argv[1:]
        assert_same(trained, alone(outcome.job, tmp_path / "alone"))
    begun = {event.job.name: event.share for event in reversed(events) if is_progress(event)}
    assert begun == {job.name: 0.0 for job in jobs}
    assert not [*(tmp_path / "runs").glob(".shared-*")]


def test_jobs_at_once_share_the_cores(run):
    (outcome,) = (each for each in run(tiny_jobs()[:1], at_once=1) if isinstance(each, Outcome))
    assert outcome.result.environment["threads"] == 2


def test_a_killed_worker_is_told_and_its_run_goes_on(run, tmp_path):
    (job,) = tiny_jobs("train.epochs=30", cells=["R:FCN:Aff"])
    directory = RunDirectory(tmp_path / "runs" / job.name)
    kill_at(directory, 3, lambda: os.kill(holder(directory), signal.SIGKILL))
    events = run([job])
    (warned,) = (event for event in events if isinstance(event, Warned))
    assert warned.message == "its process was killed; it goes on from its last checkpoint"
    result = events[-1].result
    assert len(result.resumed_at_steps) == 1
    assert result.resumed_at_steps[0] >= 20
    assert_same(directory, alone(job, tmp_path / "alone"))


def test_a_run_that_is_killed_again_and_again_is_given_up(run, tmp_path, monkeypatch):
    monkeypatch.setattr("stn_train.table.cluster.RETRIES", 0)
    (job,) = tiny_jobs("train.epochs=1000", cells=["R:FCN:Aff"])
    directory = RunDirectory(tmp_path / "runs" / job.name)
    kill_at(directory, 1, lambda: os.kill(holder(directory), signal.SIGKILL))
    (failed,) = (event for event in run([job]) if isinstance(event, Outcome))
    assert failed.problem.startswith("its process was killed, 1 times; perhaps out of memory")
    assert failed.exit_code == 1


def test_a_run_that_fails_by_itself_is_not_tried_again(run):
    diverging = tiny_jobs("train.learning_rate=1e30", "train.optimizer=sgd", cells=CELLS[:1])
    events = run([*diverging, *tiny_jobs(cells=CELLS[1:2])])
    failed, done = sorted(
        (event for event in events if isinstance(event, Outcome)), key=lambda each: not each.problem
    )
    assert failed.exit_code == DivergenceError.exit_code
    assert "not finite" in failed.problem
    assert done.result
    assert not any(isinstance(event, Warned) for event in events)


def test_warnings_come_from_the_workers(run, tmp_path):
    (job,) = tiny_jobs(cells=["R:FCN:Aff"])
    run([job])
    directory = RunDirectory(tmp_path / "runs" / job.name)
    directory.result.unlink()
    directory.last.write_bytes(b"damaged")
    events = run([job])
    assert any(isinstance(event, Warned) and "previous.pt" in event.message for event in events)


def test_a_folder_that_is_not_shared_is_told(run, tmp_path, monkeypatch):
    from contextlib import nullcontext

    def elsewhere(folder):
        return nullcontext(folder / "not-there")

    monkeypatch.setattr("stn_train.table.cluster.token_in", elsewhere)
    with pytest.raises(StnError, match="does not see the folder of the runs: --out must lie"):
        run(tiny_jobs())


def test_relative_paths_in_a_config_are_the_users(run, tmp_path, monkeypatch):
    from PIL import Image

    for part in ("train", "test"):
        for name in "ab":
            (tmp_path / "pictures" / part / name).mkdir(parents=True)
            for number in range(4):
                picture = Image.new("L", (28, 28), 60 * number)
                picture.save(tmp_path / "pictures" / part / name / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    (job,) = tiny_jobs("train.epochs=1", "data.validation=0", cells=CELLS[:1])
    data = {"source": {"folder": {"path": "pictures"}}}
    config = type(job.config).model_validate({**job.config.as_dict()["given"], "data": data})
    (outcome,) = (each for each in run([Job("own", config)]) if isinstance(each, Outcome))
    assert outcome.problem == ""


@pytest.mark.parametrize(
    ("address", "told"),
    [("127.0.0.1:1", "refused"), ("ray://head:10001", "HOST:PORT"), ("head", "HOST:PORT")],
)
def test_no_cluster_at_an_address_is_told(tmp_path, address, told):
    with pytest.raises(ConfigError, match=f"--address {address}: .*{told}"):
        engine_for(Work(tmp_path, "cpu", None), None, address)


def test_a_device_that_no_node_has_is_told(head, tmp_path):
    with pytest.raises(ConfigError, match="--device cuda: no node"):
        engine_for(Work(tmp_path, "cuda", None), None, head.address)


def test_a_lost_node_loses_nothing(head, run, tmp_path, capsys):
    node = head.add_node(num_cpus=2, object_store_memory=100 << 20)
    head.wait_for_nodes()
    capsys.readouterr()
    jobs = tiny_jobs("train.epochs=40", cells=["R:FCN:Aff", "E:FCN:TPS"], seeds=(1, 2))
    directories = {job.name: RunDirectory(tmp_path / "runs" / job.name) for job in jobs}

    def lose_the_node() -> None:
        head.remove_node(node, allow_graceful=False)

    watched = [kill_at(each, 2, lambda: None) for each in directories.values()]

    def watch() -> None:
        for thread in watched:
            thread.join()
        lose_the_node()

    threading.Thread(target=watch, daemon=True).start()
    events = run(jobs)
    assert capsys.readouterr().out == ""  # Ray has much to say of it
    outcomes = [event for event in events if isinstance(event, Outcome)]
    assert sorted(outcome.job.name for outcome in outcomes) == sorted(directories)
    assert {event.message for event in events if isinstance(event, Warned)} <= {
        "its node was lost; it goes on from its last checkpoint",
        "its process was killed; it goes on from its last checkpoint",
    }
    resumed = [outcome.result.resumed_at_steps for outcome in outcomes]
    assert sorted(map(len, resumed)) == [0, 0, 1, 1]
    assert min(max(steps) for steps in resumed if steps) >= 10
    for job in jobs:
        directory = directories[job.name]
        passes = [each["pass"] for each in directory.read_metrics() if each["kind"] == "validation"]
        assert passes == [float(number) for number in range(1, 41)]  # none of them twice
        assert_same(directory, alone(job, tmp_path / "alone"))


PROGRAM = "from stn_train.cli.table import run_table; run_table()"


@pytest.mark.parametrize(("sent", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGKILL", -9)])
def test_stopped_the_command_saves_all_runs_and_goes_on(head, tmp_path, sent, code):
    own = sent == "SIGINT"  # Ray is started by the command; else it joins the cluster
    options = ["--cells", "R:FCN:Aff", "--seeds", "2", "--out", str(tmp_path), "--device", "cpu"]
    options += [] if own else ["--address", head.address]
    changes = [*TINY_OVERRIDES, "train.epochs=1000"]
    command = [sys.executable, "-c", PROGRAM, "run", *options]
    process = subprocess.Popen(
        [*command, *(part for change in changes for part in ("--set", change))],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    runs = [RunDirectory(tmp_path / f"r_affine_fcn-seed{seed}") for seed in (1, 2)]
    try:
        wait_until(lambda: all(run.last.exists() for run in runs))
        process.send_signal(getattr(signal, sent))
        _, told = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == code, told
    if sent != "SIGKILL":
        assert "stopping after this step" in told
        assert told.endswith("error: stopped; run the same command again to go on\n")
        time.sleep(0.5)
    else:
        wait_until(lambda: not any(is_running(holder(run)) for run in runs))
    reached = [newest_step(run) for run in runs]
    assert all(0 < steps < 10_000 for steps in reached)
    if sent != "SIGKILL":  # both were saved in the middle of a pass, as it came
        assert any(steps % 10 for steps in reached) or reached[0] != reached[1]
    for run in runs:
        with RunDirectory.claim_or_reopen(run.path):
            pass  # nobody holds it any more
    time.sleep(0.3)
    assert [newest_step(run) for run in runs] == reached


def newest_step(run: RunDirectory) -> int:
    """For a moment while a run is saved, only the checkpoint before is there."""
    _, checkpoint = run.newest_checkpoint(lambda _: None)
    return checkpoint.step


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    ("nodes", "on_gpu", "most", "expected"),
    [
        ([{"CPU": 2}], False, None, (1, 0, 2)),
        ([{"CPU": 8}], False, 2, (4, 0, 2)),
        ([{"CPU": 8}], False, 3, (2, 0, 3)),
        ([{"CPU": 2}], False, 5, (1, 0, 2)),
        ([{"CPU": 16}, {"CPU": 16}, {"CPU": 8}], False, None, (1, 0, 40)),
        ([{"CPU": 16}, {"CPU": 16}], False, 8, (4, 0, 8)),
        ([{"CPU": 16}, {"memory": 1}], False, None, (1, 0, 16)),
        ([{"CPU": 16, "GPU": 1}], True, None, (4, 0.25, 4)),
        ([{"CPU": 2, "GPU": 1}], True, None, (1, 0.25, 2)),
        ([{"CPU": 64, "GPU": 8}], True, None, (2, 0.25, 32)),
        ([{"CPU": 64, "GPU": 8}], True, 8, (8, 1.0, 8)),
        ([{"CPU": 64, "GPU": 8}], True, 24, (2, 0.3333, 24)),
        ([{"CPU": 64, "GPU": 8}], True, 2, (8, 1.0, 2)),
        ([{"CPU": 16, "GPU": 1}, {"CPU": 64}], True, None, (4, 0.25, 4)),
        ([{"CPU": 16}], True, None, (1, 0, 0)),
        ([{"GPU": 4}], True, None, (1, 0, 0)),
    ],
)
def test_room_is_shared_out(nodes, on_gpu, most, expected):
    from stn_train.table.cluster import room_in

    assert room_in(nodes, on_gpu, most) == expected


def test_the_board_keeps_messages_until_they_are_collected():
    board = Board()
    board.post(b"a")
    board.post(b"b")
    assert board.collect() == [b"a", b"b"]
    assert board.collect() == []
