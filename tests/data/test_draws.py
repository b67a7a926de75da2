"""Random choices: their distributions, and that their bits are the same everywhere."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from stn_train.data.draws import draw_normal, draw_uniform, stream_generator, stream_seed


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_draw_normal_is_standard_normal():
    drawn = draw_normal(1.0, (100_000,), seeded(0)).double().numpy()
    assert stats.kstest(drawn, stats.norm.cdf).pvalue > 0.01
    assert drawn.mean() == pytest.approx(0, abs=0.01)
    assert drawn.std() == pytest.approx(1, abs=0.01)
    assert stats.skew(drawn) == pytest.approx(0, abs=0.03)
    assert stats.kurtosis(drawn) == pytest.approx(0, abs=0.06)


def test_draw_normal_equals_the_inverse_distribution_function_of_draw_uniform():
    uniform = torch.rand(1000, generator=seeded(0), dtype=torch.float64).numpy()
    drawn = draw_normal(2.5, (1000,), seeded(0)).numpy()
    np.testing.assert_allclose(drawn, 2.5 * stats.norm.ppf(uniform), rtol=1e-6, atol=2.5 * 2**-20)


def test_draw_normal_is_finite_at_the_ends_of_the_uniform(monkeypatch):
    ends = torch.tensor([0.0, 2**-53, 1 - 2**-53], dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda *args, **kwargs: ends.clone())
    low, lowest, high = draw_normal(1.0, (3,), seeded(0)).tolist()
    assert -9 < low == lowest < -8
    assert 8 < high < 9


def test_draw_uniform_reaches_both_ends_of_its_range():
    drawn = draw_uniform(-3, 5, (10_000,), seeded(0))
    assert drawn.dtype == torch.float32
    assert -3 <= drawn.min() < -2.99
    assert 4.99 < drawn.max() <= 5


@pytest.mark.parametrize(
    "draw", [lambda g: draw_uniform(-2, 3, (50,), g), lambda g: draw_normal(1, (50,), g)]
)
def test_the_generator_alone_decides_every_bit(draw):
    torch.manual_seed(1)
    drawn = draw(seeded(5))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert draw(seeded(5)).equal(drawn)
    assert torch.get_rng_state().equal(state)
    assert not draw(seeded(6)).equal(drawn)
    assert (drawn.dtype, drawn.device.type) == (torch.float32, "cpu")


@pytest.mark.parametrize(
    ("seed", "purpose", "number", "expected"),
    [
        (0, "test", 0, 7375240038197784700),
        (1, "order", 0, 433034383059858670),
        (2**63 - 1, "training", 49, 1356710533057410899),
    ],
)
def test_seeds_of_streams_have_not_changed(seed, purpose, number, expected):
    """Other seeds are other test sets, and other runs."""
    assert stream_seed(seed, purpose, number) == expected


def test_streams_differ_by_seed_purpose_and_number():
    streams = list(itertools.product([0, 1], ["training", "test"], [0, 1]))
    first = {float(torch.rand(1, generator=stream_generator(*stream))) for stream in streams}
    assert len(first) == len(streams)
    assert all(0 <= stream_seed(*stream) < 2**63 for stream in streams)
