"""Inception against torchvision's GoogLeNet; several crops; shared localisation; tiles."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import GoogLeNet, GoogLeNet_Weights, googlenet

from stn_train.config import Config
from stn_train.data.images import ImageFormat
from stn_train.errors import ConfigError, DataError
from stn_train.models import inception
from stn_train.models.backbones import Inception
from stn_train.models.inception import BLOCKS, Trunk, TrunkSize
from stn_train.models.network import parameter_count
from stn_train.models.spatial_transformer import (
    ParallelTransformers,
    SpatialTransformer,
    tile_centres,
)

COLOUR = ImageFormat((3, 40, 40), ("one", "two", "three"))
NARROW = {"Inception": {"width": 0.05, "blocks": 2, "dropout": 0.0}}


def fresh(seed: int = 0) -> GoogLeNet:
    """torchvision's network without auxiliary classifiers, with statistics that are not trivial."""
    torch.manual_seed(seed)
    model = googlenet(weights=None, aux_logits=False, init_weights=False, num_classes=7).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2)
    return model


def test_a_classifier_is_torchvisions_googlenet():
    model, images = fresh(), torch.rand(2, 3, 70, 81)
    ours = Inception(dropout=0.5).classifier((3, 70, 81), 7).eval()
    descriptors, _, output = ours
    weights = model.state_dict()
    (trunk,) = descriptors.trunks
    trunk.load_state_dict({name: weights[name] for name in trunk.state_dict()})
    output.load_state_dict(model.fc.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(ours(images), model(2 * images - 1))
    assert parameter_count(ours) == parameter_count(model)


@pytest.mark.parametrize("blocks", range(1, len(BLOCKS) + 1))
@pytest.mark.parametrize("sides", [(15, 16), (33, 50), (64, 64)])
def test_the_shape_of_the_maps_is_known_beforehand(blocks, sides):
    size = TrunkSize(blocks, 0.1)
    trunk = Trunk(3, size).eval()
    maps = trunk(torch.rand(1, 3, *sides))
    assert maps.shape[1:] == size.output((3, *sides))


def test_of_224_px_the_whole_trunk_leaves_7_by_7():
    assert TrunkSize().output((3, 224, 224)) == (1024, 7, 7)


def test_each_crop_has_a_trunk_of_its_own():
    backbone = Inception.model_validate(NARROW["Inception"])
    classifier = backbone.classifier_of_crops((6, 20, 20), 2, 5).eval()
    descriptors, _, output = classifier
    first, second = descriptors.trunks
    images = torch.rand(3, 6, 20, 20)
    with torch.no_grad():
        parts = [first(images[:, :3]).mean((2, 3)), second(images[:, 3:]).mean((2, 3))]
        torch.testing.assert_close(classifier(images), output(torch.cat(parts, 1)))


# Weights that others trained.


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """The folder that torchvision downloads weights to, and no network."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))

    def unreachable(*_: object, **__: object) -> None:
        raise inception.urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "urlopen", unreachable)
    return tmp_path / "checkpoints"


def stored(hub: Path) -> dict[str, torch.Tensor]:
    """Put weights of the right shapes where torchvision keeps its own."""
    torch.manual_seed(5)
    weights = googlenet(weights=None, aux_logits=True, init_weights=False).state_dict()
    hub.mkdir()
    torch.save(weights, hub / Path(GoogLeNet_Weights.IMAGENET1K_V1.url).name)
    return weights


def birds(**changes) -> Config:
    """Two windows on images of 40 px."""
    placement = {"count": 2, "shared_localisation": True, "tiled": True}
    data = {
        "task": "recognition",
        "distortion": {"none": {"canvas_px": 40}},
        "backbone": NARROW,
        "transform": {"Attention": {"scale": 0.5}},
        "transformers": {"front": placement},
        "model": {"st_output_px": 20, "st_pool": 1, "localisation_pool": 1},
    }
    return Config.model_validate(data | changes)


def test_pretrained_weights_reach_every_trunk(hub):
    weights = stored(hub)
    config = birds(backbone={"Inception": {"pretrained": True, "blocks": 3}})
    network = config.build_network(COLOUR)
    config.backbone.load_pretrained(network)
    trunks = [module for module in network.modules() if isinstance(module, Trunk)]
    assert len(trunks) == 3  # two crops, one localisation network
    for trunk in trunks:
        assert {name.split(".")[0] for name in trunk.state_dict()} == {
            *("conv1", "conv2", "conv3"),
            *("inception3a", "inception3b", "inception4a"),
        }
        for name, value in trunk.state_dict().items():
            assert value.equal(weights[name]), name


def test_without_the_file_and_a_network_the_place_for_it_is_told(hub):
    config = birds(backbone={"Inception": {"pretrained": True}})
    network = config.build_network(COLOUR)
    with pytest.raises(DataError) as caught:
        config.backbone.load_pretrained(network)
    told = str(caught.value)
    for words in ("no network", GoogLeNet_Weights.IMAGENET1K_V1.url, str(hub), "pretrained to fal"):
        assert words in told


def test_a_damaged_file_is_told(hub):
    stored(hub)
    path = next(hub.iterdir())
    path.write_bytes(path.read_bytes()[:1000])
    config = birds(backbone={"Inception": {"pretrained": True}})
    with pytest.raises(DataError, match=f"{path} is damaged"):
        config.backbone.load_pretrained(config.build_network(COLOUR))


@pytest.mark.parametrize("changes", [{"width": 0.5}, {}])
def test_weights_of_another_size_are_refused(hub, changes):
    stored(hub)
    config = birds(backbone={"Inception": {"pretrained": True, "blocks": 1, **changes}})
    grey = ImageFormat((1, 40, 40), ("one", "two"))
    with pytest.raises(ConfigError, match="pretrained is true, but the weights are for images of"):
        config.backbone.load_pretrained(config.build_network(COLOUR if changes else grey))


def test_pretrained_weights_are_not_asked_for_by_default(hub):
    config = birds()
    config.backbone.load_pretrained(config.build_network(COLOUR))
    assert not hub.exists()


# One localisation network for several windows.


def test_windows_share_a_localisation_network_that_looks_once():
    network = birds().build_network(COLOUR).eval()
    first, second = network.transformers.values()
    assert first.localisation is second.localisation
    assert first.regression is not second.regression
    looks = []
    first.localisation.register_forward_hook(lambda *_: looks.append(1))
    images = torch.rand(2, 3, 40, 40)
    whole = network.transformer(images)
    assert looks == [1]
    alone = torch.cat([first(images), second(images)], dim=1)
    torch.testing.assert_close(whole, alone)
    unshared = birds(transformers={"front": {"count": 2}}).build_network(COLOUR)
    first, second = unshared.transformers.values()
    assert first.localisation is not second.localisation


def test_a_look_at_one_of_several_pools_is_taken_for_each_pool():
    class Features(nn.Module):
        def forward(self, maps):
            return maps.mean((2, 3))

    shared = Features()
    grid = birds().transform.build()
    one = SpatialTransformer(shared, 3, grid, pool=1)
    other = SpatialTransformer(shared, 3, grid, pool=2)
    images = torch.rand(2, 3, 8, 8)
    parallel = ParallelTransformers(one, other)
    torch.testing.assert_close(parallel(images), torch.cat([one(images), other(images)], 1))


def test_gradients_of_a_shared_localisation_add_up():
    torch.manual_seed(0)
    network = birds().build_network(COLOUR)
    first, second = network.transformers.values()
    for transformer in (first, second):
        nn.init.normal_(transformer.regression.weight, std=0.1)
    images = torch.rand(4, 3, 40, 40)
    network.eval()(images).square().sum().backward()
    together = [each.grad.clone() for each in first.localisation.parameters()]
    network.zero_grad()
    crops = torch.cat([first(images), second(images)], 1)  # each looks by itself
    network.classifier(crops).square().sum().backward()
    for gradient, parameter in zip(together, first.localisation.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-3, atol=1e-5)


# Tiles.


@pytest.mark.parametrize(
    ("count", "centres"),
    [
        (1, [[0, 0]]),
        (2, [[-0.5, 0], [0.5, 0]]),
        (3, [[-2 / 3, 0], [0, 0], [2 / 3, 0]]),
        (4, [[-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5], [0.5, 0.5]]),
        (5, [[-2 / 3, -0.5], [0, -0.5], [2 / 3, -0.5], [-0.5, 0.5], [0.5, 0.5]]),
    ],
)
def test_tiles_cover_the_image_row_by_row(count, centres):
    torch.testing.assert_close(tile_centres(count), torch.tensor(centres, dtype=torch.float32))


def test_four_new_windows_of_half_the_side_are_the_quarters_of_the_image():
    config = birds(transformers={"front": {"count": 4, "tiled": True}})
    images = torch.rand(2, 3, 40, 40)
    crops = config.build_network(COLOUR).eval().transformer(images)
    above, below = images[:, :, :20], images[:, :, 20:]
    quarters = [above[..., :20], above[..., 20:], below[..., :20], below[..., 20:]]
    torch.testing.assert_close(crops, torch.cat(quarters, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("transform", ["Attention", "Aff", {"Attention": {"scale": None}}])
def test_windows_of_any_size_do_not_tile(transform):
    with pytest.raises(ValueError, match=r"transformers.front.tiled is true, which needs windows"):
        birds(transform=transform)
