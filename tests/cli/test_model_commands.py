"""`stn-eval`, `stn-visualize`, `stn-export` as a user meets them: output, files, errors."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import CPU
from matplotlib.figure import Figure

from stn_train.cli import model as cli_model
from stn_train.cli import options
from stn_train.data import sources
from stn_train.data.distortions import DISTORTIONS
from stn_train.runs.directory import RunDirectory
from stn_train.tasks.base import Measure
from stn_train.trainer.loop import train
from stn_train.visualiser import animation, charts, pages

SHARED = [
    "test_error_percent",
    "interval_95_percent",
    "draws_mean_percent",
    "draws_mean_interval_95_percent",
    "draws_percent",
    "test_digits",
    "test_sha256",
    "draws_sha256",
    "confusion",
    "mistaken_digits",
    "mistaken_on_draws",
]
"""The fields that result.json and stn-eval --json have in common."""


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny, splits) -> Path:
    """The run directory of a small ST-CNN on RTS, of ten steps."""
    small = {"filters": [4, 4], "localisation_filters": 4}
    settings = {"epochs": 1, "log_every": 2}
    config = tiny(distortion="RTS", backbone={"CNN": small}, seed=3, train=settings)
    with RunDirectory.claim(tmp_path_factory.mktemp("small") / "run") as directory:
        train(config, splits, directory, CPU)
    return directory.path


@pytest.fixture(scope="module")
def summary(run) -> dict:
    """Its result.json."""
    return json.loads((run / "result.json").read_text())


def refused(result, exit_code: int) -> str:
    """The one-problem-a-line message of a command that could not do what was asked."""
    assert result.exit_code == exit_code
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("error: ")
    return result.stderr


@pytest.mark.parametrize("name", ["stn-eval", "stn-visualize", "stn-export"])
def test_missing_checkpoint_is_told(name, command, nowhere):
    assert "runs/nothing does not exist" in refused(command(name, "runs/nothing"), 4)


# stn-eval.


def test_eval_says_what_it_tests_before_it_does(run, command, monkeypatch):
    def slow(*_):
        raise OSError("the test is over")

    monkeypatch.setattr("stn_train.evaluator.evaluate", slow)
    result = command("stn-eval", run, "--device", "cpu")
    assert "the test is over" in result.stderr
    assert result.stdout.startswith("ST-CNN Aff on RTS, seed 3, tested on RTS\ncheckpoint  ")
    assert command("stn-eval", run, "--device", "cpu", "--json").stdout == ""


def test_eval_gives_the_number_of_the_result(run, summary, command):
    result = command("stn-eval", run, "--device", "cpu")
    assert result.exit_code == 0
    assert "ST-CNN Aff on RTS, seed 3, tested on RTS" in result.stdout
    assert f"test error  {summary['test_error_percent']:.2f} %" in result.stdout
    assert f"{summary['draws_mean_percent']:.2f} % in the mean of 2 draws" in result.stdout
    assert summary["test_sha256"] in result.stdout
    assert result.stdout.splitlines()[1] == f"checkpoint  {run / 'last.pt'}, step 10"
    assert "has not finished" not in result.stdout


def test_eval_tells_that_a_run_has_not_finished(run, command, tmp_path):
    shutil.copytree(run, tmp_path / "half")
    (tmp_path / "half" / "result.json").unlink()
    result = command("stn-eval", tmp_path / "half", "--device", "cpu")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[1:3] == [
        f"checkpoint  {tmp_path / 'half' / 'last.pt'}, step 10",
        "            of a run that has not finished",
    ]


def test_eval_as_json_is_the_result(run, summary, command):
    shown = json.loads(command("stn-eval", run, "--json", "--device", "cpu").stdout)
    own = ["checkpoint", "step", "trained_on", "distortion", "distort"]
    assert [*shown] == [*own, "backbone", "transform", "seed", "poses", *SHARED]
    assert all(shown[key] == summary[key] for key in SHARED)
    assert (shown["step"], shown["trained_on"], shown["distortion"]) == (10, "RTS", "RTS")
    assert (shown["backbone"], shown["transform"], shown["seed"]) == ("CNN", "Aff", 3)
    assert shown["distort"] == DISTORTIONS["RTS"]().model_dump()
    assert shown["checkpoint"] == str(run / "last.pt")


def test_best_checkpoint_can_be_evaluated(run, command):
    shown = json.loads(command("stn-eval", run / "best.pt", "--json").stdout)
    assert shown["checkpoint"] == str(run / "best.pt")


def test_number_of_draws_can_be_chosen(run, command):
    one, three = (
        json.loads(command("stn-eval", run, "--json", "--draws", draws).stdout) for draws in (1, 3)
    )
    assert (len(one["draws_percent"]), len(three["draws_percent"])) == (1, 3)
    assert one["test_sha256"] == three["test_sha256"]
    assert "mean of" not in command("stn-eval", run, "--draws", 1).stdout


def test_answers_can_be_averaged_over_poses(run, command):
    shown = json.loads(command("stn-eval", run, "--json", "--poses", 3, "--draws", 1).stdout)
    assert shown["poses"] == 3
    told = command("stn-eval", run, "--poses", 3, "--draws", 1).stdout
    assert "tested on RTS, averaged over 3 poses" in told
    assert f"test error  {shown['test_error_percent']:.2f} %" in told


@pytest.mark.parametrize("draws", ["0", "101", "many"])
def test_impossible_number_of_draws_is_told(run, command, draws):
    result = command("stn-eval", run, "--draws", draws)
    assert result.exit_code == 2
    assert "--draws" in result.stderr


@pytest.mark.parametrize(
    "name", [name for name, kind in DISTORTIONS.items() if kind().canvas_px <= 42]
)
def test_model_of_large_images_can_be_tested_on_every_distortion(run, command, name):
    shown = json.loads(command("stn-eval", run, "--json", "--distortion", name).stdout)
    assert (shown["trained_on"], shown["distortion"]) == ("RTS", name)
    assert shown["distort"] == DISTORTIONS[name](canvas_px=42).model_dump()


def test_other_distortion_has_another_test_set(finished, command):
    own, none, same = (
        json.loads(command("stn-eval", finished.run.path, "--json", *arguments).stdout)
        for arguments in ([], ["--distortion", "none"], ["--distortion", "R"])
    )
    assert own["test_sha256"] != none["test_sha256"]
    assert own == same


def test_distortion_too_large_for_the_model_is_told_with_sizes(finished, command):
    for name, side in (("RTS", "42 x 42"), ("TC", "60 x 60")):
        told = refused(command("stn-eval", finished.run.path, "--distortion", name), 2)
        assert side in told
        assert "28 x 28" in told


def test_unknown_distortion_is_told_with_those_there_are(finished, command):
    told = refused(command("stn-eval", finished.run.path, "--distortion", "RST"), 2)
    assert "--distortion is 'RST'" in told
    assert ", ".join(DISTORTIONS) in told


def test_confusion_stands_under_the_numbers_of_the_digits(run, summary, command):
    lines = command("stn-eval", run).stdout.splitlines()[-11:]
    assert [line.split()[0] for line in lines[1:]] == lines[0].split() == [*"0123456789"]
    for line, row in zip(lines[1:], summary["confusion"], strict=True):
        assert [int(count.replace(".", "0")) for count in line.split()[1:]] == row


def test_confusion_stands_under_the_names_of_classes(capsys):
    cli_model.tell_confusion([[3, 0], [12, 7]], ["a", "Ankle boots"])
    _, *table = capsys.readouterr().out.splitlines()
    assert [line.split() for line in table] == [
        ["a", "Ankle", "bo"],
        ["a", "3", "."],
        ["Ankle", "bo", "12", "7"],
    ]
    assert len({len(line) for line in table}) == 1


def test_score_is_told_by_its_measure(capsys):
    report = {
        "draws_percent": [81.0, 82.0],
        "draws_mean_percent": 81.5,
        "interval_95_percent": (80.0, 82.0),
        "draws_mean_interval_95_percent": (80.5, 82.5),
    }
    options.tell_score(report, Measure("overlap", "overlap", "points", lower_is_better=False))
    told = capsys.readouterr().out
    assert told.startswith("test overlap 81.00 points (95 %: 80.00 to 82.00 points)\n")
    assert "81.50 points in the mean of 2 draws" in told


@pytest.mark.parametrize(
    ("pixels", "classes", "told"),
    [
        (slice(1, None), [*"0123456789"], "1 x 27 x 28"),
        (slice(None), [*"abcdefghij"], "a, b, c"),
    ],
)
def test_images_that_are_not_as_in_the_training_are_told(
    run, splits, command, monkeypatch, pixels, classes, told
):
    test = splits.test
    changed = replace(test, pixels=test.pixels[:, :, pixels], classes=tuple(classes))
    monkeypatch.setattr(sources, "load_splits", lambda *_: splits._replace(test=changed))
    message = refused(command("stn-eval", run), 3)
    assert "mnist has changed" in message
    assert told in message


# stn-visualize.


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ([], "grid.png"),
        (["--picture", "means"], "means.png"),
        (["--picture", "classes"], "classes.png"),
        (["--picture", "poses"], "poses.png"),
        (["--picture", "curves"], "curves.png"),
        (["--misclassified", "--digits", "3"], "misclassified.png"),
    ],
)
def test_picture_lies_beside_the_checkpoint(run, command, arguments, name):
    (run / name).unlink(missing_ok=True)
    result = command("stn-visualize", run, *arguments)
    assert result.exit_code == 0
    assert result.stdout == f"picture     {run / name}\n"
    assert (run / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ([], "best-grid.png"),
        (["--picture", "means"], "best-means.png"),
        (["--misclassified", "--digits", "3"], "best-misclassified.png"),
    ],
)
def test_picture_of_another_checkpoint_leaves_those_of_the_run_alone(
    run, command, tmp_path, arguments, name
):
    shutil.copytree(run, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    result = command("stn-visualize", tmp_path / "run" / "best.pt", *arguments)
    assert result.stdout == f"picture     {tmp_path / 'run' / name}\n"
    after = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert after.pop(name).startswith(b"\x89PNG")
    assert after == before


@pytest.mark.parametrize(
    ("suffix", "magic"), [("pdf", b"%PDF"), ("svg", b"<?xml"), ("JPG", b"\xff")]
)
def test_picture_can_be_of_another_format_in_a_new_folder(run, command, tmp_path, suffix, magic):
    out = tmp_path / "new" / f"page.{suffix}"
    assert command("stn-visualize", run, "--digits", 2, "--out", out).exit_code == 0
    assert out.read_bytes().startswith(magic)


@pytest.mark.parametrize("name", ["picture.txt", "picture", "picture.png.zip"])
def test_unknown_picture_format_is_told_before_anything_is_drawn(run, command, nowhere, name):
    told = refused(command("stn-visualize", run, "--out", name), 2)
    assert f"--out {name}: " in told
    assert all(form in told for form in options.PICTURE_FORMS)
    assert not Path(name).exists()


def test_no_mistakes_to_show_is_told(run, command, monkeypatch, tmp_path):
    none = torch.empty(0, dtype=torch.int64)
    monkeypatch.setattr(pages, "worst_mistakes", lambda *_: none)
    out = tmp_path / "mistakes.png"
    result = command("stn-visualize", run, "--misclassified", "--out", out)
    assert "no misclassified digit" in refused(result, 2)
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--picture", "means", "--misclassified"], "--misclassified goes with --picture grid"),
        (["--picture", "means", "--digits", 3], "--digits goes with --picture grid"),
        (["--animate", "rotation.gif", "--digits", 3], "--digits goes with --picture grid"),
        (
            ["--animate", "rotation.gif", "--picture", "means"],
            "give one of --animate and --picture",
        ),
    ],
)
def test_flags_that_would_be_without_effect_are_refused(run, command, arguments, told):
    assert told in refused(command("stn-visualize", run, *arguments), 2)


def test_several_runs_go_with_curves_alone(run, command):
    assert "--picture curves" in refused(command("stn-visualize", run, run), 2)


def test_curves_need_no_checkpoint(run, command, tmp_path):
    (tmp_path / "diverged").mkdir()
    shutil.copy(run / "metrics.jsonl", tmp_path / "diverged")
    result = command("stn-visualize", tmp_path / "diverged", "--picture", "curves")
    assert result.stdout == f"picture     {tmp_path / 'diverged' / 'curves.png'}\n"


def test_curves_of_a_lone_checkpoint_are_told_to_be_missing(run, command, tmp_path):
    (tmp_path / "alone.pt").write_bytes((run / "last.pt").read_bytes())
    result = command("stn-visualize", tmp_path / "alone.pt", "--picture", "curves")
    assert "metrics.jsonl cannot be read" in refused(result, 4)


def test_curves_of_runs_of_the_same_name_are_told_apart(run, command, nowhere, monkeypatch):
    seen = []

    def learning_curves(title, metrics):
        seen.append((title, sorted(metrics)))
        return Figure()

    monkeypatch.setattr(charts, "learning_curves", learning_curves)
    shutil.copytree(run, nowhere / "other" / run.name)
    other = Path("other") / run.name / "last.pt"
    result = command("stn-visualize", run, other, "--picture", "curves", "--out", "curves.png")
    assert result.exit_code == 0
    assert seen == [("2 runs", sorted([str(run), str(other.parent)]))]


def test_animation_lies_beside_the_run(run, command, monkeypatch):
    monkeypatch.setattr(animation, "SWEEP_FRAMES", 2)
    result = command("stn-visualize", run, "--animate", "rotation.gif")
    assert result.stdout == f"animation   {run / 'rotation.gif'}\n"
    assert (run / "rotation.gif").read_bytes().startswith(b"GIF")


def test_unknown_animation_is_told_with_those_there_are(run, command):
    told = refused(command("stn-visualize", run, "--animate", "dance.gif"), 2)
    assert all(f"{name}.gif" in told for name in animation.ANIMATIONS)


def test_animation_of_a_training_without_snapshots_is_told(run, command):
    told = refused(command("stn-visualize", run, "--animate", "training"), 2)
    assert "log.snapshots=24" in told


# stn-export.


def test_export_lies_beside_the_checkpoint_and_is_checked(run, command):
    result = command("stn-export", run, "--format", "pt2")
    assert result.exit_code == 0
    assert f"exported    {run / 'model.pt2'}, " in result.stdout
    assert "checked     batches of 1 and 5" in result.stdout
    logits = torch.export.load(run / "model.pt2").module()(torch.rand(3, 1, 42, 42))
    assert logits.shape == (3, 10)


def test_export_as_json_tells_file_and_input(run, command, tmp_path):
    out = tmp_path / "new" / "small.pt2"
    shown = json.loads(
        command("stn-export", run / "best.pt", "--format", "pt2", "--out", out, "--json").stdout
    )
    assert shown.pop("largest_difference") < 1e-3
    assert shown == {"file": str(out), "format": "pt2", "input": [None, 1, 42, 42]}


def test_file_name_of_another_form_is_refused(run, command, nowhere):
    told = refused(command("stn-export", run, "--format", "onnx", "--out", "model.pt2"), 2)
    assert "--out model.pt2: the name must end in .onnx" in told


def test_nothing_is_coloured(run, command):
    assert "\x1b" not in command("stn-eval", run).output
    assert "\x1b" not in command("stn-visualize", run, "--animate", "dance.gif").output
