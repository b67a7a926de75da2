"""The optimiser of hidden layers, against torch's own two."""

import pytest
import torch
from torch import nn

from stn_train.trainer.optimisers import ITERATIONS, Muon, orthogonal

NEAR_ONE = {"newton_schulz": (0.3, 1.3), "polar_express": (0.1, 1.9)}
"""Iteration -> between which singular values of random matrices come to lie."""
ONE = torch.tensor([0])
SHAPES = {"wide": (8, 20), "tall": (20, 8), "square": (6, 6), "bias": (7,)}


def one_step(group) -> None:
    Muon([{**group, "hidden": True}], torch.float32, "newton_schulz", lr=0.1).step()


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_steps_are_those_of_torchs_muon_and_adamw(precision):
    ours = {name: nn.Parameter(torch.randn(shape)) for name, shape in SHAPES.items()}
    theirs = {name: nn.Parameter(weight.detach().clone()) for name, weight in ours.items()}
    *matrices, bias = theirs.values()
    groups = [
        {"params": [*ours.values()][:3], "hidden": True, "weight_decay": 0.1},
        {"params": [ours["bias"]], "weight_decay": 0.0},
    ]
    muon = Muon(groups, precision, "newton_schulz", lr=0.01, fused=True)
    others = [
        torch.optim.Muon(matrices, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([bias], lr=0.01, weight_decay=0.0),
    ]
    for _ in range(10):
        for name, weight in ours.items():
            weight.grad = torch.randn_like(weight)
            theirs[name].grad = weight.grad.clone()
        for optimizer in (muon, *others):
            optimizer.step()
    for name, weight in ours.items():  # torch's always multiplies in bfloat16
        moved = float((weight - theirs[name]).detach().abs().max())
        assert moved < 0.02, name


def test_a_kernel_moves_as_the_matrix_that_it_is_read_as():
    kernel, gradient = torch.randn(6, 3, 5, 5), torch.randn(6, 3, 5, 5)
    moved = []
    for shape in (kernel.shape, (6, 75)):
        weight = nn.Parameter(kernel.reshape(shape).clone())
        weight.grad = gradient.reshape(shape)
        one_step({"params": [weight]})
        moved.append(weight.detach().reshape(6, 75))
    assert not torch.equal(moved[0], kernel.reshape(6, 75))
    torch.testing.assert_close(*moved)


@pytest.mark.parametrize("shape", [(5, 40), (40, 5), (16, 16)])
@pytest.mark.parametrize("iteration", [*ITERATIONS])
def test_singular_values_come_near_one_and_singular_vectors_stay(iteration, shape):
    matrix = torch.randn(shape, dtype=torch.float64) * 30
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    values = u.mT @ orthogonal(matrix, iteration) @ v.mT
    lowest, highest = NEAR_ONE[iteration]
    assert values.diag().min() > lowest
    assert values.diag().max() < highest
    assert float((values - values.diag().diag()).abs().max()) < 1e-9


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("iteration", [*ITERATIONS])
def test_rounding_lets_no_singular_value_grow(iteration, precision):
    u, v = (torch.linalg.qr(torch.randn(size, 30)).Q for size in (40, 90))
    # One direction has all of the norm, or nearly; the others lie wherever they may.
    for rest in torch.logspace(-4, 0, 60):
        matrix = (u * torch.linspace(1, 0, 30).pow(3).mul(rest).index_fill(0, ONE, 1)) @ v.mT
        turned = orthogonal(matrix.to(precision), iteration)
        assert float(torch.linalg.matrix_norm(turned.float(), 2)) < NEAR_ONE[iteration][1] * 1.1


def test_no_gradient_moves_nothing():
    weight = nn.Parameter(torch.ones(3, 4))
    weight.grad = torch.zeros(3, 4)
    one_step({"params": [weight], "weight_decay": 0.0})
    assert torch.equal(weight, torch.ones(3, 4))
