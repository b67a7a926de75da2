"""Convolution and max pooling against torch's own, forward and backward, in every way there is."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import deform_conv2d

from stn_train.models import convolution
from stn_train.models.convolution import (
    Convolution,
    DeformableConvolution,
    MaxPooling,
    fourier,
    fourier_bases,
    fourier_pays,
    single_channel,
    single_position,
)
from stn_train.runs.machine import choose_precision

SINGLE_CHANNEL = [
    (3, 4, 5, (28, 28)),
    (2, 3, 3, (7, 12)),
    (2, 3, 3, (12, 7)),
    (1, 2, 4, (4, 9)),  # a single row of output
    (2, 2, 5, (5, 5)),  # a single pixel of output
    (2, 1, 1, (3, 4)),
    (1, 3, 2, (2, 2)),
]
"""Batch, filters, kernel side, size."""

CASES = [
    *(
        (single_channel, batch, 1, filters, side, size)
        for batch, filters, side, size in SINGLE_CHANNEL
    ),
    (single_position, 3, 2, 4, 5, (5, 5)),
    (single_position, 1, 1, 1, 1, (1, 1)),
    (fourier, 3, 4, 5, 7, (10, 10)),
    (fourier, 2, 2, 3, 7, (17, 17)),
    (fourier, 2, 3, 2, 3, (7, 12)),  # odd by even
    (fourier, 2, 3, 2, 3, (12, 7)),
    (fourier, 1, 2, 2, 3, (6, 8)),  # even by even: four frequencies have no partner
    (fourier, 1, 1, 1, 2, (5, 3)),  # odd by odd: one
    (fourier, 2, 1, 1, 4, (4, 9)),  # a single row of output
    (fourier, 1, 2, 3, 3, (3, 3)),  # a single pixel
]


def operands(batch, channels, filters, side, size, dtype=torch.float64):
    """Maps, weight and bias, all of which need a gradient."""
    torch.manual_seed(0)
    shapes = [(batch, channels, *size), (filters, channels, side, side), (filters,)]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def relative(found, expected):
    """The norm of a difference, as a share of what was expected."""
    return float(((found.double() - expected).norm() / expected.norm()).detach())


@pytest.mark.parametrize(("way", "batch", "channels", "filters", "side", "size"), CASES)
def test_every_way_equals_conv2d_forward_and_backward(way, batch, channels, filters, side, size):
    given = operands(batch, channels, filters, side, size)
    # The bases of Fourier are float32.
    tolerance = 1e-5 if way is fourier else 1e-10
    output, expected = way(*given), F.conv2d(*given)
    assert output.shape == expected.shape
    assert relative(output, expected) < tolerance
    upstream = torch.randn_like(expected)
    found = torch.autograd.grad(output, given, upstream)
    for ours, theirs in zip(found, torch.autograd.grad(expected, given, upstream), strict=True):
        assert ours.shape == theirs.shape
        assert relative(ours, theirs) < tolerance


@pytest.mark.parametrize("way", [single_channel, single_position, fourier])
def test_every_way_does_without_a_bias(way):
    maps, weight, bias = operands(2, 1, 3, 4, (4, 4), torch.float32)
    torch.testing.assert_close(
        way(maps, weight, None) + bias[:, None, None], way(maps, weight, bias)
    )


def test_fourier_in_bfloat16_is_about_as_exact_as_torchs_own():
    """Against float64 on the very same bfloat16 operands, as in training under autocast."""
    given = operands(64, 48, 128, 7, (10, 10), torch.float32)
    exact = [each.detach().bfloat16().double().requires_grad_() for each in given]
    expected = F.conv2d(*exact)
    upstream = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, exact, upstream)

    def errors(way):
        with torch.autocast("cpu", torch.bfloat16):
            output = way(*given)
        assert output.dtype == torch.bfloat16
        gradients = torch.autograd.grad(output, given, upstream.bfloat16())
        return [relative(output, expected), *map(relative, gradients, wanted)]

    for ours, theirs in zip(errors(fourier), errors(F.conv2d), strict=True):
        assert 0.001 < ours < 0.01
        assert ours < 3 * theirs
        # Without bfloat16 arithmetic in the processor, torch's own is the less exact one.
        if choose_precision("auto", torch.device("cpu")) == torch.bfloat16:
            assert theirs < ours * 1.5
            assert 3 * theirs < 0.02


def test_fourier_bases_keep_each_frequency_once():
    """A real map of H x W pixels has as many numbers in its spectrum."""
    for height, width, unpaired in [(10, 10, 4), (17, 17, 1), (6, 7, 2)]:
        to_spectrum, to_kernel_spectrum, from_spectrum = fourier_bases(height, width, 3)
        count = (height * width - unpaired) // 2 + unpaired
        assert to_spectrum.shape == (2 * count, height * width)
        assert to_kernel_spectrum.shape == (2 * count, 9)
        assert from_spectrum.shape == ((height - 2) * (width - 2), 2 * count)
        assert int((to_spectrum.abs().amax(1) > 1e-6).sum()) == height * width


def test_what_was_made_for_evaluation_serves_training():
    fourier_bases.cache_clear()
    given = operands(2, 3, 4, 3, (6, 6), torch.float32)
    with torch.inference_mode():
        expected = fourier(*given)
    output = fourier(*given)
    output.sum().backward()
    assert torch.equal(output.detach(), expected)


def test_fourier_is_taken_for_the_large_kernels_of_the_paper_only():
    assert fourier_pays((256, 48, 10, 10), (128, 48, 7, 7))  # the CNN on 28 px
    assert fourier_pays((256, 48, 17, 17), (128, 48, 7, 7))  # on 42 px
    assert fourier_pays((256, 32, 9, 9), (32, 32, 5, 5))  # its localisation network
    assert not fourier_pays((256, 3, 28, 28), (48, 3, 9, 9))  # a colour image
    assert not fourier_pays((256, 64, 16, 16), (64, 64, 3, 3))
    assert not fourier_pays((256, 10, 10, 10), (20, 10, 5, 5))  # the tutorial's
    assert not fourier_pays((1, 48, 10, 10), (128, 48, 7, 7))  # the kernels' spectrum costs more


@pytest.mark.parametrize(
    ("channels", "size", "way"),
    [
        (1, (28, 28), "single_channel"),
        (48, (7, 7), "single_position"),
        (48, (10, 10), "fourier"),
        (3, (28, 28), None),
    ],
)
def test_each_shape_goes_its_way(monkeypatch, channels, size, way):
    taken = []
    for name in ("single_channel", "single_position", "fourier"):
        monkeypatch.setattr(convolution, name, spy(name, getattr(convolution, name), taken))
    layer, maps = Convolution(channels, 64, 7), torch.rand(128, channels, *size)
    output = layer(maps)
    assert taken == [way] if way else not taken
    torch.testing.assert_close(output, F.conv2d(maps, layer.weight, layer.bias), rtol=0, atol=1e-5)


def spy(name, function, taken):
    """The same function; it notes its name when it is called."""

    def noted(*operands):
        taken.append(name)
        return function(*operands)

    return noted


def test_an_exported_layer_is_a_convolution_and_not_how_we_compute_it():
    layer, maps = Convolution(8, 64, 7).eval(), torch.rand(64, 8, 10, 10)
    program = torch.export.export(nn.Sequential(layer, MaxPooling()), (maps,))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert {name for name in called if "conv" in name} == {"aten.conv2d.default"}
    assert not any("mm" in name or "unpool" in name for name in called)


def test_passes_gradcheck():
    given = operands(2, 1, 2, 3, (4, 5))
    assert torch.autograd.gradcheck(single_channel, given)
    assert torch.autograd.gradcheck(single_position, operands(2, 2, 2, 3, (3, 3)))


def test_starts_from_the_same_weights_as_conv2d():
    for channels in (1, 3):
        torch.manual_seed(3)
        expected = nn.Conv2d(channels, 4, 5).state_dict()
        torch.manual_seed(3)
        ours = Convolution(channels, 4, 5).state_dict()
        assert list(ours) == list(expected)
        for name, tensor in expected.items():
            assert ours[name].equal(tensor)


@pytest.mark.parametrize("channels", [1, 48])
def test_weights_load_into_conv2d_and_back(channels):
    ours, fresh = Convolution(channels, 4, 5), nn.Conv2d(channels, 4, 5)
    fresh.load_state_dict(ours.state_dict())
    maps = torch.rand(2, channels, 9, 8)
    torch.testing.assert_close(fresh(maps), ours(maps), rtol=0, atol=1e-5)
    again = Convolution(channels, 4, 5)
    again.load_state_dict(fresh.state_dict())
    assert again(maps).equal(ours(maps))


def test_a_map_of_several_channels_is_not_taken_for_one():
    with pytest.raises((RuntimeError, IndexError)):
        Convolution(1, 4, 5)(torch.rand(2, 3, 9, 8))


# Pooling.


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(4, 4), (5, 5), (6, 7), (1, 3)])
def test_pooling_has_the_same_maximum_and_gradient(size, dtype, layout):
    torch.manual_seed(0)
    # So few values that many windows have more than one maximum.
    maps = torch.randint(3, (3, 4, *size)).to(dtype).contiguous(memory_format=layout)
    theirs = maps.clone().requires_grad_()
    maps.requires_grad_()
    output, expected = MaxPooling()(maps), F.max_pool2d(theirs, 2, ceil_mode=True)
    assert torch.equal(output, expected)
    upstream = torch.randn_like(expected)
    output.backward(upstream)
    expected.backward(upstream)
    assert torch.equal(maps.grad, theirs.grad)


def test_pooling_without_a_gradient_is_torchs_own():
    maps = torch.rand(2, 3, 6, 5)
    assert torch.equal(MaxPooling()(maps), F.max_pool2d(maps, 2, ceil_mode=True))


@pytest.mark.parametrize(("channels", "side", "size"), [(1, 1, (6, 6)), (3, 3, (7, 9))])
def test_a_deformable_convolution_is_torchvisions(channels, side, size):
    torch.manual_seed(0)
    layer, maps = DeformableConvolution(channels, 5, side), torch.rand(2, channels, *size)
    torch.testing.assert_close(layer(maps), F.conv2d(maps, layer.weight, layer.bias))
    for parameter in layer.offsets.parameters():
        nn.init.normal_(parameter)  # many places lie outside of the maps, too
    expected = deform_conv2d(maps, layer.offsets(maps), layer.weight, layer.bias)
    torch.testing.assert_close(layer(maps), expected, atol=1e-4, rtol=1e-4)


def test_a_deformable_convolution_learns_its_offsets_also_under_autocast():
    torch.manual_seed(0)
    layer, maps = DeformableConvolution(2, 3, 3), torch.rand(2, 2, 7, 7, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        layer(maps).float().square().sum().backward()
    assert layer.offsets.weight.grad.abs().max() > 0
    assert maps.grad.isfinite().all()
