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

from stn_train.config import Config
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


def shipped(backbone: str, transform: str, distortion: str = "R", **train: object) -> Config:
    config = benchmark.shipped_config(backbone, transform, distortion)
    return config.model_copy(update={"train": config.train.model_copy(update=train)})


@pytest.mark.parametrize(
    ("backbone", "transform", "distortion"), [*with_distortion("R"), *with_distortion("RTS")]
)
def test_plain_model_is_the_same_function(backbone, transform, distortion):
    torch.manual_seed(0)
    config = benchmark.shipped_config(backbone, transform, distortion)
    network = config.build_network(MNIST)
    for transformer in network.transformers.values():
        nn.init.normal_(transformer.regression.weight, std=0.03)
    plain = benchmark.plain(network)
    ours = (benchmark.Convolution, benchmark.MaxPooling, SpatialTransformer)
    assert not any(isinstance(part, ours) for part in plain.modules())
    for weight, plain_weight in zip(network.parameters(), plain.parameters(), strict=True):
        with torch.no_grad():
            plain_weight.copy_(weight)
    images = torch.rand(4, *config.task.shape(MNIST))
    torch.testing.assert_close(plain(images), network(images), rtol=1e-4, atol=1e-4)


def test_plain_model_has_weights_of_its_own():
    network = benchmark.shipped_config("CNN", "Aff").build_network(MNIST)
    shared = {weight.data_ptr() for weight in network.parameters()}
    assert not shared & {weight.data_ptr() for weight in benchmark.plain(network).parameters()}


@pytest.mark.parametrize("backbone", ["FCN", "CNN", "tutorial"])
def test_plain_run_trains_every_weight(splits, backbone):
    state = benchmark.state_of(shipped(backbone, "Aff"), splits, CPU)
    run = benchmark.PlainRun(state)
    batch = state.draw_pass(0).batches(50)[0]
    inputs = state.task.batch(splits.training, batch.order, batch.draws)
    before = [weight.clone() for weight in run.model.parameters()]
    for _ in range(3):  # at the identity, the first layers of the localisation have no gradient
        run.take_step(inputs)
    after = run.model.parameters()
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    names = [type(optimizer).__name__ for optimizer in run.optimizers]
    assert names == (["AdamW"] if backbone == "tutorial" else ["AdamW", "Muon"])


def test_plain_muon_is_ours_where_all_hidden_layers_are_matrices(splits):
    state = benchmark.state_of(shipped("FCN", "none", precision="float32"), splits, CPU)
    state.optimizer.precision = torch.bfloat16  # torch's multiplies in nothing else
    run = benchmark.PlainRun(state)
    weights = [weight.clone() for weight in state.model.state_dict().values()]
    run.model.load_state_dict(dict(zip(run.model.state_dict(), weights, strict=True)))
    rate = state.schedule.get_last_lr()[0]
    for optimizer in run.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
    batch = state.draw_pass(0).batches(50)[0]
    run.take_step(state.task.batch(splits.training, batch.order, batch.draws))
    state.take_step(batch)
    for ours, theirs in zip(state.model.parameters(), run.model.parameters(), strict=True):
        # Ours spares biases the decay; a step is of the order of the rate.
        torch.testing.assert_close(ours, theirs, atol=0.02 * rate, rtol=0)


def test_operations_are_those_of_the_layers(splits):
    state = benchmark.state_of(shipped("CNN", "none", optimizer="adamw"), splits, CPU)
    batch = state.draw_pass(0).batches(100)[0]
    first, second, last = 20 * 20 * 48 * 81, 4 * 4 * 128 * 48 * 49, 128 * 4 * 10
    # Twice for multiply and add; forward and both gradients, save that of the images.
    expected = 2 * 100 * (2 * first + 3 * second + 3 * last)
    counted = benchmark.flops(state, batch)
    assert math.isclose(counted, expected, rel_tol=1e-6)


def test_operations_of_the_optimiser_are_counted(splits):
    state = benchmark.state_of(shipped("FCN", "none"), splits, CPU)
    counted = benchmark.optimizer_flops(state)
    matrices = ((256, 784), (256, 256))
    products = sum(5 * (2 * rows**2 * columns + rows**3) for rows, columns in matrices)
    assert counted == 2 * products


@pytest.mark.parametrize("distortion", ["R", "RTS"])  # without and with a pooling stage
def test_a_step_in_parts_is_a_step(splits, distortion):
    config = shipped("CNN", "Aff", distortion)
    state, other = (benchmark.state_of(config, splits, CPU) for _ in range(2))
    batch = state.draw_pass(0).batches(50)[0]
    parts = benchmark.step_in_parts(state, batch)
    other.take_step(batch)
    assert (*parts,) == benchmark.PARTS
    assert all(seconds > 0 for seconds in parts.values())
    for ours, theirs in zip(state.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    modules = [*state.model.modules()]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def test_a_step_without_a_transformer_has_no_looks(splits):
    state = benchmark.state_of(shipped("FCN", "none"), splits, CPU)
    parts = benchmark.step_in_parts(state, state.draw_pass(0).batches(50)[0])
    assert {*parts} == {*benchmark.PARTS} - {"looks"}


def test_all_that_is_registered_is_measured():
    measured = {config.cell for config in benchmark.shipped_configs()}
    assert {cell for cell in TABLES["mnist"].cells if cell.distortion in ("R", "RTS")} <= measured
    assert {cell.transform for cell in measured} == {"none", *benchmark.TRANSFORMS}
    assert {cell.backbone for cell in measured} == {*benchmark.BACKBONES}


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
@pytest.mark.parametrize("distortion", ["R", "RTS"])
def test_a_step_is_measured_beside_its_peers_with_its_parts(splits, distortion):
    loader = benchmark.per_sample_loader(splits.training, "R")
    matmul = {torch.float32: 1e9, torch.bfloat16: 1e9}
    watch = benchmark.Stopwatch(CPU, 0.0)
    narrow = {"hidden": 64, "localisation_hidden": 64}  # some processors emulate bfloat16
    config = Config.model_validate(
        {
            "distortion": distortion,
            "backbone": {"FCN": narrow},
            "transform": "Aff",
            "train": {"precision": "bfloat16"},
        }
    )
    row = benchmark.step_row(config, splits, loader, matmul, watch)
    assert row.what == f"step, ST-FCN Aff on {distortion}, bfloat16"
    assert row.ours > 0
    assert {*row.peers} - {"tutorial"} == {"float32", "autocast"}
    assert ("tutorial" in row.peers) == (distortion == "R")  # the loader rotates
    matrix_rate, *parts = row.shares
    assert matrix_rate == "of the matrix rate"
    assert parts == [f"of the step: {part}" for part in benchmark.PARTS]
    assert sum(row.shares[part] for part in parts) == pytest.approx(1)
    assert benchmark.table([row]).startswith(row.what)


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
