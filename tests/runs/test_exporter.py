"""Exported files: what another program computes from them is what the model computes."""

import json
import sys

import pytest
import torch
from conftest import untrained
from torch import nn

from stn_train.data.images import ImageFormat
from stn_train.errors import ConfigError, StnError
from stn_train.models.backbones import BACKBONES
from stn_train.runs import exporter
from stn_train.runs.exporter import FORMS, export

COLOUR = ImageFormat((3, 32, 32), ("cat", "dog"))
PICTURES = {"source": {"folder": {"path": "pictures", "size": 32, "colour": True}}}


RUNS = {
    "CNN with Aff": {"distortion": "RTS", "backbone": "CNN", "transform": "Aff"},
    "FCN with Proj": {"distortion": "P", "transform": "Proj"},
    "FCN with TPS": {"distortion": "E", "transform": "TPS"},
    "FCN with PiecewiseAffine": {"distortion": "E", "transform": "PiecewiseAffine"},
    "FCN with Rigid, bicubic": {"transform": "Rigid", "model": {"sampling": "bicubic"}},
    "FCN": {"transform": "none"},
    "three channels": {"backbone": "CNN", "data": PICTURES, "images": COLOUR},
    "several transformers": {
        "task": "addition",
        "backbone": "CNN",
        "transformers": {"front": {"count": 2}, "after_1": {"transform": "Proj"}},
    },
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("choices", RUNS.values(), ids=RUNS.keys())
def test_file_gives_the_models_outputs_in_any_batch(form, choices, tmp_path):
    run = untrained(tmp_path, **choices)
    path = tmp_path / "made" / f"model.{form}"
    assert export(run, form, path) < 1e-4
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    exported = FORMS[form][1](path)
    images = torch.rand(7, *run.config.task.shape(run.format))
    with torch.inference_mode():
        torch.testing.assert_close(exported(images), run.model(images), atol=1e-4, rtol=0)


class Normed(BACKBONES["FCN"]):  # type: ignore[misc]
    """One that computes something else in training mode."""

    def classifier(self, shape, outputs):
        return nn.Sequential(nn.BatchNorm2d(shape[0]), super().classifier(shape, outputs))


@pytest.mark.parametrize("form", FORMS)
def test_file_is_of_the_model_in_evaluation_mode(form, tmp_path, monkeypatch):
    monkeypatch.setitem(BACKBONES, "normed", Normed)
    run = untrained(tmp_path, backbone={"normed": {"dropout": 0.5}})
    run.model.train()
    run.model(torch.rand(50, 1, 28, 28))  # moves the statistics
    assert export(run, form, tmp_path / f"model.{form}") < 1e-4
    assert not run.model.training


@pytest.mark.parametrize("by", [1.0, float("nan")])
def test_a_file_that_gives_something_else_is_not_written(by, tmp_path, monkeypatch):
    run = untrained(tmp_path)
    write, load = FORMS["pt2"]

    def wrong(path):
        good = load(path)
        return lambda images: good(images) + (by if len(images) == 5 else 0)

    monkeypatch.setitem(FORMS, "pt2", (write, wrong))
    with pytest.raises(StnError, match="off by"):
        export(run, "pt2", tmp_path / "model.pt2")
    assert not (tmp_path / "model.pt2").exists()


def test_missing_packages_are_told(tmp_path, monkeypatch):
    run = untrained(tmp_path)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigError, match="pip install onnx onnxscript onnxruntime"):
        export(run, "onnx", tmp_path / "model.onnx")


def test_command_tells_file_and_difference(finished, command, tmp_path, monkeypatch):
    monkeypatch.setattr(exporter, "BATCHES", (2,))
    arguments = [finished.run.path, "--format", "pt2", "--out", tmp_path / "m.pt2"]
    result = command("stn-export", *arguments)
    assert result.exit_code == 0
    assert f"exported    {tmp_path / 'm.pt2'}, 0." in result.stdout
    arguments += ["--json"]
    report = json.loads(command("stn-export", *arguments).stdout)
    assert report["input"] == [None, 1, 28, 28]
    assert report["largest_difference"] < 1e-4
    refused = command("stn-export", finished.run.path, "--out", tmp_path / "model.pt2")
    assert refused.exit_code == 2
    assert "the name must end in .onnx" in refused.stderr
