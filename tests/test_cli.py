"""The commands on a single run, used as a user would: output, files, errors, exit codes."""

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer.main
import yaml
from matplotlib.figure import Figure
from typer.testing import CliRunner

import stn_train
from stn_train import album, cli_model, cli_train, data, exporter, visualiser
from stn_train.config_file import load_config, shipped_configs
from stn_train.distortions import DISTORTIONS
from stn_train.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DivergenceError,
    RunDirectoryError,
)


@pytest.fixture
def config(nowhere, tiny) -> str:
    """The tiny config as a file in an empty working directory."""
    (nowhere / "tiny.yaml").write_text(yaml.safe_dump(tiny().as_dict()))
    return "tiny.yaml"


def python(code: str, cwd: Path) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, check=True, capture_output=True, text=True
    )
    return done.stdout


# Help and flags.


def flags(app) -> set[str]:
    return {flag for option in typer.main.get_command(app).params for flag in option.opts}


@pytest.mark.parametrize(
    ("app", "expected"),
    [
        (
            cli_train.run_train,
            "--config --set --seed --device --out --resume --accept-changes --data-dir --json "
            "--quiet --dry-run --doctor --list-configs --version",
        ),
        (cli_model.run_eval, "run --json --draws --distortion --device --data-dir"),
        (
            cli_model.run_visualize,
            "runs --out --picture --animate --misclassified --digits --data-dir",
        ),
        (cli_model.run_export, "run --format --out --json"),
    ],
)
def test_flags_are_these(app, expected):
    completion = {"--install-completion", "--show-completion"}
    assert flags(app) - completion == set(expected.split())


@pytest.mark.parametrize("name", ["stn-train", "stn-eval", "stn-visualize", "stn-export"])
def test_help_has_an_example_and_the_exit_codes(name, command):
    result = command(name, "--help")
    text = " ".join(result.stdout.split())
    assert result.exit_code == 0
    assert f"Example: {name}" in text
    errors = (ConfigError, DataError, CheckpointError, DivergenceError, RunDirectoryError)
    assert [error.exit_code for error in errors] == [2, 3, 4, 5, 6]
    for code in (0, 1, 2, 3, 4, 5, 6, 130):
        assert f" {code} " in text.partition("Exit codes:")[2]
    # Two paragraphs: the example does not run into the codes.
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", result.stdout)]
    assert sum(part.startswith(f"Example: {name} ") for part in paragraphs) == 1
    assert sum(part.startswith("Exit codes: 0 done; ") for part in paragraphs) == 1


HELP = """
import contextlib, io, sys, time
from stn_train import cli_model, cli_train
for app in (cli_train.run_train, cli_model.run_eval, cli_model.run_visualize, cli_model.run_export):
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        sys.argv = ["stn", "--help"]
        app()
heavy = {"torch", "torchvision", "matplotlib", "numpy", "pydantic", "yaml"} & sys.modules.keys()
print(sorted(heavy), time.process_time())
"""


def test_help_imports_nothing_heavy_and_answers_at_once(tmp_path):
    heavy, cpu_seconds = python(HELP, tmp_path).rsplit(maxsplit=1)
    assert heavy == "[]"
    assert float(cpu_seconds) < 0.5


def test_list_shows_every_shipped_config_with_its_title(command):
    result = command("stn-train", "--list-configs")
    assert result.exit_code == 0
    listed = [line.split(maxsplit=1) for line in result.stdout.splitlines()]
    assert [name for name, _ in listed] == [path.name for path in shipped_configs()]
    assert all(len(title) > 10 and "#" not in title for _, title in listed)


def test_choices_are_what_can_be_made():
    assert [*cli_model.Picture] == [*album.PICTURES]
    assert [*cli_model.Form] == [*exporter.FORMS]


# Mistakes on the command line.


DIGITS = "digits: embedded: rendered from matplotlib's fonts\n"
"""What a training says first, on standard error."""


def refused(result, exit_code: int, before: str = "") -> str:
    """The one-problem-a-line message of a command that could not do what was asked."""
    assert result.exit_code == exit_code
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith(f"{before}error: ")
    return result.stderr.removeprefix(before)


def test_no_config_is_told(command):
    assert "--list-configs" in refused(command("stn-train"), 2)


def test_all_mistakes_in_a_config_are_told_on_standard_error(command, nowhere):
    (nowhere / "bad.yaml").write_text("sed: 1\nbackbone: RNN\n")
    told = refused(command("stn-train", "--config", "bad.yaml", "--set", "seed=x"), 2)
    lines = told.splitlines()
    assert all(line.startswith("error: ") for line in lines)
    assert len(lines) == 3
    assert "bad.yaml:2: backbone is 'RNN'" in told
    assert not (nowhere / "runs").exists()


def test_unknown_config_is_told_with_the_nearest(command, nowhere):
    told = refused(command("stn-train", "--config", "rts_afine"), 2)
    assert "did you mean rts_affine.yaml?" in told


def test_wrong_seed_is_told_as_the_seed(command, config):
    result = command("stn-train", "--config", config, "--seed", "-1")
    assert result.exit_code == 2
    assert "--seed" in result.stderr
    assert "--set" not in result.stderr


def test_device_that_is_not_there_is_told(command, config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    told = refused(command("stn-train", "--config", config, "--device", "cuda"), 2)
    assert "--device cuda" in told


def test_validation_that_takes_all_digits_is_told(command, config, nowhere):
    told = refused(command("stn-train", "--config", config, "--set", "data.validation=600"), 2)
    assert "data.validation is 600" in told
    assert not (nowhere / "runs").exists()


def test_missing_mnist_without_network_is_told(command, nowhere):
    empty = nowhere / "empty"
    empty.mkdir()
    told = refused(command("stn-train", "--config", "r_cnn", "--data-dir", empty), 3)
    assert str(empty / "MNIST" / "raw") in told
    assert "data.source=embedded" in told
    assert not (nowhere / "runs").exists()


def test_advice_is_not_called_an_error(command, nowhere):
    told = refused(command("stn-train", "--config", "r_cnn"), 3)
    assert told.count("error:") == 1


def test_run_directory_in_use_is_never_overwritten(command, config, nowhere):
    (nowhere / "mine").mkdir()
    (nowhere / "mine" / "precious").write_text("mine")
    told = refused(command("stn-train", "--config", config, "--out", "mine"), 6, DIGITS)
    assert "mine exists already" in told
    assert [path.name for path in (nowhere / "mine").iterdir()] == ["precious"]


def test_divergence_ends_with_its_code(command, config):
    diverging = ["train.optimizer=sgd", "train.schedule=constant", "train.learning_rate=1e30"]
    changes = [argument for change in diverging for argument in ("--set", change)]
    result = command("stn-train", "--config", config, *changes)
    assert result.exit_code == 5
    assert result.stderr.splitlines()[-1].startswith("error: the loss is not finite at step")


def test_learning_rate_that_no_float32_can_hold_is_told(command, config):
    settings = ["train.optimizer=sgd", "train.schedule=constant", "train.learning_rate=1e39"]
    changes = [argument for setting in settings for argument in ("--set", setting)]
    result = command("stn-train", "--config", config, *changes)
    assert result.exit_code in (2, 5)
    assert "learning_rate" in result.stderr


@pytest.mark.parametrize(
    ("trouble", "exit_code", "told"),
    [(KeyboardInterrupt(), 130, "interrupted"), (OSError("disk full"), 1, "disk full")],
)
def test_trouble_from_outside_ends_in_one_line(
    command, config, monkeypatch, trouble, exit_code, told
):
    def train(*_):
        raise trouble

    monkeypatch.setattr("stn_train.trainer.train", train)
    result = command("stn-train", "--config", config)
    assert refused(result, exit_code, DIGITS) == f"error: {told}\n"


# stn-train.


@pytest.fixture(scope="module")
def chain(tmp_path_factory, tiny):
    """A small ST-CNN on RTS, trained through the command: its folder and what was printed."""
    folder = tmp_path_factory.mktemp("chain")
    settings = tiny(
        distortion="RTS",
        backbone="CNN",
        model={"filters": [4, 4], "localisation_filters": 4},
        train={"epochs": 1},
    )
    (folder / "small.yaml").write_text(yaml.safe_dump(settings.as_dict()))
    arguments = ["--config", folder / "small.yaml", "--out", folder / "run", "--seed", 3]
    arguments += ["--set", "train.log_every=2", "--device", "cpu"]
    result = CliRunner().invoke(cli_train.run_train, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return folder / "run", result


def test_a_picture_that_cannot_be_drawn_is_told_and_the_run_is_whole(
    chain, command, nowhere, monkeypatch
):
    run, _ = chain

    def collapsed(*_: object) -> None:
        raise ConfigError(["the transformer has collapsed"])

    monkeypatch.setitem(album.PICTURES, "poses", collapsed)
    config = run.parent / "small.yaml"
    result = command("stn-train", "--config", config, "--set", "train.epochs=1", "--out", "done")
    assert result.exit_code == 0
    assert "warning: no picture poses: the transformer has collapsed" in result.stderr
    assert Path("done/curves.png").exists()


def test_training_prints_the_error_and_leaves_pictures(chain):
    run, result = chain
    summary = json.loads((run / "result.json").read_text())
    assert f"test error  {summary['test_error_percent']:.2f} %" in result.stdout
    assert f"{summary['draws_mean_percent']:.2f} % in the mean of 2 draws" in result.stdout
    assert f"run         {run}" in result.stdout
    for picture in ("grid.png", "means.png", "classes.png", "poses.png", "curves.png"):
        assert (run / picture).read_bytes().startswith(b"\x89PNG")
        assert f"picture     {run / picture}" in result.stdout


def test_overrides_and_seed_are_in_the_config_of_the_run(chain):
    run, _ = chain
    config = load_config(str(run / "config.yaml"))
    assert (config.seed, config.train.log_every) == (3, 2)
    assert json.loads((run / "result.json").read_text())["seed"] == 3


def test_run_is_named_after_config_and_seed(command, config, nowhere, monkeypatch):
    monkeypatch.setattr(album, "PICTURES", {})
    for _ in range(2):
        result = command("stn-train", "--config", config, "--seed", 5, "--device", "cpu")
        assert result.exit_code == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == ["tiny-seed5", "tiny-seed5-2"]


@pytest.mark.parametrize("inside", [False, True])
def test_run_trained_again_is_named_after_its_run_directory(
    command, config, nowhere, monkeypatch, inside
):
    monkeypatch.setattr(album, "PICTURES", {})
    (nowhere / "first").mkdir()
    (nowhere / config).rename(nowhere / "first" / "config.yaml")
    if inside:
        monkeypatch.chdir(nowhere / "first")
    path = "config.yaml" if inside else "first/config.yaml"
    result = command("stn-train", "--config", path, "--seed", 6, "--device", "cpu")
    assert result.exit_code == 0
    assert [path.name for path in Path("runs").iterdir()] == ["first-seed6"]


def test_training_tells_where_its_digits_come_from_first(chain):
    _, result = chain
    assert result.stderr.startswith(f"{DIGITS}ST-CNN Aff on RTS: ")


def test_training_tells_the_size_of_the_model_and_of_its_training(chain):
    run, result = chain
    parameters = json.loads((run / "result.json").read_text())["parameters"]
    told = rf"^model       {parameters:,} parameters, 1 x 500 digits in \d+ s$"
    assert re.search(told, result.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("source", "distortion", "told"),
    [
        ("mnist", "R", ["paper       1.2 % (Table 1, mean of three runs)"]),
        ("mnist", "E", ["paper       2.7 % (Table 1, mean of three runs)"]),
        ("mnist", "none", []),  # not in the table
        ("embedded", "R", []),  # other digits
    ],
)
def test_published_error_stands_beside_that_of_the_same_cell_on_mnist(
    command, config, monkeypatch, source, distortion, told
):
    digits = data.render_font_digits(8000, 2000, 0)  # in the place of MNIST
    monkeypatch.setattr(data, "load_mnist", lambda _: digits)
    monkeypatch.setattr(data, "find_raw", lambda _: Path("here"))
    monkeypatch.setattr(album, "PICTURES", {})
    changes = [f"data.source={source}", f"distortion={distortion}", "train.epochs=1"]
    arguments = [argument for change in changes for argument in ("--set", change)]
    result = command("stn-train", "--config", config, "--device", "cpu", *arguments)
    assert result.exit_code == 0
    assert [line for line in result.stdout.splitlines() if line.startswith("paper")] == told
    if source == "mnist":
        assert result.stderr.startswith("digits: MNIST from here\n")


# stn-eval.


def test_eval_gives_the_number_of_the_result(chain, command):
    run, _ = chain
    summary = json.loads((run / "result.json").read_text())
    result = command("stn-eval", run, "--device", "cpu")
    assert result.exit_code == 0
    assert "ST-CNN Aff on RTS, seed 3, tested on RTS" in result.stdout
    assert f"test error  {summary['test_error_percent']:.2f} %" in result.stdout
    assert summary["test_sha256"] in result.stdout
    assert result.stdout.splitlines()[1] == f"checkpoint  {run / 'last.pt'}, step 10"
    assert "has not finished" not in result.stdout


def test_eval_tells_that_a_run_has_not_finished(chain, command, tmp_path):
    run, _ = chain
    shutil.copytree(run, tmp_path / "half")
    (tmp_path / "half" / "result.json").unlink()
    result = command("stn-eval", tmp_path / "half", "--device", "cpu")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[1:3] == [
        f"checkpoint  {tmp_path / 'half' / 'last.pt'}, step 10",
        "            of a run that has not finished",
    ]


def test_eval_as_json_is_the_result(chain, command):
    run, _ = chain
    summary = json.loads((run / "result.json").read_text())
    shown = json.loads(command("stn-eval", run, "--json", "--device", "cpu").stdout)
    compared = {"test_error_percent", "interval_95_percent", "draws_mean_percent", "confusion"}
    for key in compared | {"test_sha256", "draws_percent", "draws_mean_interval_95_percent"}:
        assert shown[key] == summary[key]
    assert (shown["step"], shown["trained_on"], shown["distortion"]) == (10, "RTS", "RTS")
    assert shown["distort"] == summary["config"]["distort"] == DISTORTIONS["RTS"]().model_dump()
    assert shown["checkpoint"] == str(run / "last.pt")


def test_best_checkpoint_can_be_evaluated(chain, command):
    run, _ = chain
    shown = json.loads(command("stn-eval", run / "best.pt", "--json").stdout)
    assert shown["checkpoint"] == str(run / "best.pt")


def test_number_of_draws_can_be_chosen(chain, command):
    run, _ = chain
    one, three = (
        json.loads(command("stn-eval", run, "--json", "--draws", draws).stdout) for draws in (1, 3)
    )
    assert (len(one["draws_percent"]), len(three["draws_percent"])) == (1, 3)
    assert one["test_sha256"] == three["test_sha256"]
    assert "mean of" not in command("stn-eval", run, "--draws", 1).stdout


@pytest.mark.parametrize("draws", ["0", "101", "many"])
def test_impossible_number_of_draws_is_told(chain, command, draws):
    run, _ = chain
    result = command("stn-eval", run, "--draws", draws)
    assert result.exit_code == 2
    assert "--draws" in result.stderr


@pytest.mark.parametrize("name", DISTORTIONS)
def test_model_of_large_images_can_be_tested_on_every_distortion(chain, command, name):
    run, _ = chain
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
    told = refused(command("stn-eval", finished.run.path, "--distortion", "RTS"), 2)
    assert "its images are 42 x 42, this model reads 28 x 28" in told


def test_unknown_distortion_is_told_with_those_there_are(finished, command):
    told = refused(command("stn-eval", finished.run.path, "--distortion", "RST"), 2)
    assert "--distortion is 'RST'; it can be R, RTS, P, E, none" in told


@pytest.mark.parametrize("name", ["stn-eval", "stn-visualize"])
def test_missing_checkpoint_is_told(name, command, nowhere):
    assert "runs/nothing does not exist" in refused(command(name, "runs/nothing"), 4)


# stn-visualize.


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ([], "grid.png"),
        (["--picture", "means"], "means.png"),
        (["--picture", "curves"], "curves.png"),
        (["--misclassified", "--digits", "3"], "misclassified.png"),
    ],
)
def test_picture_lies_beside_the_checkpoint(chain, command, arguments, name):
    run, _ = chain
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
    chain, command, tmp_path, arguments, name
):
    run, _ = chain
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
def test_picture_can_be_of_another_format_in_a_new_folder(chain, command, tmp_path, suffix, magic):
    run, _ = chain
    out = tmp_path / "new" / f"page.{suffix}"
    assert command("stn-visualize", run, "--digits", 2, "--out", out).exit_code == 0
    assert out.read_bytes().startswith(magic)


@pytest.mark.parametrize("name", ["picture.txt", "picture", "picture.png.zip"])
def test_unknown_picture_format_is_told_before_anything_is_drawn(chain, command, nowhere, name):
    run, _ = chain
    told = refused(command("stn-visualize", run, "--out", name), 2)
    assert f"--out {name}: the name must end in .png, .pdf, .svg or .jpg" in told
    assert not Path(name).exists()


def test_no_mistakes_to_show_is_told(chain, command, monkeypatch, tmp_path):
    run, _ = chain
    none = torch.empty(0, dtype=torch.int64)
    monkeypatch.setattr(visualiser, "worst_mistakes", lambda *_: none)
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
def test_flags_that_would_be_without_effect_are_refused(chain, command, arguments, told):
    run, _ = chain
    assert told in refused(command("stn-visualize", run, *arguments), 2)


def test_curves_need_no_checkpoint(chain, command, tmp_path):
    run, _ = chain
    (tmp_path / "diverged").mkdir()
    shutil.copy(run / "metrics.jsonl", tmp_path / "diverged")
    result = command("stn-visualize", tmp_path / "diverged", "--picture", "curves")
    assert result.stdout == f"picture     {tmp_path / 'diverged' / 'curves.png'}\n"


def test_curves_of_a_lone_checkpoint_are_told_to_be_missing(chain, command, tmp_path):
    run, _ = chain
    (tmp_path / "alone.pt").write_bytes((run / "last.pt").read_bytes())
    result = command("stn-visualize", tmp_path / "alone.pt", "--picture", "curves")
    assert "metrics.jsonl cannot be read" in refused(result, 4)


# Completion, colours, version.


def test_version_is_that_of_the_package(command):
    told = command("stn-train", "--version").stdout
    assert told == f"stn_train {importlib.metadata.version('stn_train')}\n"
    assert stn_train.__version__ in told


def test_shell_completes_flags_and_config_names(tmp_path):
    completed = """
import os, sys
os.environ.update(_STN_TRAIN_COMPLETE="complete_bash", COMP_WORDS=sys.argv[1], COMP_CWORD="2")
sys.argv = ["stn-train"]
from stn_train.cli_train import run_train
run_train(prog_name="stn-train")
"""
    done = subprocess.run(
        [sys.executable, "-c", completed, "stn-train --config rts_a"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["rts_affine.yaml", "rts_affine_fcn.yaml"]


def test_nothing_is_coloured(chain, command):
    run, _ = chain
    shown = command("stn-eval", run).output + command("stn-train", "--help").output
    refusal = command("stn-train", "--config", "nowhere.yaml").output
    assert "\x1b" not in shown + refusal


# Several runs, finished runs.


def test_curves_of_runs_of_the_same_name_are_told_apart(chain, command, nowhere, monkeypatch):
    run, _ = chain
    seen = []

    def learning_curves(title, metrics):
        seen.append((title, sorted(metrics)))
        return Figure()

    monkeypatch.setattr("stn_train.charts.learning_curves", learning_curves)
    shutil.copytree(run, nowhere / "other" / run.name)
    other = Path("other") / run.name / "last.pt"
    result = command("stn-visualize", run, other, "--picture", "curves", "--out", "curves.png")
    assert result.exit_code == 0
    assert seen == [("2 runs", sorted([str(run), str(other.parent)]))]


def test_a_finished_run_of_other_settings_is_not_taken_for_this_one(chain, command):
    run, _ = chain
    same = ["--config", run / "config.yaml", "--out", run, "--resume", "auto"]
    assert "is complete" in command("stn-train", *same).stdout
    other = command("stn-train", *same, "--set", "train.learning_rate=0.5")
    assert other.exit_code == 2
    assert "train.learning_rate is 0.01 in the run, 0.5 was asked for" in other.stderr


def test_animation_lies_beside_the_run(chain, command, monkeypatch):
    run, _ = chain
    monkeypatch.setattr("stn_train.animation.SWEEP_FRAMES", 2)
    assert (
        f"animation   {run / 'rotation.gif'}"
        in command("stn-visualize", run, "--animate", "rotation.gif").stdout
    )
    unknown = command("stn-visualize", run, "--animate", "dance.gif")
    assert unknown.exit_code == 2
    assert "it can be training.gif or rotation.gif" in unknown.stderr
    missing = command("stn-visualize", run, "--animate", "training")
    assert "log.snapshots=24" in missing.stderr
