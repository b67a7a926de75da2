"""`stn-train` as a user meets it; of all commands, their help, flags and choices."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main
import yaml
from conftest import COMMANDS, CPU
from PIL import Image
from typer.testing import CliRunner

import stn_train
from stn_train.cell import Cell
from stn_train.cli import export as cli_export
from stn_train.cli import model as cli_model
from stn_train.cli import train as cli_train
from stn_train.cli.options import Device
from stn_train.config_file import load_config
from stn_train.data.distortions import DISTORTIONS
from stn_train.data.source import DATA_DIR_VARIABLE
from stn_train.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DivergenceError,
    RunDirectoryError,
)
from stn_train.models.backbones import BACKBONES
from stn_train.models.network import parameter_count
from stn_train.runs.checkpoint import load_checkpoint
from stn_train.runs.directory import RunDirectory, load_run
from stn_train.runs.exporter import FORMS
from stn_train.runs.machine import choose_device
from stn_train.settings import name_and_settings
from stn_train.shipped_configs import shipped_configs
from stn_train.table.paper import TABLES
from stn_train.trainer import rehearsal
from stn_train.trainer.loop import train
from stn_train.trainer.observers import Observer
from stn_train.visualiser import charts

IMAGES = "images: MNIST, as it ships with the program\n"
"""What a training says first, on standard error."""


@pytest.fixture
def config(nowhere, tiny) -> str:
    """The tiny config as a file in an empty working directory."""
    (nowhere / "tiny.yaml").write_text(yaml.safe_dump(tiny().as_dict()))
    return "tiny.yaml"


@pytest.fixture
def _no_pictures(monkeypatch):
    """Runs leave no pictures: they take longer than the training."""
    monkeypatch.setattr(charts, "PICTURES", {})


def options(*changes: str) -> list[str]:
    """Settings as arguments."""
    return [argument for change in changes for argument in ("--set", change)]


def python(code: str, cwd: Path) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, check=True, capture_output=True, text=True
    )
    return done.stdout


# Help and flags, of all commands.

SINGLE = [name for name in COMMANDS if name != "stn-table"]
"""The commands without commands of their own."""
TABLE = [f"stn-table {name}" for name in typer.main.get_command(COMMANDS["stn-table"]).commands]


def flags(app) -> set[str]:
    return {flag for option in typer.main.get_command(app).params for flag in option.opts}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "stn-train",
            "--config --set --seed --device --out --resume --accept-changes --data-dir --json "
            "--quiet --dry-run --doctor --list-configs --version",
        ),
        ("stn-eval", "path --json --draws --poses --images --distortion --device --data-dir"),
        (
            "stn-visualize",
            "paths --image --out --picture --animate --misclassified --digits --data-dir",
        ),
        ("stn-export", "path --format --out --json --data-dir"),
        ("stn-demo", "path --out --no-open --data-dir"),
    ],
)
def test_flags_are_these(name, expected):
    completion = {"--install-completion", "--show-completion"}
    assert flags(COMMANDS[name]) - completion == set(expected.split())


@pytest.mark.parametrize("name", [*SINGLE, *TABLE])
def test_help_has_an_example_and_the_exit_codes(name, command):
    result = command(*name.split(), "--help")
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
from stn_train.cli import export, model, table, train
apps = (train.run_train, model.run_eval, model.run_visualize, table.run_table)
apps += (export.run_export, export.run_demo)
for app in apps:
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


def test_choices_are_what_can_be_made(monkeypatch):
    assert [*cli_model.Picture] == [*charts.PICTURES]
    assert [*cli_export.Form] == [*FORMS, "html", "hub"]
    for part in (torch.cuda, torch.backends.mps):
        monkeypatch.setattr(part, "is_available", lambda: True)
    named = [device for device in Device if device != Device.auto]
    assert [choose_device(device).type for device in named] == named


def test_list_shows_every_shipped_config_with_its_title(command):
    result = command("stn-train", "--list-configs")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    listed = [line.split(maxsplit=1) for line in lines]
    first, *others = [name for name, _ in listed]
    assert first == "quickstart.yaml"
    assert sorted([first, *others]) == [path.name for path in shipped_configs()]
    assert others == sorted(others)
    starts = {line.index(title) for line, (_, title) in zip(lines, listed, strict=True)}
    assert len(starts) == 1  # the titles stand in a column
    assert all(len(title) > 10 and "#" not in title for _, title in listed)


def test_version_is_that_of_the_package(command):
    told = command("stn-train", "--version").stdout
    assert told == f"stn_train {importlib.metadata.version('stn_train')}\n"
    assert stn_train.__version__ in told


def test_shell_completes_flags_and_config_names(tmp_path):
    completed = """
import os, sys
os.environ.update(_STN_TRAIN_COMPLETE="complete_bash", COMP_WORDS=sys.argv[1], COMP_CWORD="2")
sys.argv = ["stn-train"]
from stn_train.cli.train import run_train
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


def test_nothing_is_coloured(command):
    shown = command("stn-train", "--help").output + command("stn-train", "--list-configs").output
    refusal = command("stn-train", "--config", "nowhere.yaml").output
    assert "\x1b" not in shown + refusal


# Mistakes.


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


@pytest.mark.parametrize(
    "setting", ["data.validation=600", "data.training_digits=60001", "data.test_digits=10001"]
)
def test_more_images_than_there_are_is_told(command, config, nowhere, setting):
    told = refused(command("stn-train", "--config", config, "--set", setting), 2)
    assert setting.replace("=", " is ") in told
    assert not (nowhere / "runs").exists()


def test_the_font_digits_of_earlier_versions_are_told_to_be_gone(command, config, nowhere):
    told = refused(command("stn-train", "--config", config, "--set", "data.source=embedded"), 2)
    assert told.count("\n") == 1
    assert "data.source" in told
    assert "mnist" in told
    assert not (nowhere / "runs").exists()


@pytest.mark.parametrize("named_by", ["--data-dir", DATA_DIR_VARIABLE])
def test_images_that_cannot_be_had_are_told_with_where_to_put_them(
    command, config, nowhere, monkeypatch, named_by
):
    def unreachable(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    empty = nowhere / "empty"
    empty.mkdir()
    arguments = ["--config", config, *options("data.source=kmnist")]
    if named_by == "--data-dir":
        arguments += ["--data-dir", str(empty)]
    else:
        monkeypatch.setenv(DATA_DIR_VARIABLE, str(empty))
    told = refused(command("stn-train", *arguments), 3)
    assert told.count("error:") == 1  # advice is not called an error
    assert all(line.startswith("     ") for line in told.splitlines()[1:])
    assert "no network" in told
    assert str(empty / "KMNIST" / "raw") in told
    assert "--data-dir" in told
    assert DATA_DIR_VARIABLE in told
    assert not (nowhere / "runs").exists()


def test_run_directory_in_use_is_never_overwritten(command, config, nowhere):
    (nowhere / "mine").mkdir()
    (nowhere / "mine" / "precious").write_text("mine")
    told = refused(command("stn-train", "--config", config, "--out", "mine"), 6, IMAGES)
    assert "mine exists already" in told
    assert [path.name for path in (nowhere / "mine").iterdir()] == ["precious"]


def test_divergence_ends_with_its_code(command, config):
    diverging = ["train.optimizer=sgd", "train.schedule=constant", "train.learning_rate=1e30"]
    result = command("stn-train", "--config", config, *options(*diverging))
    assert result.exit_code == 5
    assert result.stderr.splitlines()[-1].startswith("error: the loss is not finite at step")


def test_learning_rate_that_no_float32_can_hold_is_told(command, config):
    settings = ["train.optimizer=sgd", "train.schedule=constant", "train.learning_rate=1e39"]
    result = command("stn-train", "--config", config, *options(*settings))
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

    monkeypatch.setattr("stn_train.trainer.loop.train", train)
    result = command("stn-train", "--config", config)
    assert refused(result, exit_code, IMAGES) == f"error: {told}\n"


# A run.


@pytest.fixture(scope="module")
def chain(tmp_path_factory, tiny):
    """A small ST-CNN on RTS, trained through the command: its folder and what was printed."""
    folder = tmp_path_factory.mktemp("chain")
    settings = tiny(
        distortion="RTS",
        backbone={"CNN": {"filters": [4, 4], "localisation_filters": 4}},
        train={"epochs": 1},
    )
    (folder / "small.yaml").write_text(yaml.safe_dump(settings.as_dict()))
    arguments = ["--config", folder / "small.yaml", "--out", folder / "run", "--seed", 3]
    arguments += ["--set", "train.log_every=2", "--device", "cpu"]
    result = CliRunner().invoke(cli_train.run_train, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return folder / "run", result


def test_training_prints_the_error_and_leaves_pictures(chain):
    run, result = chain
    summary = json.loads((run / "result.json").read_text())
    assert f"test error  {summary['test_error_percent']:.2f} %" in result.stdout
    assert f"{summary['draws_mean_percent']:.2f} % in the mean of 2 draws" in result.stdout
    assert f"run         {run}" in result.stdout
    for name in charts.pictures_of(load_run(run).config):
        picture = run / f"{name}.png"
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert f"picture     {picture}" in result.stdout


def test_overrides_and_seed_are_in_the_config_of_the_run(chain):
    run, _ = chain
    config = load_config(str(run / "config.yaml"))
    assert (config.seed, config.train.log_every) == (3, 2)
    assert (config.given["seed"], config.given["train"]["log_every"]) == (3, 2)
    assert json.loads((run / "result.json").read_text())["seed"] == 3


def test_a_setting_of_what_is_chosen_by_default_needs_no_choice(nowhere):
    Path("short.yaml").write_text("train: {epochs: 1}\n")
    default = load_config("short.yaml").cell
    changed = load_config(
        "short.yaml", [f"distortion.{default.distortion}.max_angle_deg=30", "distort.canvas_px=44"]
    )
    assert changed.cell == default
    assert (
        changed.distortion.model_dump()
        == DISTORTIONS[default.distortion](max_angle_deg=30, canvas_px=44).model_dump()
    )


def test_training_tells_where_its_images_come_from_first(chain):
    _, result = chain
    assert result.stderr.startswith(f"{IMAGES}ST-CNN Aff on RTS: ")


def test_training_tells_the_size_of_the_model_and_of_its_training(chain):
    run, result = chain
    parameters = json.loads((run / "result.json").read_text())["parameters"]
    told = rf"^model       {parameters:,} parameters, 1 x 500 images in \d+ s$"
    assert re.search(told, result.stdout, re.MULTILINE)


def test_a_picture_that_cannot_be_drawn_is_told_and_the_run_is_whole(command, config, monkeypatch):
    def collapsed(*_: object) -> None:
        raise ConfigError(["the transformer has collapsed"])

    pictures = {"poses": collapsed, "curves": charts.PICTURES["curves"]}
    monkeypatch.setattr(charts, "PICTURES", pictures)
    result = command("stn-train", "--config", config, "--out", "done")
    assert result.exit_code == 0
    assert "warning: no picture poses: the transformer has collapsed" in result.stderr
    assert Path("done/result.json").exists()
    assert Path("done/curves.png").exists()
    assert not Path("done/poses.png").exists()


@pytest.mark.usefixtures("_no_pictures")
def test_run_is_named_after_config_and_seed(command, config):
    for _ in range(2):
        result = command("stn-train", "--config", config, "--seed", 5, "--device", "cpu")
        assert result.exit_code == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == ["tiny-seed5", "tiny-seed5-2"]


@pytest.mark.usefixtures("_no_pictures")
@pytest.mark.parametrize("inside", [False, True])
def test_run_trained_again_is_named_after_its_run_directory(
    command, config, nowhere, monkeypatch, inside
):
    (nowhere / "first").mkdir()
    (nowhere / config).rename(nowhere / "first" / "config.yaml")
    if inside:
        monkeypatch.chdir(nowhere / "first")
    path = "config.yaml" if inside else "first/config.yaml"
    result = command("stn-train", "--config", path, "--seed", 6, "--device", "cpu")
    assert result.exit_code == 0
    assert [path.name for path in Path("runs").iterdir()] == ["first-seed6"]


@pytest.mark.usefixtures("_no_pictures")
def test_a_finished_run_of_other_settings_is_not_taken_for_this_one(chain, command):
    run, _ = chain
    same = ["--config", run / "config.yaml", "--out", run, "--resume", "auto"]
    assert "is complete" in command("stn-train", *same).stdout
    other = command("stn-train", *same, "--set", "train.learning_rate=0.5")
    assert other.exit_code == 2
    assert "train.learning_rate is 0.01 in the run, 0.5 was asked for" in other.stderr


# The published number.

MNIST_TABLE = TABLES["mnist"]
OUTSIDE = next(name for name in DISTORTIONS if name not in MNIST_TABLE.columns)


def paper_lines(result) -> list[str]:
    """What a training says of a published number."""
    return [line for line in result.stdout.splitlines() if "paper" in line.lower()]


@pytest.mark.usefixtures("_no_pictures")
@pytest.mark.parametrize("distortion", [*MNIST_TABLE.columns, OUTSIDE])
def test_published_error_stands_beside_that_of_the_same_cell_on_mnist(command, config, distortion):
    changes = options(f"distortion={distortion}", "train.epochs=1")
    result = command("stn-train", "--config", config, "--device", "cpu", *changes)
    assert result.exit_code == 0
    published = MNIST_TABLE.published(Cell(distortion, "FCN", "Aff"))
    where = "text of section 4.1" if distortion == "TC" else "Table 1, mean of three runs"
    told = [f"paper       {published} % ({where})"]
    assert paper_lines(result) == ([] if distortion == OUTSIDE else told)


# A folder of pictures.

SHADES = {"dark": 60, "middling": 140, "light": 250}
"""The classes, and how bright their pictures are."""


@pytest.fixture
def pictures(nowhere) -> Path:
    """A folder with 12 pictures in each of three classes, none of the size that is asked for."""
    folder = nowhere / "my pictures"
    for name, shade in SHADES.items():
        (folder / name).mkdir(parents=True)
        for number in range(12):
            picture = Image.new("RGB", (40 + number, 50), (shade, shade - number, 20))
            picture.save(folder / name / f"{number}.png")
    return folder


@pytest.mark.parametrize("colour", [False, True])
def test_a_folder_of_pictures_is_trained_on_and_not_compared_with_the_paper(
    command, config, pictures, colour
):
    source = {"folder": {"path": str(pictures), "size": 28, "colour": colour}}
    changes = options(
        f"data.source={json.dumps(source)}",
        "data.training_digits=null",
        "data.test_digits=null",
        "data.validation=6",
        "train.batch_size=8",
    )
    result = command("stn-train", "--config", config, "--out", "run", "--device", "cpu", *changes)
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines()[0] == f"images: pictures in {pictures}"
    assert result.stdout.splitlines()[0] == "ST-FCN Aff on R, folder, seed 1"
    assert paper_lines(result) == []
    summary = json.loads(Path("run/result.json").read_text())
    assert (summary["data"], summary["training_digits"], summary["test_digits"]) == (
        "folder",
        24,
        6,
    )
    assert len(summary["confusion"]) == len(SHADES)
    assert load_checkpoint(Path("run/last.pt")).images == {
        "shape": [3 if colour else 1, 28, 28],
        "classes": sorted(SHADES),
    }
    for name in charts.pictures_of(load_run("run").config):
        assert Path(f"run/{name}.png").exists()
    shown = json.loads(command("stn-eval", "run", "--json", "--device", "cpu").stdout)
    assert shown["test_sha256"] == summary["test_sha256"]
    assert shown["draws_percent"] == summary["draws_percent"]


def test_a_folder_that_is_not_there_is_told(command, config):
    source = "data.source={folder: {path: nothing here}}"
    told = refused(command("stn-train", "--config", config, "--set", source), 3)
    assert "nothing here" in told
    told = refused(command("stn-train", "--config", config, "--set", "data.source=folder"), 2)
    assert "path" in told


# Runs of the former layout.


def former_config(config: dict[str, Any]) -> dict[str, Any]:
    """The config of a run in the former layout.

    The choices were names. The settings of the distortion stood in `distort`, those of all
    backbones in `model`; what had been chosen and what followed was not told apart.
    """
    former = {key: value for key, value in config.items() if key not in ("given", "task")}
    former["distortion"], former["distort"] = name_and_settings(config["distortion"])
    former["backbone"], own = name_and_settings(config["backbone"])
    former["transform"], _ = name_and_settings(config["transform"])
    model = {}
    for backbone in BACKBONES.values():
        model |= backbone().model_dump(mode="json")
    former["model"] = model | own | config["model"]
    return former


def in_former_layout(run: RunDirectory) -> RunDirectory:
    """The run directory, rewritten as an earlier version would have left it."""
    run.config.write_text(yaml.safe_dump(former_config(yaml.safe_load(run.config.read_text()))))
    for path in (run.last, run.previous, run.best):
        if path.exists():
            checkpoint = asdict(load_checkpoint(path))
            del checkpoint["images"]
            checkpoint |= {"format": 1, "config": former_config(checkpoint["config"])}
            torch.save(checkpoint, path)
    if run.result.exists():
        result = json.loads(run.result.read_text())
        del result["task"]
        run.result.write_text(json.dumps(result | {"config": former_config(result["config"])}))
    return run


class Stops(Observer):
    """Ends the process, as it were, after a step."""

    def stepped(self, step: int) -> None:
        if step == 15:
            raise KeyboardInterrupt


@pytest.fixture
def stopped(tiny, splits, config, nowhere) -> RunDirectory:
    """A run of the tiny config that an earlier version stopped, saved after step 10."""
    with RunDirectory.claim(nowhere / "run") as run, pytest.raises(KeyboardInterrupt):
        train(tiny(), splits, run, CPU, Stops())
    return in_former_layout(run)


@pytest.mark.usefixtures("_no_pictures")
@pytest.mark.parametrize("by_config", [False, True])
def test_a_run_of_the_former_layout_is_resumed_as_if_never_stopped(
    command, stopped, finished, config, by_config
):
    arguments = ["--resume", "run"]
    if by_config:
        arguments = ["--config", config, "--resume", "auto", "--out", "run"]
    result = command("stn-train", *arguments, "--device", "cpu")
    assert result.exit_code == 0, result.output
    summary = json.loads(stopped.result.read_text())
    assert (summary["resumed_at_steps"], summary["changes"]) == ([10], [])
    resumed, whole = load_checkpoint(stopped.last), load_checkpoint(finished.run.last)
    assert all(value.equal(resumed.weights[key]) for key, value in whole.weights.items())
    assert (resumed.format, resumed.images) == (whole.format, whole.images)
    assert load_config("run/config.yaml").as_dict() | {"given": {}} == (
        finished.config.as_dict() | {"given": {}}
    )


def test_other_settings_than_in_the_former_layout_are_told_in_the_present_one(command, stopped):
    settings = ["distort.max_angle_deg=45", "model.hidden=16"]
    result = command("stn-train", "--resume", "run", *options(*settings))
    assert result.exit_code == 2
    assert "distortion.R.max_angle_deg is 90.0 in the run, 45" in result.stderr
    assert "backbone.FCN.hidden is 32 in the run, 16" in result.stderr
    assert not stopped.result.exists()


def test_a_finished_run_of_the_former_layout_is_complete(command, finished, config, nowhere):
    shutil.copytree(finished.run.path, nowhere / "done")
    in_former_layout(RunDirectory(nowhere / "done"))
    for arguments in (
        ["--config", config, "--resume", "auto", "--out", "done"],
        ["--resume", "done"],
    ):
        result = command("stn-train", *arguments)
        assert result.exit_code == 0
        assert "done is complete" in result.stdout


def test_a_run_on_the_font_digits_of_earlier_versions_is_told(command, stopped, config):
    checkpoint = torch.load(stopped.last)
    checkpoint["config"]["data"]["source"] = "embedded"
    torch.save(checkpoint, stopped.last)
    stopped.config.write_text(yaml.safe_dump(checkpoint["config"]))
    for arguments, exit_code in (
        (["stn-train", "--resume", "run"], 4),
        (["stn-eval", "run"], 4),
        (["stn-train", "--config", "run/config.yaml"], 2),
        (["stn-train", "--config", config, "--resume", "auto", "--out", "run"], 2),
    ):
        result = command(*arguments)
        assert result.exit_code == exit_code
        (told,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert "data.source: embedded" in told
        assert "use mnist" in told
        assert "type=" not in result.stderr  # as the validator's own message would have it


# A run trained again by the paper's recipe.


@pytest.fixture
def _short_rehearsals(monkeypatch):
    monkeypatch.setattr(rehearsal, "TIMED_SECONDS", 0.0)


@pytest.fixture(scope="module")
def by_recipe(tmp_path_factory) -> RunDirectory:
    """A run of the default recipe; what was set are the images and how it is measured."""
    path = tmp_path_factory.mktemp("recipe") / "run"
    settings = options("data.training_digits=10", "data.test_digits=10", "evaluate.draws=1")
    arguments = ["--config", "r_affine_fcn", "--out", str(path), "--device", "cpu", *settings]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(charts, "PICTURES", {})
        result = CliRunner().invoke(cli_train.run_train, arguments)
    assert result.exit_code == 0, result.output
    return RunDirectory(path)


@pytest.mark.usefixtures("_short_rehearsals")
@pytest.mark.parametrize("layout", ["present", "former", "former, before a setting came"])
def test_the_config_of_a_run_is_trained_again_by_the_papers_recipe(
    command, by_recipe, nowhere, layout
):
    recorded = yaml.safe_load(by_recipe.config.read_text())
    if layout != "present":
        recorded = former_config(recorded)
    if "before" in layout:
        del recorded["train"]["muon_iteration"]
    Path("config.yaml").write_text(yaml.safe_dump(recorded))
    paper = load_config("r_affine_fcn", ["recipe=paper"])
    again = load_config("config.yaml", ["recipe=paper"])
    assert (again.train, again.model, again.backbone) == (paper.train, paper.model, paper.backbone)
    assert (again.data, again.evaluate.draws) == (load_config(str(by_recipe.config)).data, 1)
    arguments = ["--config", "config.yaml", "--set", "recipe=paper", "--dry-run", "--json"]
    result = command("stn-train", *arguments, "--device", "cpu")
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    network = paper.build_network(load_checkpoint(by_recipe.last).image_format)
    assert (shown["steps"], shown["parameters"]) == (150_000, parameter_count(network))
    # Without an override it is the run's own config.
    own = load_config("config.yaml").as_dict() | {"given": {}}
    assert own == load_config(str(by_recipe.config)).as_dict() | {"given": {}}


@pytest.mark.skipif(sys.platform != "linux", reason="other OpenMPs tell their policy otherwise")
def test_a_commands_threads_sleep_while_they_wait():
    code = "from stn_train.cli.options import guarded; guarded(lambda: __import__('torch'))()"
    told = {**os.environ, "OMP_DISPLAY_ENV": "true"}
    told.pop("OMP_WAIT_POLICY", None)

    def policy(environment: dict[str, str]) -> str:
        line = [sys.executable, "-c", code]
        done = subprocess.run(line, env=environment, capture_output=True, text=True, check=True)
        found = re.search(r"OMP_WAIT_POLICY *= *'(\w+)'", done.stderr)
        assert found, done.stderr
        return found.group(1)

    assert policy(told) == "PASSIVE"
    assert policy(told | {"OMP_WAIT_POLICY": "active"}) == "ACTIVE"
