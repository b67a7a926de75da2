"""Several spatial transformers in a network: their names, keys, weights, and what they compute."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stn_train.cell import Cell
from stn_train.config import Config
from stn_train.config_file import load_config
from stn_train.data.images import ImageFormat
from stn_train.errors import ConfigError
from stn_train.models.backbone import StagedBackbone, least_input
from stn_train.models.backbones import BACKBONES
from stn_train.models.network import parameter_count
from stn_train.models.placements import arrangement, file_name, groups_in, model_name
from stn_train.models.spatial_transformer import ParallelTransformers, SpatialTransformer

MNIST = ImageFormat((1, 28, 28), tuple("0123456789"))
STAGED = [name for name, kind in BACKBONES.items() if issubclass(kind, StagedBackbone)]


def config_of(transformers, transform="Aff", backbone="CNN", **changes):
    changes = {"distortion": "R", "recipe": "paper", **changes}
    return Config.model_validate(
        {"transformers": transformers, "transform": transform, "backbone": backbone, **changes}
    )


def network_of(transformers, *names, seed=0, **changes):
    torch.manual_seed(seed)
    return config_of(transformers, *names, **changes).build_network(MNIST).eval()


def moved(network):
    """A network whose transformers do something."""
    torch.manual_seed(1)
    for transformer in network.transformers.values():
        nn.init.normal_(transformer.regression.weight, std=0.1)
    return network


# Names.

NAMES = [
    ({"front": {}}, "Aff", "ST-CNN Aff", "affine"),
    ({"front": {"count": 2}}, "2xAff", "2xST-CNN Aff", "2xaffine"),
    ({"after_1": {}}, "Aff@1", "ST-CNN Aff@1", "affine@1"),
    ({"after_2": {"count": 3}}, "3xAff@2", "3xST-CNN Aff@2", "3xaffine@2"),
    (
        {"after_1": {}, "front": {"transform": "TPS"}},
        "TPS+Aff@1",
        "ST-CNN TPS+Aff@1",
        "tps+affine@1",
    ),
    ({"front": None, "after_1": None}, "Aff+Aff@1", "ST-CNN Aff+Aff@1", "affine+affine@1"),
]


@pytest.mark.parametrize(("transformers", "name", "model", "file"), NAMES, ids=str)
def test_an_arrangement_has_a_name_that_leads_back_to_it(transformers, name, model, file):
    config = config_of(transformers)
    assert config.cell == Cell("R", "CNN", name)
    assert (config.cell.model, config.cell.file_name) == (model, f"r_{file}")
    again = load_config("rts_fcn.yaml", [*config.cell.overrides, "recipe=paper"])
    assert again.cell == config.cell
    assert Config.from_run(config.as_dict()).cell == config.cell


def test_a_baseline_has_no_arrangement_wherever_transformers_would_stand():
    places = {"front": {"count": 2}, "after_1": {"transform": "TPS"}}
    config = config_of(places, transform="none")
    assert config.cell == Cell("R", "CNN", "none")
    assert not config.build_network(MNIST).transformers
    assert arrangement(config.transformers, None) == "none"
    assert (groups_in("none"), file_name("none"), model_name("FCN", "none")) == ([], "", "FCN")


@pytest.mark.parametrize(
    ("config", "override", "told"),
    [
        (
            "r_affine",
            "transformers.behind.count=2",
            r"transformers.behind is not .* front, after_1",
        ),
        ("r_affine_fcn", "transformers.after_1.count=2", "it can be front$"),
        ("r_affine", "transformers.after_3.count=1", "transformers.after_3 is not a place"),
        ("r_affine", "transformers={}", "transformers is empty; name a place"),
        ("r_affine", "transformers=3", "transformers is 3; it must be a section"),
        ("r_affine", "transformers.front.count=9", "transformers.front.count is 9; .* at most 8"),
        ("r_affine", "transformers.front.cuont=2", r"front.cuont \(did you mean count\?\)"),
        ("r_affine", "transformers.front.transform=TPZ", "transform is 'TPZ'; it can be Trans"),
        (
            "r_affine",
            "transformers.front.st_output_px=20",
            "transformers.front.st_output_px is 20; .* at least 21",
        ),
        (
            "r_affine",
            "transformers.front.localisation_pool=4",
            "transformers.front.localisation_pool is 4; of 28 px",
        ),
        (
            "r_affine",
            "transformers.after_1={st_output_px: 9, st_pool: 2}",
            "transformers.after_1.st_output_px is 9; .* multiple of 2, at least 14",
        ),
        (
            "r_affine",
            "transformers.after_2.localisation_pool=3",
            "transformers.after_2.localisation_pool is 3; the maps there have only 2 x 2 px",
        ),
    ],
)
def test_what_cannot_be_is_told_by_key_and_value(config, override, told):
    with pytest.raises(ConfigError, match=told) as error:
        load_config(config, [override])
    assert str(error.value).startswith(f"--set {override}: ")


def test_a_place_that_is_not_there_is_told_with_its_line(tmp_path):
    path = tmp_path / "deep.yaml"
    path.write_text("backbone: CNN\ntransformers:\n  front: {}\n  after_9: {}\n")
    with pytest.raises(ConfigError, match=r"deep.yaml:4: transformers.after_9 is not a place"):
        load_config(str(path))


@pytest.mark.parametrize("name", STAGED)
def test_stages_need_as_many_pixels_as_the_whole_backbone_says(name):
    backbone = BACKBONES[name]()
    assert least_input(backbone.stages) == backbone.smallest_input
    for stage in backbone.stages:
        for side in (stage.least_input(3), stage.least_input(3) + 1, stage.kernel + 10):
            maps = torch.rand(1, 2, side, side + 4)
            made = nn.Sequential(*stage.layers(2)).eval()(maps)
            assert stage.output((2, side, side + 4)) == made.shape[1:]


# In parallel.


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("pool", [1, 2])
def test_parallel_transformers_each_warp_the_image_with_weights_of_their_own(backbone, pool):
    front = {"count": 3, "st_output_px": 28 * pool, "st_pool": pool}
    network = moved(network_of({"front": front}, "Proj", backbone))
    assert [*network.transformers] == network.front
    assert network.front == ["transformer.0", "transformer.1", "transformer.2"]
    images = torch.rand(2, 1, 28, 28)
    trace = network.trace(images)
    assert trace.outputs.equal(network(images))
    alone = [transformer(images) for transformer in network.transformers.values()]
    seen = torch.cat(alone, dim=1)
    seen = F.avg_pool2d(seen, pool) if pool > 1 else seen
    assert trace.stage_inputs["classifier"].equal(seen)
    assert not alone[0].allclose(alone[1])
    weights = [id(each) for each in network.parameters()]
    assert len(set(weights)) == len(weights)
    single = network_of({"front": {**front, "count": 1}}, "Proj", backbone)
    assert parameter_count(network.transformer) == 3 * parameter_count(single.transformer)


def test_parallel_transformers_may_pool_differently():
    def transformer(pool):
        layers = nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(9, 4), nn.Tanh())
        return SpatialTransformer(layers, 4, config_of({"front": {}}).transform.build(), pool=pool)

    torch.manual_seed(0)
    several = ParallelTransformers(transformer(1), transformer(2), transformer(2))
    for each in several:
        nn.init.normal_(each.regression.weight)
    maps = torch.rand(2, 1, 12, 12)
    assert several(maps).equal(torch.cat([each(maps) for each in several], dim=1))


def test_settings_of_a_place_precede_those_of_the_model():
    model = {"st_iterations": 3, "st_output_px": 26, "localisation_pool": 1}
    own = {"st_iterations": 2, "st_output_px": 24}
    network = network_of({"front": own, "after_1": {}}, model=model)
    front, deep = network.transformers.values()
    assert (front.iterations, front.output_size, front.pool) == (2, (24, 24), 1)
    assert (deep.iterations, deep.output_size, deep.pool) == (3, (8, 8), 1)


# Behind stages.


@pytest.mark.parametrize("backbone", STAGED)
def test_a_new_network_with_transformers_behind_its_stages_does_what_it_does_without(backbone):
    plain = network_of({"front": {}}, "none", backbone)
    deep = network_of({"after_1": {}, "after_2": {}}, "TPS", backbone)
    names = ["classifier.transformer_1", "classifier.transformer_2"]
    assert ([*deep.transformers], deep.front) == (names, [])
    own = {name: value for name, value in deep.state_dict().items() if "transformer" not in name}
    assert own.keys() == plain.state_dict().keys()
    assert all(value.equal(plain.state_dict()[name]) for name, value in own.items())
    images = torch.rand(3, 1, 28, 28)
    torch.testing.assert_close(deep(images), plain(images), rtol=0, atol=1e-5)


def test_a_deep_network_computes_what_its_layers_do_one_by_one():
    places = {
        "front": {},
        "after_1": {"count": 2, "st_iterations": 1, "st_output_px": 18, "st_pool": 2},
    }
    network = moved(network_of(places))
    images = torch.rand(3, 1, 28, 28)
    layers = dict(network.classifier.named_children())
    assert [*layers][:5] == ["0", "1", "2", "transformer_1", "pool_1"]

    def warped(transformer, maps, size):
        small = F.avg_pool2d(maps, 2) if transformer.pool == 2 else maps
        theta = transformer.regression(transformer.localisation(small)).view(-1, 2, 3)
        grid = F.affine_grid(theta, [len(maps), 1, *size], align_corners=False)
        return F.grid_sample(maps, grid, align_corners=False)

    maps = warped(network.transformer, images, (28, 28))
    maps = F.relu(F.max_pool2d(layers["0"](maps), 2, ceil_mode=True))
    pair = [warped(each, maps, (18, 18)) for each in layers["transformer_1"]]
    maps = F.avg_pool2d(torch.cat(pair, dim=1), 2)
    assert maps.shape == (3, 2 * 64, 9, 9)
    maps = F.relu(F.max_pool2d(layers["3"](maps), 2, ceil_mode=True))
    expected = layers["8"](maps.flatten(1))
    torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-4)


def test_a_deep_network_has_as_many_weights_as_counted_by_hand():
    network = network_of({"after_1": {"count": 2}, "after_2": {"transform": "TPS"}})
    classifier = 64 * 82 + 64 * (128 * 49 + 1) + 257 * 10  # the second layer sees 2 x 64 maps
    behind_1 = (64 * 10 * 10 + 1) * 32 + 33 * 32 + 33 * 6
    behind_2 = (64 * 2 * 2 + 1) * 32 + 33 * 32 + 33 * 32
    assert parameter_count(network) == classifier + 2 * behind_1 + behind_2


@pytest.mark.parametrize("backbone", STAGED)
def test_every_transformer_of_a_deep_network_learns(backbone):
    places = {"front": {"count": 2}, "after_1": {}, "after_2": {"count": 2}}
    network = network_of(places, "Aff", backbone)
    F.cross_entropy(network(torch.rand(4, 1, 28, 28)), torch.arange(4)).backward()
    assert len(network.transformers) == 5
    for transformer in network.transformers.values():
        gradient = transformer.regression.bias.grad
        assert gradient.isfinite().all()
        assert gradient.any()
