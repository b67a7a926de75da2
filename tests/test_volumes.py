"""Volumes in networks, configs, commands and pictures."""

import json

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn

from stn_train.config import Config
from stn_train.config_errors import ConfigSource, check
from stn_train.data.images import ImageFormat
from stn_train.errors import ConfigError
from stn_train.geometry.grids import AffineGrid
from stn_train.geometry.plane import sample
from stn_train.models.spatial_transformer import SpatialTransformer
from stn_train.runs.directory import load_run
from stn_train.visualiser.charts import PICTURES, pictures_of

MNIST = ImageFormat((1, 28, 28), tuple("0123456789"))
SIZE = (6, 7, 10)
"""(D, H, W)."""


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# The layer.


def localisation(channels, pool=1):
    count = channels * torch.Size(side // pool for side in SIZE).numel()
    return nn.Sequential(nn.Flatten(), nn.Linear(count, 5), nn.Tanh())


@pytest.mark.parametrize(("channels", "pool", "iterations"), [(1, 1, 1), (3, 2, 1), (2, 3, 2)])
def test_a_new_transformer_returns_volumes_unchanged(channels, pool, iterations):
    network = localisation(channels, pool)
    transformer = SpatialTransformer(network, 5, AffineGrid(3), None, iterations, pool)
    volumes = torch.rand(2, channels, *SIZE)
    torch.testing.assert_close(transformer(volumes), volumes, rtol=0, atol=2e-6)


def test_warp_is_torchs_affine_grid_and_grid_sample():
    transformer = SpatialTransformer(localisation(2, 3), 5, AffineGrid(3), (3, 5, 4), 2, 3)
    nn.init.normal_(transformer.regression.weight, std=0.1)
    volumes = torch.rand(2, 2, *SIZE)

    def predicted(maps):
        return transformer.regression(transformer.localisation(maps)).view(-1, 3, 4)

    def warped(theta, size):
        grid = F.affine_grid(theta, [2, 2, *size], align_corners=False)
        return F.grid_sample(volumes, grid, align_corners=False), grid

    first = predicted(F.avg_pool3d(volumes, 3))
    second = predicted(warped(first, (2, 2, 3))[0])
    bottom = torch.tensor([0, 0, 0, 1.0]).expand(2, 1, 4)
    both = (torch.cat([first, bottom], 1) @ torch.cat([second, bottom], 1))[:, :3]
    wanted, grid = warped(both, (3, 5, 4))
    output, theta, own_grid = transformer.warp(volumes)
    torch.testing.assert_close(theta.view(-1, 3, 4), both)
    torch.testing.assert_close(own_grid, grid)
    torch.testing.assert_close(output, wanted)
    assert output.equal(sample(volumes, own_grid))


# Networks.


def config_of(backbone="FCN", transform="Aff", side=20, **changes):
    task = {"extruded": {"side_voxels": side, "digit_voxels": 14.0}}
    names = {"backbone": backbone, "transform": transform, "distortion": "none", "task": task}
    return check({**names, **changes}, ConfigSource("test"))


@pytest.mark.parametrize("backbone", ["FCN", "CNN"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_volume_is_transformed_then_flattened_then_classified(backbone, channels):
    config = config_of(backbone, side=26, model={"st_output_depth": 5, "st_output_px": 24})
    network = config.build_network(MNIST._replace(shape=(channels, 28, 28)))
    assert [name for name, _ in network.named_children()] == [
        *("transformer", "projection", "classifier")
    ]
    nn.init.normal_(network.transformers["transformer"].regression.weight, std=0.01)
    volumes = torch.rand(2, channels, 26, 26, 26)
    trace = network.trace(volumes)
    warped = trace.warps["transformer"].output
    assert warped.shape == (2, channels, 5, 24, 24)
    assert trace.warps["transformer"].grid.shape == (2, 5, 24, 24, 3)
    assert trace.stage_inputs["classifier"].equal(warped.max(2).values)
    assert network.shown(warped).equal(warped.max(2).values)
    assert trace.outputs.shape == (2, 10)
    F.cross_entropy(trace.outputs, torch.tensor([3, 7])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_a_volume_can_be_pooled_after_it_is_flattened():
    network = config_of(model={"st_output_px": 32, "st_pool": 2}).build_network(MNIST)
    warped = torch.rand(2, 1, 32, 32, 32)
    assert network.transformer.output_size == (32, 32, 32)
    assert network.shown(warped).equal(F.avg_pool2d(warped.amax(2), 2))


def test_a_baseline_sees_the_volume_flattened():
    network = config_of(transform="none").build_network(MNIST).eval()
    volumes = torch.rand(2, 1, 20, 20, 20)
    assert network(volumes).equal(network.classifier(volumes.amax(2)))
    assert network.projected(volumes).equal(volumes.amax(2))


# The config.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"transform": "TPS"},
            "transform is TPS, which warps images alone; task extruded .* Aff or none",
        ),
        (
            {"transformers": {"front": {"transform": "TPS"}}},
            "transform is TPS, which warps images alone; task extruded .* Aff or none",
        ),
        (
            {"model": {"sampling": "bicubic"}},
            "model.sampling is bicubic, which reads images alone",
        ),
        (
            {"backbone": "tutorial"},
            "backbone is tutorial, whose localisation .* choose .*CNN.*, or transform none",
        ),
        (
            {"model": {"localisation_pool": 3, "st_output_px": 24}, "backbone": "CNN"},
            "localisation_pool is 3; of 20",
        ),
        (
            {"backbone": "CNN", "transform": "none", "side": 20},
            "20 voxels a side.* set more",
        ),
        ({"side": 7}, "side_voxels is 7; it must be at least 8"),
        ({"side": 12}, "digit_voxels 14.* is larger than side_voxels 12"),
    ],
)
def test_what_does_not_go_with_volumes_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        config_of(**changes)


def test_a_depth_without_volumes_is_refused():
    with pytest.raises(ConfigError, match=r"st_output_depth is 5; images have no depth"):
        check({"model": {"st_output_depth": 5}}, ConfigSource("test"))


def test_a_transform_of_images_alone_is_refused_by_the_network_too():
    with pytest.raises(ConfigError, match="Proj"):
        config_of(transform="Proj")
    config = config_of()
    assert Config.model_validate(config.as_dict()) == config
    assert config.title == "ST-FCN Aff on undistorted images, extruded"


# A run, through the commands.

EXPERIMENT = {
    "task": {"extruded": {"side_voxels": 16, "digit_voxels": 12.0}},
    "distortion": "none",
    "backbone": {"FCN": {"hidden": 16, "localisation_hidden": 8}},
    "data": {"training_digits": 200, "validation": 50, "test_digits": 60},
    "model": {"st_iterations": 2, "st_output_px": 14, "st_output_depth": 6},
    "train": {"epochs": 1, "batch_size": 50, "log_every": 2},
    "evaluate": {"draws": 2},
    "log": {"snapshots": 2},
}


@pytest.fixture(scope="module", params=["Aff", "none"])
def trained_run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("volumes")
    config = EXPERIMENT | {"transform": request.param}
    if request.param == "none":
        config.pop("model")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture
def run(trained_run, command):
    path = trained_run / "run"
    if not path.exists():
        done(command("stn-train", "--config", trained_run / "tiny.yaml", "--out", path))
    return path


def done(result):
    assert result.exit_code == 0, result.output
    return result.stdout


def test_evaluation_finds_what_training_found(run, command):
    report = json.loads(done(command("stn-eval", run, "--json")))
    data = json.loads((run / "result.json").read_text())
    for field in ("test_error_percent", "draws_percent", "confusion", "draws_sha256"):
        assert report[field] == data[field]
    assert len(set(data["draws_sha256"])) == 2
    assert data["task"] == "extruded"


def test_every_picture_of_a_run_is_drawn_and_the_others_are_refused(run, command, tmp_path):
    has = pictures_of(load_run(run).config)
    assert "volumes" in has
    for name in PICTURES:
        assert (run / f"{name}.png").exists() is (name in has)
    result = command("stn-visualize", run, "--picture", "poses", "--out", tmp_path / "poses.png")
    assert result.exit_code == 2
    out = tmp_path / "again.png"
    done(command("stn-visualize", run, "--picture", "volumes", "--out", out))
    assert out.read_bytes().startswith(b"\x89PNG")
    done(command("stn-visualize", run, "--misclassified", "--out", out))
    done(command("stn-visualize", run, "--animate", "training.gif", "--out", tmp_path / "a.gif"))


def test_a_run_on_images_has_no_picture_of_volumes(finished, command, tmp_path):
    assert "volumes" not in pictures_of(finished.config)
    arguments = ["--picture", "volumes", "--out", tmp_path / "volumes.png"]
    result = command("stn-visualize", finished.run.path, *arguments)
    assert result.exit_code == 2
    assert "there are no volumes" in result.stderr


def test_a_run_is_exported_for_pytorch(run, command, tmp_path):
    out = tmp_path / "model.pt2"
    arguments = ["--format", "pt2", "--out", out, "--json"]
    report = json.loads(done(command("stn-export", run, *arguments)))
    assert report["input"] == [None, 1, 16, 16, 16]
    volumes = torch.rand(3, *report["input"][1:])
    wanted = load_run(run).model(volumes)
    exported = torch.export.load(out).module()
    torch.testing.assert_close(exported(volumes), wanted, rtol=1e-4, atol=1e-4)
