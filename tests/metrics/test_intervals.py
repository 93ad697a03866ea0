import numpy as np
import pytest

from hf_recipes.metrics import intervals
from hf_recipes.metrics.intervals import paired_bootstrap, wilson_interval


def test_wilson_interval():
    """Values of Brown, Cai and DasGupta's formula; 0 of n is (0, z² / (n + z²))."""
    assert wilson_interval(0, 10) == (0.0, pytest.approx(3.841458820694124 / 13.841458820694124))
    assert wilson_interval(10, 10) == (pytest.approx(10 / 13.841458820694124), 1.0)
    assert wilson_interval(5, 10) == (pytest.approx(0.2365930905), pytest.approx(0.7634069095))
    assert wilson_interval(0, 0) == (0.0, 1.0)
    for hits, count in ((3, 2), (-1, 2)):
        with pytest.raises(ValueError):
            wilson_interval(hits, count)


def test_bootstrap_is_of_its_seed_only(monkeypatch):
    values = np.linspace(0, 1, 101)
    np.random.seed(1)
    interval = paired_bootstrap(values)[1:3]
    np.random.seed(2)
    assert paired_bootstrap(values)[1:3] == interval != paired_bootstrap(values, seed=1)[1:3]
    # The normal interval of the mean: 0.5 ± 1.96 · 0.29155 / √101.
    assert interval == pytest.approx((0.4431, 0.5569), abs=0.003)
    monkeypatch.setattr(intervals, "BLOCK", 1000)
    assert paired_bootstrap(values)[1:3] == pytest.approx((0.4431, 0.5569), abs=0.003)
    with pytest.raises(ValueError):
        paired_bootstrap([])


def test_paired_bootstrap():
    assert paired_bootstrap([0.25] * 4) == (0.25, 0.25, 0.25, pytest.approx(2 / 10_001))
    assert paired_bootstrap([-0.25] * 4).p_value == pytest.approx(2 / 10_001)
    assert paired_bootstrap([0.0, 0.0]) == (0.0, 0.0, 0.0, 1.0)
    even = paired_bootstrap([1, -1])
    # Means -1, 0 and 1 with a quarter, a half and a quarter: three quarters lie at 0 or on either side.
    assert even == (0.0, -1.0, 1.0, 1.0)
    # Of 3 draws of 1, 1, -1 the mean is below 0 with 2 or 3 of -1: 7 / 27, twice that is the p-value.
    assert paired_bootstrap([1, 1, -1]).p_value == pytest.approx(14 / 27, abs=0.02)
