"""The trained models that ship: a name wherever a command takes a run."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import load_script

from stn_train import load_run
from stn_train.cli.options import complete_model
from stn_train.config_file import load_config
from stn_train.errors import CheckpointError
from stn_train.runs import shipped_models as shipped
from stn_train.runs.result import Result
from stn_train.tasks.examples import Examples

NAMES = shipped.shipped_models()


def test_some_ship():
    assert "rts_affine" in NAMES
    assert complete_model("rts_a") == ["rts_affine"]


@pytest.mark.parametrize("name", NAMES)
def test_model_is_that_of_its_config_and_result(name):
    run, folder = load_run(name), shipped.FOLDER / name
    assert run.config.cell == load_config(f"{name}.yaml").cell
    result = Result.read(folder / "result.json")
    assert result.cell == run.config.cell
    assert f"{result.test_percent:.2f} %" in (folder / "README.md").read_text()
    assert "command" not in result.environment
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    for key, value in run.model.state_dict().items():
        assert torch.equal(value, weights[key])


@pytest.mark.parametrize("name", NAMES)
def test_model_gets_the_first_thousand_digits_right_but_for_its_mistakes(name, all_mnist):
    run = load_run(name)
    result = Result.read(run.directory.result)
    _, test = all_mnist
    images = test[:1000]
    task = run.config.task
    # The draws are of all digits: those of the first thousand are their beginning.
    whole = Examples.for_test(task, test, 0)
    examples = Examples(task, images, tuple(draw[:1000] for draw in whole.draws))
    batch = examples.batch(slice(None))
    with torch.inference_mode():
        wrong = (run.model(batch.inputs).argmax(1) != batch.targets).nonzero().flatten().tolist()
    assert set(wrong) <= set(result.mistaken_digits)


@pytest.mark.parametrize("name", NAMES)
def test_every_file_is_as_it_was_written(name):
    folder = shipped.FOLDER / name
    lines = (folder / shipped.SUMS).read_text().splitlines()
    listed = {line.split("  ")[1] for line in lines}
    assert listed == {path.name for path in folder.iterdir()} - {shipped.SUMS}
    for each in listed:
        assert shipped.read_shipped(folder, each) == (folder / each).read_bytes()


def test_a_damaged_file_is_told(tmp_path):
    shutil.copytree(shipped.FOLDER / "rts_affine", tmp_path / "model")
    graph = tmp_path / "model" / shipped.GRAPH
    graph.write_bytes(graph.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match=r"graph\.onnx is damaged"):
        shipped.read_shipped(tmp_path / "model", shipped.GRAPH)


def test_what_lies_here_comes_before_what_ships(nowhere):
    assert shipped.located(Path("rts_affine")) == shipped.FOLDER / "rts_affine"
    Path("rts_affine").mkdir()
    assert shipped.located(Path("rts_affine")) == Path("rts_affine")


def test_commands_take_a_name_and_write_here(command, nowhere):
    shown = json.loads(command("stn-eval", "rts_affine", "--draws", "1", "--json").stdout)
    result = json.loads((shipped.FOLDER / "rts_affine" / "result.json").read_text())
    assert shown["test_sha256"] == result["test_sha256"]
    assert shown["test_error_percent"] == pytest.approx(result["test_error_percent"], abs=0.05)
    for arguments, name in (([], "grid"), (["--picture", "curves"], "curves")):
        drawn = command("stn-visualize", "rts_affine", *arguments)
        assert drawn.stdout == f"picture     rts_affine-{name}.png\n"
        assert Path(f"rts_affine-{name}.png").exists()
    assert not [*shipped.FOLDER.rglob("*.png")]


def test_unknown_name_is_told_with_those_there_are(command, nowhere):
    result = command("stn-eval", "rts_afine")
    assert result.exit_code == 4
    assert "rts_afine does not exist; the models that ship are " in result.stderr
    assert "rts_affine" in result.stderr


def test_a_finished_run_becomes_one_that_ships(finished, tmp_path):
    folder = load_script("publish").ship(finished.run.path, tmp_path)
    assert folder == tmp_path / "r_affine_fcn"
    assert {path.name for path in folder.iterdir()} == {
        *("model.safetensors", "config.yaml", "README.md", "result.json", "metrics.jsonl"),
        *(shipped.GRAPH, shipped.SUMS),
    }
    assert "command" not in json.loads((folder / "result.json").read_text())["environment"]
    assert load_run(folder).config == finished.config
    # The weights are in one file alone.
    assert (folder / shipped.GRAPH).stat().st_size < (folder / "model.safetensors").stat().st_size


def test_what_was_meant_is_told(command, nowhere):
    for folder in ("quickstart-seed1", "rts_affine-seed2"):
        (Path("runs") / folder).mkdir(parents=True)
    for typed, meant in {
        "quickstart-seed1": "runs/quickstart-seed1",  # its folder was forgotten
        "quickstart": "runs/quickstart-seed1",
        "runs/quickstart": "quickstart-seed1",
        "runs/rts_affine-seed1": "rts_affine-seed2",
    }.items():
        result = command("stn-eval", typed)
        assert result.exit_code == 4
        assert f"error: {typed} does not exist (did you mean {meant}?)" in result.stderr


def test_a_run_that_is_to_be_resumed_is_no_model_that_ships(command, nowhere):
    Path("nothing-grid.png").touch()  # what another command may have left here
    result = command("stn-train", "--resume", "nothing")
    assert (result.exit_code, result.stderr) == (4, "error: nothing does not exist\n")


def test_table_takes_a_name(command, nowhere):
    shown = json.loads(command("stn-table", "show", "rts_affine", "--json").stdout)
    (row,) = shown
    assert (row["distortion"], row["backbone"], row["transform"]) == ("RTS", "CNN", "Aff")
