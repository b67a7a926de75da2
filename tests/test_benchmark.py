"""The benchmark compares like with like."""

import json
import math
import subprocess
import sys

import pytest
import torch
from conftest import CPU, ROOT, load_script
from torch import nn
from typer.testing import CliRunner

from stn_train.data.images import ImageFormat
from stn_train.data.sources import Splits
from stn_train.models.spatial_transformer import SpatialTransformer
from stn_train.table.paper import TABLES

benchmark = load_script("benchmark")

MODELS = [*TABLES["mnist"].rows]
"""The backbone and the transform of each."""
MNIST = ImageFormat((1, 28, 28), tuple("0123456789"))


def with_distortion(distortion: str) -> list:
    """The models' cells on a distortion."""
    return [(*model, distortion) for model in MODELS]


@pytest.mark.parametrize(
    ("backbone", "transform", "distortion"), [*with_distortion("R"), *with_distortion("RTS")]
)
def test_plain_model_is_the_same_function(backbone, transform, distortion):
    torch.manual_seed(0)
    config = benchmark.model_config(backbone, transform, "float32", distortion)
    network = config.build_network(MNIST)
    for transformer in network.transformers.values():
        nn.init.normal_(transformer.regression.weight, std=0.1)
    plain = benchmark.plain(network)
    ours = (benchmark.Convolution, SpatialTransformer)
    assert not any(isinstance(part, ours) for part in plain.modules())
    for weight, plain_weight in zip(network.parameters(), plain.parameters(), strict=True):
        with torch.no_grad():
            plain_weight.copy_(weight)
    images = torch.rand(4, *config.task.shape(MNIST))
    torch.testing.assert_close(plain(images), network(images), rtol=1e-4, atol=1e-5)


def test_plain_model_has_weights_of_its_own():
    network = benchmark.model_config("CNN", "Aff", "float32").build_network(MNIST)
    shared = {weight.data_ptr() for weight in network.parameters()}
    assert not shared & {weight.data_ptr() for weight in benchmark.plain(network).parameters()}


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
    state = benchmark.state_of(benchmark.model_config("CNN", "none", "float32"), splits, CPU)
    batch = state.draw_pass(0).batches(100)[0]
    first, second, last = 20 * 20 * 64 * 81, 4 * 4 * 64 * 64 * 49, 64 * 4 * 10
    # Twice for multiply and add; forward and both gradients, save that of the images.
    expected = 2 * 100 * (2 * first + 3 * second + 3 * last)
    counted = benchmark.flops(state, batch)
    assert math.isclose(counted, expected, rel_tol=0.01)  # and the distortion's matrix product


@pytest.mark.parametrize("distortion", ["R", "RTS"])  # without and with a pooling stage
def test_every_part_of_a_step_is_timed(splits, distortion):
    config = benchmark.model_config("CNN", "Aff", "auto", distortion)
    state = benchmark.state_of(config, splits, CPU)
    batch = state.draw_pass(0).batches(50)[0]
    works = benchmark.part_works(state, batch)
    assert [*works] == ["distortion", "transformer", "classifier"]
    transformer, classifier = state.model.transformer, state.model.classifier
    assert not has_gradients(state.model)
    works["distortion"]()
    assert not has_gradients(state.model)
    works["transformer"]()
    assert all(weight.grad is not None for weight in transformer.parameters())
    assert not has_gradients(classifier)
    works["classifier"]()
    assert all(weight.grad is not None for weight in classifier.parameters())


def has_gradients(module: nn.Module) -> bool:
    return any(weight.grad is not None for weight in module.parameters())


def test_a_step_without_a_transformer_has_two_parts(splits):
    state = benchmark.state_of(benchmark.model_config("FCN", "none", "auto"), splits, CPU)
    works = benchmark.part_works(state, state.draw_pass(0).batches(50)[0])
    assert [*works] == ["distortion", "classifier"]
    works["classifier"]()
    assert has_gradients(state.model.classifier)


@pytest.mark.parametrize("name", TABLES["mnist"].columns)
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


@pytest.fixture
def _quick(monkeypatch):
    """Little is timed, and no DataLoader starts workers."""

    def loader(images, distortion):
        samples = benchmark.PerSample(images[:20], distortion)
        return benchmark.DataLoader(samples, 10)

    monkeypatch.setattr(benchmark, "TURN", 0.0)
    monkeypatch.setattr(benchmark, "BATCH", 10)
    monkeypatch.setattr(benchmark, "per_sample_loader", loader)


@pytest.mark.usefixtures("_quick")
def test_distortions_are_measured_beside_their_peers(splits):
    rows = benchmark.distortion_rows(splits.training, benchmark.Stopwatch(CPU, 0.0))
    assert [row.what for row in rows] == [f"distortion {name}" for name in ("R", "RTS", "P", "E")]
    for row in rows:
        assert row.ours > 0
        assert {"torchvision"} <= row.peers.keys() <= {"torchvision", "kornia"}


@pytest.mark.usefixtures("_quick")
def test_steps_are_measured_in_each_precision_with_their_parts(splits):
    loader = benchmark.per_sample_loader(splits.training, "R")
    matmul = {"float32": 1e9, "bfloat16": 1e9}
    watch = benchmark.Stopwatch(CPU, 0.0)
    rows = benchmark.model_rows("FCN", "Aff", "bfloat16", splits, loader, matmul, watch)
    assert [row.what for row in rows] == ["ST-FCN Aff, bfloat16", "ST-FCN Aff, float32"]
    for row in rows:
        assert row.ours > 0
        assert row.peers.keys() == {"plain", "tutorial"}
        parts = {name for name in row.shares if name.startswith("of the step: ")}
        assert {name.removeprefix("of the step: ") for name in parts} == {
            "distortion",
            "transformer",
            "classifier",
        }
    table = benchmark.table(rows).splitlines()
    assert [line.split(",")[0] for line in table] == ["ST-FCN Aff", "ST-FCN Aff"]


def test_growth_is_measured_on_parts_of_the_images(splits, monkeypatch):
    monkeypatch.setattr(benchmark, "GROWTH", (100, 400))
    rows = benchmark.growth_rows(Splits(*splits), CPU)
    assert [row.what for row in rows] == [
        f"ST-FCN Aff, a pass over {count} digits" for count in (100, 400)
    ]
    assert all(row.ours > 0 for row in rows)


def test_rows_are_printed_as_json_without_the_command(monkeypatch):
    row = benchmark.Row("a step", "images/s", 3.0, {"plain": 2.0})
    for name in ("process", "together", "distortion", "step", "growth"):
        monkeypatch.setattr(benchmark, f"{name}_rows", lambda *_: [row])
    app = benchmark.typer.Typer()
    app.command()(benchmark.main)
    result = CliRunner().invoke(app, ["--json"])
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert [each["what"] for each in shown["rows"]] == ["a step"] * 5
    assert "command" not in shown["environment"]
    assert "torch" in shown["environment"]
    assert "1.5 x plain" in CliRunner().invoke(app, []).stdout


def test_the_first_step_ends_the_command(tmp_path):
    config = ["--config", "quickstart", "--set", "train.steps=1000", "--out", str(tmp_path / "run")]
    line = [sys.executable, "-c", benchmark.FIRST_STEP, *config]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_process_takes_steps_for_a_while():
    arguments = ["FCN", "1", "cpu", "0.1"]
    line = [sys.executable, "-c", benchmark.STEPS_FOR_A_WHILE, *arguments]
    done = subprocess.run(line, cwd=ROOT / "scripts", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0
