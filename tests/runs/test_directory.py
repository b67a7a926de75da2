"""The folder of a run: claiming it, its files, loading from it."""

import json

import pytest
import torch
import yaml

from stn_train.config_file import load_config
from stn_train.data.images import ImageFormat
from stn_train.data.mnist import CLASSES
from stn_train.errors import CheckpointError, RunDirectoryError
from stn_train.runs.directory import RunDirectory, load_run


def test_claim_makes_the_folder_and_those_above_it(tmp_path):
    run = RunDirectory.claim(tmp_path / "a" / "b" / "run")
    assert run.path.is_dir()
    assert run.last.parent == run.path


def test_empty_folder_can_be_claimed(tmp_path):
    (tmp_path / "run").mkdir()
    assert RunDirectory.claim(tmp_path / "run").path == tmp_path / "run"


@pytest.mark.parametrize(
    ("take", "told"),
    [
        (RunDirectory.claim, r"exists already.* --out"),
        (RunDirectory.claim_or_reopen, "not empty .*not a run directory"),
    ],
)
def test_folder_with_something_in_it_is_never_touched(take, told, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").write_text("mine")
    with pytest.raises(RunDirectoryError, match=told):
        take(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["precious"]


@pytest.mark.parametrize(
    "name",
    ["tensorboard/events.out.tfevents.1", "snapshots/a.pt", "best.pt", "metrics.jsonl"],
)
def test_files_of_other_programs_are_never_touched(name, tmp_path):
    precious = tmp_path / "run" / name
    precious.parent.mkdir(parents=True)
    precious.write_text("mine")
    with pytest.raises(RunDirectoryError, match="is not a run directory"):
        RunDirectory.claim_or_reopen(tmp_path / "run")
    assert precious.read_text() == "mine"


def test_what_a_run_left_before_its_first_checkpoint_goes(tmp_path):
    run = RunDirectory.claim(tmp_path / "run")
    for path in (
        run.config,
        run.metrics,
        run.snapshot(0),
        run.tensorboard / "events.out.tfevents.1",
    ):
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    (run.snapshots / ".writing-step-00000001.pt.1").write_text("")
    run.close()
    with RunDirectory.claim_or_reopen(run.path):
        assert [path.name for path in run.path.iterdir()] == [".lock"]


def test_snapshots_are_ordered_and_forgotten_by_step(tmp_path):
    run = RunDirectory(tmp_path)
    run.snapshots.mkdir()
    steps = [100_000_000, 7, 0, 99_999_999]
    for step in steps:
        run.snapshot(step).write_text("")
    others = [run.snapshots / name for name in ("step-first.pt", "notes.txt")]
    for path in others:
        path.write_text("mine")
    assert run.kept_snapshots() == [run.snapshot(step) for step in sorted(steps)]
    run.forget_snapshots(99_999_999)
    assert run.kept_snapshots() == [run.snapshot(step) for step in (0, 7, 99_999_999)]
    run.forget_snapshots(0)
    assert run.kept_snapshots() == [run.snapshot(0)]
    run.forget_snapshots()
    assert sorted(run.snapshots.iterdir()) == sorted(others)
    for path in others:
        path.unlink()
    run.forget_snapshots()
    assert not run.snapshots.exists()


def test_half_a_last_line_of_the_log_is_dropped(finished, tmp_path):
    run = RunDirectory.claim(tmp_path / "run")
    whole = finished.run.metrics.read_text()
    run.metrics.write_text(whole + '{"kind": "trai')
    run.begin(finished.config, {}, 20)
    assert run.metrics.read_text() == whole


def test_a_folder_of_runs_is_told_from_a_run(finished, command):
    with pytest.raises(CheckpointError, match="is a folder of runs: name one, as tiny"):
        load_run(finished.run.path.parent)


def test_run_is_loaded_by_its_name(finished):
    assert load_run(str(finished.run.path)).step == 20


def test_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(RunDirectoryError, match="exists already"):
        RunDirectory.claim(tmp_path / "run")
    assert (tmp_path / "run").read_text() == "mine"


def test_default_names_are_numbered(tmp_path):
    names = []
    for _ in range(3):
        run = RunDirectory.claim_next(tmp_path / "runs", "r_cnn-seed1")
        run.log({"step": 1})
        names.append(run.path.name)
    assert names == ["r_cnn-seed1", "r_cnn-seed1-2", "r_cnn-seed1-3"]


def test_finished_run_has_its_files_and_no_others(finished):
    names = {path.name for path in finished.run.path.iterdir()}
    files = {"config.yaml", "environment.json", "metrics.jsonl", "result.json", ".lock"}
    assert names == files | {"last.pt", "previous.pt", "best.pt", "model.safetensors"}


def test_config_of_a_run_can_be_trained_again(finished):
    assert load_config(str(finished.run.config)) == finished.config


def test_config_of_a_run_states_the_defaults_too(finished):
    written = yaml.safe_load(finished.run.config.read_text())
    assert written == finished.config.as_dict()
    assert list(written) == list(finished.config.as_dict())


def test_environment_is_in_its_file_and_in_the_result(finished):
    environment = json.loads(finished.run.environment.read_text())
    assert environment["torch"] == torch.__version__
    assert json.loads(finished.run.result.read_text())["environment"] == environment


def test_log_is_read_as_it_was_written(tmp_path):
    run = RunDirectory.claim(tmp_path / "run")
    records = [
        {"kind": "train", "step": 1, "pass": 0.5, "loss": 0.1},
        {"kind": "validation", "step": 2, "pass": 1.0, "validation_error_percent": 3.0},
    ]
    for record in records:
        run.log(record)
    assert run.read_metrics() == records


def test_what_a_validation_measures_may_have_another_name(tmp_path):
    run = RunDirectory.claim(tmp_path / "run")
    record = {"kind": "validation", "step": 2, "pass": 1.0, "validation_overlap_percent": 3.0}
    run.log(record)
    assert run.read_metrics() == [record]


@pytest.mark.parametrize(
    "text",
    [
        '{"kind": "train"\n',
        "not json\n",
        '"text"\n',
        "3\n",
        '{"kind": "train"}\n',
        '{"kind": "validation", "step": 1, "pass": 1}\n',
        '{"kind": "validation", "step": 1, "pass": 1, "validation_error_percent": "low"}\n',
    ],
)
def test_damaged_log_is_told(text, finished, tmp_path, command):
    run = RunDirectory.claim(tmp_path / "run")
    run.last.write_bytes(finished.run.last.read_bytes())
    run.metrics.write_text(text)
    result = command("stn-visualize", run.path, "--picture", "curves")
    assert result.exit_code == 4
    assert "metrics.jsonl" in result.stderr


def test_missing_log_is_told(tmp_path):
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl cannot be read"):
        RunDirectory(tmp_path).read_metrics()


def test_run_is_loaded_from_its_folder_or_a_checkpoint(finished):
    newest, best = load_run(finished.run.path), load_run(finished.run.best)
    assert (newest.checkpoint, best.checkpoint) == (finished.run.last, finished.run.best)
    assert newest.step == 20
    assert newest.config == best.config == finished.config
    assert newest.format == best.format == ImageFormat((1, 28, 28), CLASSES)
