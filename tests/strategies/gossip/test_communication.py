"""When workers talk: both ends know it, as often as it was asked for."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from disttrain.strategies.gossip import SometimesConfig, WindowConfig
from disttrain.strategies.gossip.communication import spoken
from disttrain.topology import OnePeerExponentialConfig, RandomMatchingConfig, RingConfig


@given(st.integers(2, 40), st.integers(0, 2**20), st.integers(0, 100), st.floats(0.05, 0.95))
def test_both_ends_of_a_pair_talk_or_neither(n, seed, number, rate):
    round = spoken(RingConfig().build(n, seed).round(number), rate, seed, number, symmetric=True)
    talks = torch.zeros(n, n, dtype=torch.bool)
    for worker in range(n):
        talks[worker, round.senders[worker]] = True
    talks.fill_diagonal_(False)
    assert torch.equal(talks, talks.T)


def test_pairs_talk_as_often_as_asked():
    topology, said, pairs = RandomMatchingConfig().build(50, 0), 0, 0
    for number in range(400):
        round = topology.round(number)
        for each, count in ((round, "pairs"), (spoken(round, 0.2, 0, number, symmetric=True), "said")):
            messages = int((each.senders != torch.arange(50)[:, None]).sum())
            said, pairs = (said + messages, pairs) if count == "said" else (said, pairs + messages)
    assert said / pairs == pytest.approx(0.2, abs=0.02)  # four standard deviations of 10,000 draws are 0.016


def test_where_messages_go_one_way_all_talk_or_nobody():
    topology, kinds = OnePeerExponentialConfig().build(8, 0), set()
    for number in range(60):
        round = spoken(topology.round(number), 0.5, 0, number, symmetric=False)
        kinds.add(int((round.senders != torch.arange(8)[:, None]).sum()))
    assert kinds == {0, 8}


def test_a_window():
    window = WindowConfig(start=10, stop=20, outside=0.25)
    assert [window.rate(step) for step in (9, 10, 19, 20)] == [0.25, 1.0, 1.0, 0.25]
    assert WindowConfig(start=10).rate(10**9) == 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WindowConfig(start=5, stop=5), "stop=5 must be more than start=5: the window would be empty"),
        (lambda: WindowConfig(start=100).check_steps(100), "start=100 must be less than steps=100: the window never opens"),
        (lambda: SometimesConfig(probability=0.0), "greater than 0"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(ValueError, match=message):
        make()
