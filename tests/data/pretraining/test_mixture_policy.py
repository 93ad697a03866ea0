"""Policies of mixtures, and the order that they give a run's blocks."""

import json

import numpy as np
import pytest

from hf_recipes.core.errors import UserError
from hf_recipes.data.pretraining.mixture_policy import ENDLESS, Schedule, parse_policy, read_policy, round_shares


def test_both_forms(tmp_path, capsys):
    policy = parse_policy({"news": 0.5, "wiki": 0.5}, "x")
    assert policy.by == "tokens" and policy.sources == {"news": 0.5, "wiki": 0.5} and not capsys.readouterr().out
    policy = parse_policy({"news": 3, "wiki": 1}, "mix.json")
    assert policy.sources == {"news": 0.75, "wiki": 0.25}
    assert "mix.json: the shares sum to 4, not to 1; taken as news 0.75, wiki 0.25" in capsys.readouterr().out
    epochs = parse_policy({"by": "epochs", "sources": {"news": 1.5, "wiki": 2}}, "x")
    assert epochs.sources == {"news": 1.5, "wiki": 2.0}
    epochs.save(tmp_path / "policy.json")
    assert read_policy(str(tmp_path / "policy.json")) == epochs


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"news": -0.5, "wiki": 1.5}, "news: -0.5; expected a number of at least 0"),
        ({"news": 0, "wiki": 0}, "every source has a share of 0"),
        ({"news": float("nan")}, "news: nan"),
        ({"news": "half"}, "news: 'half'"),
        ({"news": True}, "news: True"),
        (["news"], "expected an object of sources"),
        ({}, "every source has a share of 0"),
        ({"by": "lines", "sources": {"news": 1}}, "by 'lines'; expected one of tokens, documents, bytes, epochs"),
        ({"share": 1, "sources": {"news": 1}}, "unknown key 'share'"),
    ],
)
def test_policies_that_cannot_be(value, said):
    with pytest.raises(UserError, match=said):
        parse_policy(value, "mix.json")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_policy(str(tmp_path / "none.json"))
    (tmp_path / "bad.json").write_text("{news: 1}")
    with pytest.raises(UserError, match="not JSON"):
        read_policy(str(tmp_path / "bad.json"))


@pytest.mark.parametrize("quotas", [[7], [5, 3000, 117], [1] * 40, [2500, 2500]])
def test_each_block_of_each_source_comes_once(quotas):
    schedule = Schedule(np.array(quotas), seed=3)
    total = sum(quotas)
    drawn = [schedule[index] for index in range(2 * total)]
    for source, quota in enumerate(quotas):
        own = [ordinal for name, ordinal in drawn if name == source]
        assert own == list(range(2 * quota))
        assert sum(name == source for name, _ in drawn[:total]) == quota
    for location in (0, 1, total // 2, total, total + 1, 2 * total):
        counts = np.bincount([source for source, _ in drawn[:location]], minlength=len(quotas))
        assert schedule.counts(location).tolist() == counts.tolist()
    again = Schedule(np.array(quotas), seed=3)
    assert [again[index] for index in (total, 3, 2 * total - 1)] == [drawn[i] for i in (total, 3, 2 * total - 1)]
    if len(quotas) > 1:
        other = Schedule(np.array(quotas), seed=4)
        assert [other[index] for index in range(total)] != drawn[:total]


def test_shares_hold_at_every_place():
    """Of a mixture without an end, after each thousand blocks and far out."""
    shares = np.array([0.5, 0.3, 0.15, 0.05])
    schedule = Schedule(round_shares(shares, ENDLESS), seed=0)
    for blocks in (1024, 5 * 1024, 10**6, 10**10):
        assert np.abs(schedule.counts(blocks) - shares * blocks).max() < 1024 * 0.5
    assert np.abs(schedule.counts(10**10) / 10**10 - shares).max() < 1e-6
    source, ordinal = schedule[10**10]
    assert ordinal == schedule.counts(10**10)[source]


def test_round_shares():
    assert round_shares(np.array([0.5, 0.3, 0.2]), 11).tolist() == [6, 3, 2]
    assert json.dumps(round_shares(np.array([1, 1, 1]), 100).tolist()) == "[34, 33, 33]"
