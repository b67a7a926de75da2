"""Exported files: what another program computes from them is what the model computes."""

import json
import sys

import pytest
import torch
from test_visualiser import fresh_run

from stn_train import exporter
from stn_train.errors import ConfigError, StnError
from stn_train.exporter import FORMS, export

CELLS = [("RTS", "CNN", "Aff"), ("P", "FCN", "Proj"), ("E", "FCN", "TPS"), ("R", "FCN", "none")]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cell", CELLS, ids="-".join)
def test_file_gives_the_models_logits_in_any_batch(form, cell, tmp_path):
    distortion, backbone, transform = cell
    run, _ = fresh_run(tmp_path, distortion=distortion, backbone=backbone, transform=transform)
    if run.model.transformer is not None:
        torch.nn.init.normal_(run.model.transformer.regression.weight, std=0.02)
    path = tmp_path / "made" / f"model.{form}"
    assert export(run, form, path) < 1e-4
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    exported = FORMS[form][1](path)
    images = torch.rand(7, 1, run.config.distort.canvas_px, run.config.distort.canvas_px)
    with torch.inference_mode():
        torch.testing.assert_close(exported(images), run.model(images), atol=1e-4, rtol=0)


@pytest.mark.parametrize("by", [1.0, float("nan")])
def test_a_file_that_gives_something_else_is_not_written(by, tmp_path, monkeypatch):
    run, _ = fresh_run(tmp_path, distortion="R", backbone="FCN")
    write, load = FORMS["pt2"]

    def wrong(path):
        good = load(path)
        return lambda images: good(images) + (by if len(images) == 5 else 0)

    monkeypatch.setitem(FORMS, "pt2", (write, wrong))
    with pytest.raises(StnError, match="off by"):
        export(run, "pt2", tmp_path / "model.pt2")
    assert not (tmp_path / "model.pt2").exists()


def test_missing_packages_are_told(tmp_path, monkeypatch):
    run, _ = fresh_run(tmp_path, distortion="R", backbone="FCN")
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
