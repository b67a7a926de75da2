"""Parameter groups, averaging and schedules, against torch's own and by hand."""

import math

import pytest
import torch
from torch import Tensor, nn

from stn_train.config import Config, TrainSettings
from stn_train.config_file import load_config
from stn_train.data.images import ImageFormat
from stn_train.data.mnist import CLASSES
from stn_train.geometry.grids import AffineGrid
from stn_train.geometry.transforms import TRANSFORMS
from stn_train.models.backbones import BACKBONES
from stn_train.models.network import Network
from stn_train.models.spatial_transformer import (
    OutputLayer,
    ParallelTransformers,
    SpatialTransformer,
)
from stn_train.trainer.optimisers import (
    ITERATIONS,
    AveragedWeights,
    Muon,
    build_optimizer,
    build_schedule,
    parameter_groups,
    steps_per_pass,
    total_steps,
)

MNIST = ImageFormat((1, 28, 28), CLASSES)
OPTIMIZERS = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW, "muon": Muon}


def settings(**changes) -> TrainSettings:
    return TrainSettings.model_validate({"learning_rate": 1.0, **changes})


def rates(train: TrainSettings, steps: int) -> list[float]:
    """The learning rate that each of ``steps`` steps is taken with."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], train.learning_rate)
    schedule = build_schedule(optimizer, train, steps)
    taken = []
    for _ in range(steps):
        taken.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return taken


def test_paper_divides_by_10_at_50000_and_100000_of_150000_steps():
    train = load_config("paper.yaml").train
    assert train.steps == 150_000
    taken = rates(train, train.steps)
    assert [taken[step] for step in (0, 49_999)] == pytest.approx([0.01] * 2)
    assert [taken[step] for step in (50_000, 99_999)] == pytest.approx([0.001] * 2)
    assert [taken[step] for step in (100_000, 149_999)] == pytest.approx([0.0001] * 2)


def test_constant_never_changes():
    assert rates(settings(schedule="constant"), 20) == [1.0] * 20


def test_cosine_falls_from_the_top_to_almost_nothing():
    taken = rates(settings(schedule="cosine"), 100)
    expected = [(1 + math.cos(math.pi * step / 100)) / 2 for step in range(100)]
    assert taken == pytest.approx(expected)


def test_one_cycle_rises_for_the_warmup_and_ends_near_zero():
    taken = rates(settings(warmup=0.25), 100)
    assert max(taken) == pytest.approx(1.0)
    assert taken.index(max(taken)) == 24
    assert taken[:25] == sorted(taken[:25])
    assert taken[24:] == sorted(taken[24:], reverse=True)
    assert taken[-1] < 1e-4


def test_steps_multiply_at_the_shares_of_the_run():
    taken = rates(settings(schedule="step", step_at=[0.2, 0.5, 0.5], step_factor=0.5), 10)
    assert taken == pytest.approx([1.0] * 2 + [0.5] * 3 + [0.125] * 5)


@pytest.mark.parametrize("warmup", [0.0, 0.2, 0.5, 0.99])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "step", "constant"])
def test_every_schedule_works_for_a_short_run(schedule, steps, warmup):
    taken = rates(settings(schedule=schedule, warmup=warmup), steps)
    assert all(0 <= rate <= 1 + 1e-9 for rate in taken)
    assert max(taken) > 0


def test_no_warmup_starts_falling_at_once():
    taken = rates(settings(warmup=0.0), 50)
    assert max(taken) == pytest.approx(1.0)
    assert taken.index(max(taken)) <= 1


@pytest.mark.parametrize(
    ("digits", "batch", "steps"), [(500, 50, 10), (501, 50, 11), (499, 50, 10), (1, 256, 1)]
)
def test_a_pass_sees_each_digit_once(digits, batch, steps):
    assert steps_per_pass(settings(batch_size=batch), digits) == steps


def test_epochs_become_steps():
    assert total_steps(settings(epochs=3, batch_size=50), 501) == 33
    assert total_steps(settings(steps=7, batch_size=50), 501) == 7


def model(**changes) -> tuple:
    data = {"distortion": "R", "backbone": "FCN", "transform": "Aff", **changes}
    config = Config.model_validate(data)
    return config.build_network(MNIST), config.train


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("transform", ["none", *TRANSFORMS])
def test_optimizer_has_every_parameter_once(name, transform):
    network, train = model(transform=transform, train={"optimizer": name})
    optimizer = build_optimizer(network, train)
    found = [id(weight) for group in optimizer.param_groups for weight in group["params"]]
    assert sorted(found) == sorted(id(weight) for weight in network.parameters())


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "step", "constant"])
def test_localisation_network_has_its_share_of_the_learning_rate(name, schedule):
    network, train = model(
        train={
            "optimizer": name,
            "schedule": schedule,
            "localisation_learning_rate_scale": 0.1,
        }
    )
    optimizer = build_optimizer(network, train)
    schedule = build_schedule(optimizer, train, 10)
    for _ in range(10):
        taken = rate_of_each(optimizer)
        (rate,) = {taken[weight] for weight in network.classifier.parameters()}
        (localisation_rate,) = {
            taken[weight] for weight in network.transformers["transformer"].parameters()
        }
        assert localisation_rate == pytest.approx(0.1 * rate)
        optimizer.step()
        schedule.step()


def rate_of_each(optimizer: torch.optim.Optimizer, name: str = "lr") -> dict[Tensor, float]:
    """A setting of each parameter's group."""
    return {weight: group[name] for group in optimizer.param_groups for weight in group["params"]}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("transform", ["none", *TRANSFORMS])
def test_weights_decay_and_biases_do_not(name, backbone, transform):
    network, train = model(
        backbone=backbone,
        transform=transform,
        train={"optimizer": name, "weight_decay": 0.01},
    )
    optimizer = build_optimizer(network, train)
    assert type(optimizer) is OPTIMIZERS[name]
    decay = rate_of_each(optimizer, "weight_decay")
    for weight in network.parameters():  # BatchNorm's factors are vectors, like biases
        assert decay[weight] == (0.01 if weight.ndim > 1 else 0.0)


def test_sgd_takes_momentum():
    network, train = model(train={"optimizer": "sgd", "momentum": 0.7, "weight_decay": 0.01})
    momenta = rate_of_each(build_optimizer(network, train), "momentum")
    assert set(momenta.values()) == {0.7}


@pytest.mark.parametrize("iteration", [*ITERATIONS])
def test_muon_takes_its_iteration(iteration):
    network, train = model(train={"optimizer": "muon", "muon_iteration": iteration})
    optimizer = build_optimizer(network, train)
    assert isinstance(optimizer, Muon)
    assert optimizer.iteration == iteration


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_decay_alone_leaves_the_identity_and_shrinks_the_weights(name, transform):
    network, train = model(
        transform=transform,
        train={
            "optimizer": name,
            "momentum": 0.0,
            "learning_rate": 0.1,
            "weight_decay": 0.5,
            "localisation_learning_rate_scale": 0.2,
        },
    )
    before = {key: value.detach().clone() for key, value in network.named_parameters()}
    optimizer = build_optimizer(network, train)
    for weight in network.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    transformer = network.transformers["transformer"]
    assert torch.equal(transformer.regression.bias, transformer.transform.identity)
    for key, value in network.named_parameters():
        rate = 0.1 * (0.2 if key.startswith("transformer.") else 1.0)
        shrunk = 1.0 if key.endswith("bias") else 1 - 0.5 * rate
        torch.testing.assert_close(value.detach(), shrunk * before[key])


# Groups by role.


def names_in_groups(network: nn.Module, train: TrainSettings) -> list[list[str]]:
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    groups = parameter_groups(network, train)
    return [[names[id(parameter)] for parameter in group["params"]] for group in groups]


def groups_by_position(network: Network) -> list[list[str]]:
    """As they were before roles were known: the last weight of either network is its output."""
    found = []
    for part in ("classifier.", "transformer."):
        of_part = [each for each in network.named_parameters() if each[0].startswith(part)]
        weights = [name for name, parameter in of_part if parameter.ndim > 1]
        biases = [name for name, parameter in of_part if parameter.ndim == 1]
        found += [weights[:-1], weights[-1:], biases]
    return [group for group in found if group]


@pytest.mark.parametrize("backbone", ["FCN", "CNN", "tutorial"])  # those that there were then
@pytest.mark.parametrize("transform", ["none", "Aff", "Proj", "TPS"])
def test_groups_and_their_order_are_those_of_earlier_checkpoints(backbone, transform):
    network, train = model(backbone=backbone, transform=transform)
    assert names_in_groups(network, train) == groups_by_position(network)
    hidden = [group["hidden"] for group in parameter_groups(network, train)]
    assert hidden == [True, False, False] * (1 if transform == "none" else 2)


def affine(features: int = 4) -> SpatialTransformer:
    localisation = nn.Sequential(nn.Flatten(), nn.Linear(784, features), nn.ReLU())
    return SpatialTransformer(localisation, features, AffineGrid())


def two_transformers() -> Network:
    network = Network()
    network.add_module("transformer", ParallelTransformers(affine(), affine()))
    layers = [nn.Conv2d(2, 3, 5), nn.BatchNorm2d(3), nn.Flatten(), OutputLayer(3 * 24**2, 10)]
    network.add_module("classifier", nn.Sequential(*layers))
    return network


def test_two_transformers_have_two_output_layers():
    network, train = two_transformers(), settings(localisation_learning_rate_scale=0.1)
    assert names_in_groups(network, train) == [
        ["classifier.0.weight"],
        ["classifier.3.weight"],
        ["classifier.0.bias", "classifier.1.weight", "classifier.1.bias", "classifier.3.bias"],
        [f"transformer.{number}.localisation.1.weight" for number in range(2)],
        [f"transformer.{number}.regression.weight" for number in range(2)],
        [
            f"transformer.{number}.{layer}.bias"
            for number in range(2)
            for layer in ("localisation.1", "regression")
        ],
    ]
    groups = parameter_groups(network, train)
    assert [group["lr"] for group in groups] == [1.0] * 3 + [0.1] * 3
    assert [group["hidden"] for group in groups] == [True, False, False] * 2


def test_muon_turns_no_output_layer_of_two_transformers():
    network, train = two_transformers(), settings(optimizer="muon", learning_rate=0.01)
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    optimizer = build_optimizer(network, train)
    for weight in network.parameters():
        weight.grad = torch.rand_like(weight) + 0.5
    optimizer.step()
    for name, weight in network.named_parameters():
        moved = (weight.detach() - before[name]).abs() / 0.01
        of_adam = bool(torch.allclose(moved, torch.ones_like(moved), rtol=1e-3))  # its first step
        hidden = name in ("classifier.0.weight",) or name.endswith("localisation.1.weight")
        assert of_adam is not hidden, name


def test_a_localisation_network_that_two_share_is_there_once():
    shared = nn.Sequential(nn.Flatten(), nn.Linear(784, 4))
    pair = [SpatialTransformer(shared, 4, AffineGrid()) for _ in range(2)]
    network = nn.Sequential(ParallelTransformers(*pair))
    optimizer = build_optimizer(network, settings(optimizer="muon"))
    found = [id(weight) for group in optimizer.param_groups for weight in group["params"]]
    assert sorted(found) == sorted(id(weight) for weight in network.parameters())


def test_a_transformer_inside_the_classifier_is_no_part_of_it():
    network = nn.Sequential(nn.Conv2d(1, 1, 1), affine(), nn.Flatten(), OutputLayer(784, 10))
    assert names_in_groups(network, settings())[3:] == [
        ["1.localisation.1.weight"],
        ["1.regression.weight"],
        ["1.localisation.1.bias", "1.regression.bias"],
    ]


def test_frozen_and_missing_parameters_make_no_group():
    layers = nn.Sequential(nn.Linear(4, 4), OutputLayer(4, 2, bias=False))
    layers[0].requires_grad_(False)
    assert names_in_groups(layers, settings()) == [["1.weight"]]
    assert build_optimizer(layers, settings(optimizer="muon")).param_groups[0]["hidden"] is False


# The average.


def test_average_has_the_newest_statistics():
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    network.register_buffer("fixed", torch.ones(2), persistent=False)
    average = AveragedWeights(network, 0.9)
    for _ in range(3):
        network(torch.rand(50, 3))
        with torch.no_grad():
            network[0].weight.add_(1)
        network.fixed.add_(1)
        average.update(network)
    ours, theirs = average.model.state_dict(), network.state_dict()
    assert not torch.equal(ours["0.weight"], theirs["0.weight"])
    for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
        assert torch.equal(ours[name], theirs[name])
        assert ours[name] is not theirs[name]
    assert int(ours["1.num_batches_tracked"]) == 3
    assert torch.equal(average.model.fixed, torch.ones(2))  # no part of what is saved


@pytest.mark.parametrize("decay", [0.05, 0.2, 0.3, 0.999])
def test_average_forgets_the_first_weights_soon(decay):
    network, _ = model()
    average = AveragedWeights(network, decay)
    expected = None
    for number in range(30):
        with torch.no_grad():
            for weight in network.parameters():
                weight.fill_(number**2)
        average.update(network)
        share = min(decay, number / (9 + number))
        expected = number**2 if expected is None else share * expected + (1 - share) * number**2
        for weight in average.model.parameters():
            torch.testing.assert_close(weight.detach(), torch.full_like(weight, expected))
    assert int(average.count) == 30


def test_muon_leaves_the_gradients_to_those_who_measure_them():
    network = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
    optimizer = build_optimizer(network, TrainSettings(optimizer="muon"))
    network(torch.rand(4, 6)).square().sum().backward()
    before = [weight.grad.clone() for weight in network.parameters()]
    optimizer.step()
    after = [weight.grad for weight in network.parameters()]
    torch.testing.assert_close(after, before, rtol=0, atol=0)
