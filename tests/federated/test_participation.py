"""Who is asked, who answers, and for whom the server waits."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from disttrain.federated.arrivals import DeadlineConfig, LatencyConfig, OvercommitConfig, WaitForAllConfig, answering
from disttrain.federated.participation import CyclicConfig, UniformConfig, WeightedConfig
from tests.federated.strategies import few

WAYS = [UniformConfig(), WeightedConfig(), CyclicConfig()]


@few
@given(st.sampled_from(WAYS), st.integers(1, 30), st.integers(1, 30), st.integers(0, 9), st.integers(0, 99))
def test_a_cohort_has_the_size_that_is_wanted_and_nobody_twice(way, num_clients, count, seed, number):
    clients = torch.arange(num_clients) * 3
    sizes = torch.arange(num_clients) + 1
    cohort = way.cohort(clients, sizes, count, seed, number)
    assert len(cohort) == len(set(cohort.tolist())) == min(count, num_clients)
    assert set(cohort.tolist()) <= set(clients.tolist())
    assert torch.equal(cohort, way.cohort(clients, sizes, count, seed, number)), "a pure function"


def frequencies(way, rounds=4000, num_clients=8, count=3, sizes=None):
    sizes = torch.ones(num_clients, dtype=torch.int64) if sizes is None else sizes
    rows = [way.cohort(torch.arange(num_clients), sizes, count, 7, number) for number in range(rounds)]
    return torch.bincount(torch.cat(rows), minlength=num_clients) / rounds


def test_uniform_asks_all_alike():
    expected = 3 / 8
    chi_squared = ((frequencies(UniformConfig()) - expected) ** 2 / (expected * (1 - expected) / 4000)).sum() * 7 / 8
    assert chi_squared < 24.3, "0.1 % of such draws are beyond, of 7 degrees of freedom"


def test_uniform_changes_by_one_when_a_client_leaves():
    for number in range(50):
        before = UniformConfig().cohort(torch.arange(20), torch.ones(20).long(), 5, 0, number).tolist()
        after = UniformConfig().cohort(torch.arange(19), torch.ones(19).long(), 5, 0, number).tolist()
        assert len(set(before) - set(after)) == (19 in before)


def test_weighted_asks_in_proportion():
    sizes = torch.tensor([1, 2, 3, 4, 5, 6, 7, 8])
    measured = frequencies(WeightedConfig(), count=1, sizes=sizes)
    torch.testing.assert_close(measured, sizes / sizes.sum(), atol=0.025, rtol=0)


def test_cyclic_asks_everybody_before_anybody_again():
    clients, sizes = torch.arange(10), torch.ones(10).long()
    turns = torch.cat([CyclicConfig().cohort(clients, sizes, 4, 3, number) for number in range(10)])
    for start in range(0, 40, 10):
        assert sorted(turns[start : start + 10].tolist()) == list(range(10))


SECONDS = torch.tensor([3.0, 1.0, 9.0, 2.0, 5.0], dtype=torch.float64)
ANSWERS = torch.tensor([True, True, True, False, True])


def test_waiting_for_all_takes_as_long_as_the_slowest():
    arrivals = WaitForAllConfig().decide(ANSWERS, SECONDS, 5)
    assert (arrivals.used.tolist(), arrivals.seconds) == ([True, True, True, False, True], 9.0)


def test_a_deadline_drops_the_late():
    arrivals = DeadlineConfig(seconds=4.0).decide(ANSWERS, SECONDS, 5)
    assert (arrivals.used.tolist(), arrivals.seconds) == ([True, True, False, False, False], 4.0)
    assert DeadlineConfig(seconds=60.0).decide(ANSWERS, SECONDS, 5).seconds == 9.0


def test_overcommitting_takes_the_first():
    assert OvercommitConfig(factor=1.3).invited(10) == 13
    assert OvercommitConfig(factor=1.25).invited(3) == 4
    arrivals = OvercommitConfig().decide(ANSWERS, SECONDS, 3)
    assert (arrivals.used.tolist(), arrivals.seconds) == ([True, True, False, False, True], 5.0)
    short = OvercommitConfig().decide(ANSWERS, SECONDS, 5)
    assert (int(short.used.sum()), short.seconds) == (4, 9.0)


def test_dropouts_are_as_frequent_as_asked_for_and_repeat():
    clients = torch.arange(20_000)
    answers = answering(clients, 0.3, 0, 5)
    assert 0.68 < answers.double().mean() < 0.72
    assert torch.equal(answers[100:200], answering(clients[100:200], 0.3, 0, 5))
    assert answering(clients, 0.0, 0, 5).all()


def test_latencies_are_log_normal_and_a_clients_own():
    latency, clients = LatencyConfig(seconds=2.0, client_spread=0.5, round_spread=0.0), torch.arange(20_000)
    seconds = latency.draw(clients, 10, 0, 3)
    assert torch.equal(seconds, latency.draw(clients, 10, 0, 4)), "slow clients stay slow"
    logs = (seconds / 20).log()
    assert abs(float(logs.mean())) < 0.02
    assert float(logs.std()) == pytest.approx(0.5, rel=0.03)
    assert not torch.equal(
        LatencyConfig(round_spread=1.0).draw(clients, 1, 0, 3), LatencyConfig(round_spread=1.0).draw(clients, 1, 0, 4)
    )
