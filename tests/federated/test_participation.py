"""Who is asked, who answers, and for whom the server waits."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from disttrain.federated import MIFA, SCALLION, Availability, FedAMD, FedAvg
from disttrain.federated.arrivals import DeadlineConfig, LatencyConfig, OvercommitConfig, WaitForAllConfig, answering
from disttrain.federated.participation import CyclicConfig, TraceConfig, UniformConfig, WeightedConfig
from tests.federated.quadratics import Quadratics, federation, run
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


def trace(tmp_path, *lines, **settings):
    path = tmp_path / "trace.csv"
    path.write_text("client,from,until\n" + "".join(f"{line}\n" for line in lines))
    return TraceConfig(path=str(path), **settings)


def test_a_trace_tells_who_can_be_asked(tmp_path):
    way = trace(tmp_path, "0,0,3", "", "2,1,2", "0,5,6", "3,0,6")
    clients, sizes = torch.arange(5), torch.ones(5).long()
    there = [sorted(way.cohort(clients, sizes, 9, 0, number).tolist()) for number in range(8)]
    assert there == [[0, 3], [0, 2, 3], [0, 3], [3], [3], [0, 3], [], []]
    assert [len(way.cohort(clients, sizes, 1, 0, number)) for number in range(8)] == [1] * 6 + [0] * 2
    again = trace(tmp_path, "0,0,3", "2,1,2", "0,5,6", "3,0,6", period=6)
    assert sorted(again.cohort(clients, sizes, 9, 0, 6 * 10**6 + 1).tolist()) == [0, 2, 3]
    assert again.cohort(clients[1:3], sizes[1:3], 9, 0, 0).tolist() == [], "who has no samples is not there"


def test_who_is_always_there_is_asked_as_by_uniform(tmp_path):
    way = trace(tmp_path, *(f"{client},0,1" for client in range(20)), period=1)
    clients, sizes = torch.arange(20), torch.ones(20).long()
    for number in range(5):
        assert torch.equal(way.cohort(clients, sizes, 6, 3, number), UniformConfig().cohort(clients, sizes, 6, 3, number))


@pytest.mark.parametrize("waiting", [WaitForAllConfig(), DeadlineConfig(seconds=3.0), OvercommitConfig()])
@pytest.mark.parametrize("algorithm", [FedAvg(), SCALLION(), MIFA(), FedAMD(0.5)])
def test_a_round_with_nobody_there_is_void(tmp_path, algorithm, waiting):
    who = Availability(2, trace(tmp_path, "0,0,1", "1,0,3", "2,2,3"), waiting)
    fed = run(federation(algorithm, Quadratics(3, 2), availability=who), 3)
    before = fed.x
    report = fed.step()
    assert (report.void, report.asked, report.bytes_down, report.virtual_seconds) == (True, 0, 0, 0.0)
    assert torch.equal(fed.x, before)


WRONG = {
    "no such file": (None, "cannot read"),
    "empty": ("", "an empty file"),
    "no header": ("0,0,3\n", "must be the header client,from,until, got 0,0,3"),
    "no line": ("client,from,until\n", "no client would ever be there"),
    "text": ("client,from,until\n1,0,3\n1,a,3\n", ":3: must be a client and rounds"),
    "too few": ("client,from,until\n1,0\n", ":2: must be a client and rounds"),
    "backwards": ("client,from,until\n1,3,3\n", "from < until"),
    "negative": ("client,from,until\n-1,0,3\n", ":2: must be a client and rounds"),
    "binary": (b"\xff\xfe\x00", "not UTF-8 text"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_bad_trace_is_refused_with_its_line(tmp_path, case):
    content, message = WRONG[case]
    path = tmp_path / "trace.csv"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        TraceConfig(path=str(path))


def test_a_trace_of_clients_that_do_not_exist_is_refused(tmp_path):
    with pytest.raises(ValueError, match="names client 5, and there are clients 0 to 4"):
        trace(tmp_path, "5,0,3").check(5)
    trace(tmp_path, "5,0,3").check(6)


def test_a_file_that_has_changed_is_read_again(tmp_path):
    clients, sizes = torch.arange(3), torch.ones(3).long()
    assert trace(tmp_path, "1,0,3").cohort(clients, sizes, 3, 0, 0).tolist() == [1]
    assert sorted(trace(tmp_path, "0,0,3", "2,0,3").cohort(clients, sizes, 3, 0, 0).tolist()) == [0, 2]
