"""SingleChannelConv2d against nn.Conv2d."""

import pytest
import torch
from torch import nn

from stn_train.convolution import SingleChannelConv2d


def twins(filters, side, dtype=torch.float64):
    """The convolution and torch's own, with the same weights."""
    torch.manual_seed(0)
    reference = nn.Conv2d(1, filters, side).to(dtype)
    ours = SingleChannelConv2d(filters, side).to(dtype)
    ours.load_state_dict(reference.state_dict())
    return ours, reference


@pytest.mark.parametrize(
    ("batch", "filters", "side", "size"),
    [
        (3, 4, 5, (28, 28)),
        (2, 3, 3, (7, 12)),
        (2, 3, 3, (12, 7)),
        (1, 2, 4, (4, 9)),  # a single row of output
        (2, 2, 5, (5, 5)),  # a single pixel of output
        (2, 1, 1, (3, 4)),
        (1, 3, 2, (2, 2)),
    ],
)
def test_equals_conv2d_forward_and_backward(batch, filters, side, size):
    ours, reference = twins(filters, side)
    images = torch.randn(batch, 1, *size, dtype=torch.float64)
    theirs = images.clone().requires_grad_()
    images.requires_grad_()
    output, expected = ours(images), reference(theirs)
    torch.testing.assert_close(output, expected)
    upstream = torch.randn_like(expected)
    output.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(images.grad, theirs.grad)
    torch.testing.assert_close(ours.weight.grad, reference.weight.grad)
    torch.testing.assert_close(ours.bias.grad, reference.bias.grad)


def test_equals_conv2d_in_float32():
    ours, reference = twins(6, 9, torch.float32)
    images = torch.rand(4, 1, 28, 28)
    torch.testing.assert_close(ours(images), reference(images), rtol=0, atol=1e-5)


def test_passes_gradcheck():
    ours, _ = twins(2, 3)
    images = torch.randn(2, 1, 4, 5, dtype=torch.float64, requires_grad=True)

    def convolve(images, weight, bias):
        return torch.func.functional_call(ours, {"weight": weight, "bias": bias}, images)

    assert torch.autograd.gradcheck(convolve, (images, ours.weight, ours.bias))


def test_starts_from_the_same_weights_as_conv2d():
    torch.manual_seed(3)
    expected = nn.Conv2d(1, 4, 5).state_dict()
    torch.manual_seed(3)
    ours = SingleChannelConv2d(4, 5).state_dict()
    assert list(ours) == list(expected)
    for name, tensor in expected.items():
        assert ours[name].equal(tensor)


def test_weights_load_into_conv2d_and_back():
    ours, fresh = SingleChannelConv2d(4, 5), nn.Conv2d(1, 4, 5)
    fresh.load_state_dict(ours.state_dict())
    images = torch.rand(2, 1, 9, 8)
    torch.testing.assert_close(fresh(images), ours(images))
    again = SingleChannelConv2d(4, 5)
    again.load_state_dict(fresh.state_dict())
    assert again(images).equal(ours(images))
