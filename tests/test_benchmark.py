"""The benchmark compares like with like."""

import math
import subprocess
import sys

import pytest
import torch
from conftest import load_script
from torch import nn

from stn_train.data import Splits
from stn_train.models import build_model

benchmark = load_script("benchmark")
CPU = torch.device("cpu")
MODELS = [(backbone, transform) for backbone in ("FCN", "CNN") for transform in ("none", "Aff")]


def weights_in_order(transformer, classifier):
    return [*(transformer.parameters() if transformer else ()), *classifier.parameters()]


@pytest.mark.parametrize("distortion", ["R", "RTS"])
@pytest.mark.parametrize(("backbone", "transform"), [*MODELS, ("CNN", "TPS"), ("CNN", "Proj")])
def test_plain_model_is_the_same_function(backbone, transform, distortion):
    torch.manual_seed(0)
    model = build_model(benchmark.model_config(backbone, transform, "float32", distortion))
    if model.transformer is not None:
        nn.init.normal_(model.transformer.regression.weight, std=0.1)
    plain = benchmark.Plain(model)
    own = weights_in_order(model.transformer, model.classifier)
    for weight, value in zip(
        weights_in_order(plain.localisation, plain.classifier), own, strict=True
    ):
        weight.data = value.data
    assert not any(isinstance(part, benchmark.SingleChannelConv2d) for part in plain.modules())
    side = 42 if distortion == "RTS" else 28
    images = torch.rand(4, 1, side, side)
    torch.testing.assert_close(plain(images), model(images), rtol=1e-4, atol=1e-5)


def test_plain_rotation_rotates_by_up_to_90_degrees():
    torch.manual_seed(0)
    corner = torch.zeros(200, 1, 28, 28)
    corner[:, :, 3:5, 13:15] = 1  # above the middle
    rows, columns = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    rotated = benchmark.plain_rotation(corner).squeeze(1)
    mass = rotated.sum((1, 2))
    right = (rotated * (columns - 13.5)).sum((1, 2)) / mass
    up = (rotated * (13.5 - rows)).sum((1, 2)) / mass
    angle_deg = torch.atan2(right, up).rad2deg()
    assert -91 < angle_deg.min() < -80
    assert 80 < angle_deg.max() < 91


def test_operations_are_those_of_the_layers(splits):
    config = benchmark.model_config("CNN", "none", "float32")
    training = benchmark.training_of(config, splits, CPU)
    batch = training.draw_pass(0).batches(100)[0]
    first, second, last = 20 * 20 * 64 * 81, 4 * 4 * 64 * 64 * 49, 64 * 4 * 10
    # Twice for multiply and add; forward and both gradients, save that of the images.
    expected = 2 * 100 * (2 * first + 3 * second + 3 * last)
    counted = benchmark.flops(training, batch)
    assert math.isclose(counted, expected, rel_tol=0.01)  # and the distortion's matrix product


def test_every_part_of_a_step_is_timed(splits):
    training = benchmark.training_of(benchmark.model_config("CNN", "Aff", "auto"), splits, CPU)
    batch = training.draw_pass(0).batches(50)[0]
    works = benchmark.part_works(training, batch)
    assert [*works] == ["distortion", "transformer", "classifier"]
    for part in (training.model.transformer, training.model.classifier):
        assert all(weight.grad is None for weight in part.parameters())
    works["transformer"]()
    assert all(weight.grad is not None for weight in training.model.transformer.parameters())
    assert all(weight.grad is None for weight in training.model.classifier.parameters())
    works["classifier"]()
    assert all(weight.grad is not None for weight in training.model.classifier.parameters())


@pytest.mark.parametrize("name", ["R", "RTS", "P", "E"])
def test_torchvision_peer_gives_images_of_the_same_size(name, splits):
    sample, label = benchmark.PerSample(splits.training, name)[0]
    side = benchmark.DISTORTIONS[name]().canvas_px
    assert sample.shape == (1, side, side)
    assert label == splits.training.labels[0]


def test_contenders_take_turns(monkeypatch):
    monkeypatch.setattr(benchmark, "TURN", 0.0)
    calls = []
    watch = benchmark.Stopwatch(CPU, 0.0)
    seconds = watch.medians(a=lambda: calls.append("a"), b=lambda: calls.append("b"))
    assert calls[-6:] == ["a", "b"] * 3
    assert all(0 < each < 0.1 for each in seconds.values())


def test_growth_is_measured_on_parts_of_the_digits(splits, monkeypatch):
    monkeypatch.setattr(benchmark, "GROWTH", (100, 400))
    rows = benchmark.growth_rows(Splits(*splits), CPU)
    assert [row.what for row in rows] == [
        f"ST-FCN Aff, a pass over {count} digits" for count in (100, 400)
    ]
    assert all(row.ours > 0 for row in rows)


def test_the_first_step_ends_the_command(tmp_path):
    config = ["--config", "quickstart", "--set", "train.steps=1000", "--out", str(tmp_path / "run")]
    line = [sys.executable, "-c", benchmark.FIRST_STEP, *config]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "run" / "result.json").exists()
