"""The paper's birds from the command line, on a tiny set in the format of the real one."""

import json
import shutil

import pytest
import torch
import yaml
from conftest import ROOT, load_script

from stn_train.data.images import Images
from stn_train.data.sources import DataSettings, load_splits
from stn_train.evaluator import evaluate
from stn_train.models.backbones import Inception
from stn_train.models.inception import Trunk
from stn_train.runs.checkpoint import load_checkpoint
from stn_train.runs.directory import load_run
from stn_train.runs.result import Result
from stn_train.table.paper import TABLES, published_for, table_for
from stn_train.tasks.examples import MOST_VALUES_AT_ONCE, Examples, at_once
from stn_train.tasks.recognition import Recognition

BIRDS = TABLES["birds"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """54 training and 18 test pictures that scripts/made_birds.py draws."""
    folder = tmp_path_factory.mktemp("birds") / "made_birds"
    load_script("made_birds").main(folder, training=6, test=2)
    return folder


def tiny(folder, **changes) -> dict:
    """birds_made.yaml, and what makes a run of it take a second."""
    config = yaml.safe_load((ROOT / "configs" / "birds_made.yaml").read_text())
    config["data"]["source"]["cub_format"] = {"path": str(folder), "size": 40}
    config["distortion"]["crop"]["canvas_px"] = 36
    config["backbone"]["Inception"] |= {"width": 0.05, "blocks": 2}
    config["transformers"]["front"] |= {"st_output_px": 18, "localisation_pool": 1}
    config["train"] |= {"epochs": 2, "batch_size": 18, "log_every": 1, "ema_decay": 0.9}
    config["train"] |= {"precision": "float32"}
    return config | changes


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """A run of two passes, and what was printed of it."""
    from typer.testing import CliRunner

    from stn_train.cli import train as cli_train

    here = tmp_path_factory.mktemp("trained")
    (here / "tiny.yaml").write_text(yaml.safe_dump(tiny(folder)))
    arguments = ["--config", str(here / "tiny.yaml"), "--out", str(here / "run")]
    result = CliRunner().invoke(
        cli_train.run_train, [*arguments, "--data-dir", str(here / "sets"), "--device", "cpu"]
    )
    assert result.exit_code == 0, result.output
    return here / "run", result.output


def test_the_drawn_set_is_in_the_format_of_the_real_one(folder):
    settings = {"source": {"cub_format": {"path": str(folder), "size": 32}}}
    splits = load_splits(DataSettings.model_validate(settings), folder.parent)
    assert splits.test.classes[:2] == ("bars bars", "bars lines")
    for images, each in ((splits.training, 6), (splits.test, 2)):
        assert torch.bincount(images.labels).tolist() == [each] * 9
        assert len(images.pixels.flatten(1).unique(dim=0)) == len(images)


def test_a_run_is_measured_by_what_is_right(trained):
    path, told = trained
    result = json.loads((path / "result.json").read_text())
    assert "test accuracy" in told
    right = sum(result["confusion"][label][label] for label in range(9))
    assert result["test_accuracy_percent"] == pytest.approx(100 * right / 18)
    assert len(result["mistaken_digits"]) == 18 - right
    assert result["distortion"] == "crop36"
    assert result["localisation_parameters"] < result["parameters"]
    assert {file.name for file in path.iterdir()} >= {"grid.png", "means.png", "classes.png"}


def test_statistics_of_batch_normalisation_are_saved_and_of_the_newest_step(trained):
    path, _ = trained
    checkpoint = load_checkpoint(path / "last.pt")
    counted = [name for name in checkpoint.weights if name.endswith("num_batches_tracked")]
    assert counted
    assert {int(checkpoint.weights[name]) for name in counted} == {6}  # 2 passes of 3 steps
    model = load_run(path).model
    trunks = [module for module in model.modules() if isinstance(module, Trunk)]
    assert len(trunks) == 3
    assert all(trunk.conv1.bn.running_mean.any() for trunk in trunks)
    first, second = model.transformers.values()
    assert first.localisation is second.localisation
    with torch.no_grad():  # loaded weights reach both
        assert (
            first.localisation[0]
            .conv1.conv.weight.eq(
                checkpoint.weights["transformer.1.localisation.0.conv1.conv.weight"]
            )
            .all()
        )


def test_a_saved_run_is_measured_again(trained, command):
    path, _ = trained
    result = Result.read(path / "result.json")
    sets = ["--data-dir", path.parent / "sets"]
    report = json.loads(command("stn-eval", path, "--json", *sets).stdout)
    assert report["test_accuracy_percent"] == result.test_percent
    assert report["test_sha256"] == result.test_sha256


def test_a_resumed_run_needs_no_pretrained_weights_and_ends_alike(
    trained, tmp_path, command, monkeypatch
):
    path, _ = trained
    again = shutil.copytree(path, tmp_path / "again")
    (again / "result.json").unlink()
    (again / "previous.pt").replace(again / "last.pt")  # after the first of two passes

    def refuse(*_: object) -> None:
        raise AssertionError("weights were asked for")

    monkeypatch.setattr(Inception, "load_pretrained", refuse)
    sets = ["--data-dir", path.parent / "sets", "--device", "cpu"]
    resumed = command("stn-train", "--resume", again, *sets)
    assert resumed.exit_code == 0, resumed.output
    ends = [load_checkpoint(run / "last.pt").weights for run in (path, again)]
    assert all(ends[0][name].equal(ends[1][name]) for name in ends[0])


def test_published_values_stand_beside_the_real_set_alone(trained):
    path, _ = trained
    result = Result.read(path / "result.json")
    assert table_for(result) is None
    assert not BIRDS.holds(result)
    config = load_run(path).config
    assert published_for(config) is None


def test_the_table_is_shown_and_compared_by_what_is_right(trained, tmp_path, command):
    """As if the run had been one of the real set."""
    path, _ = trained
    result = json.loads((path / "result.json").read_text())
    real = {"data": "cub", "distortion": "crop448"}
    real |= {"test_accuracy_percent": 85.5, "draws_percent": [85.5], "draws_mean_percent": 85.5}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text(json.dumps(result | real))
    shown = command("stn-table", "show", tmp_path, "--table", "birds").stdout
    assert "2xST-Inception Attention  crop448" in shown
    assert "accuracy in %" in shown
    assert "+1.60" in shown
    markdown = command("stn-table", "show", tmp_path, "--table", "birds", "--markdown").stdout
    assert "| 2xST-Inception Attention |  | 85.50 (83.9, +1.60) |" in markdown
    none = command("stn-table", "show", path.parent, "--table", "birds")
    assert "not in this table: 2xST-Inception Attention on crop36" in none.output


# Memory.


class Counts(torch.nn.Module):
    """Notes how many images it is given at once."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def forward(self, images):
        self.seen.append(len(images))
        return images.new_zeros(len(images), 2)


@pytest.mark.parametrize(("side", "most"), [(28, 500), (224, 111), (448, 27)])
def test_large_images_are_measured_a_few_at_a_time(side, most):
    pixels = torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(112, 3, side, side)
    images = Images(pixels, torch.arange(112) % 2, ("one", "two"))
    task = Recognition()
    task = task.with_distortion(task.distortion.fitted(side))
    assert at_once(task, images.format) == most
    assert most * 3 * side**2 <= MOST_VALUES_AT_ONCE
    examples = Examples.for_test(task, images[:60], 0)
    covered = [index for part in examples.parts() for index in range(60)[part]]
    assert covered == [*range(60)]
    if side == 448:
        network = Counts()
        assert evaluate(network, task, images[:60], draws=1).count == 60
        assert network.seen == [27, 27, 6]
