"""The round loop: blocks, engines, what is lost, what is committed, and going on from a checkpoint."""

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from disttrain.compression import RandK, TopK
from disttrain.federated import (
    MIFA,
    RERCE,
    SCAFCOM,
    SCALLION,
    Availability,
    BatchedEngine,
    ClientStore,
    ContinualRERCE,
    FedAMD,
    FedAvg,
    FedDyn,
    Federation,
    FedPAGE,
    Order,
    Ordered,
    PacingConfig,
    Plan,
    ServerOptimizer,
    Work,
)
from disttrain.federated.arrivals import DeadlineConfig, LatencyConfig, OvercommitConfig
from disttrain.federated.blocks import Block
from tests.federated.quadratics import Quadratics, federation, run
from tests.federated.strategies import few, sizes

ALGORITHMS = {
    "fedavg": FedAvg(),
    "fedadam": FedAvg(0.1, ServerOptimizer("adam", 0.05)),
    "scaffold": SCALLION(),
    "scallion": SCALLION(RandK(0.4, unbiased=True), alpha=0.1),
    "scafcom": SCAFCOM(TopK(0.2)),
    "fedamd": FedAMD(0.5),
    "mifa": MIFA(),
    "feddyn": FedDyn(0.5),
    "fedpage": FedPAGE(0.4),
    "rerce": RERCE(0.5),
    "rerce_continual": ContinualRERCE(0.5),
    "easy first": Ordered(FedAvg(), Order("easy"), reports=PacingConfig()),
    "hard first, as clients see it": Ordered(SCALLION(), Order("hard", score="local")),
    "by an expert": Ordered(FedDyn(0.5), Order(score="expert", expert=torch.ones(1, dtype=torch.float64))),  # of any d
    "in any order": Ordered(MIFA(), Order("random")),
}
LATE = LatencyConfig(seconds=1.0, client_spread=0.5, round_spread=0.5)
every = pytest.mark.parametrize("name", ALGORITHMS)


def state_of(fed):
    server, clients, facts = fed.state()
    return {**server, **{f"client {name}": each for name, each in clients.items()}}, facts


def equal(first, second):
    (tensors, facts), (others, other_facts) = state_of(first), state_of(second)
    assert facts == other_facts
    assert tensors.keys() == others.keys()
    for name in tensors:
        assert torch.equal(tensors[name], others[name]), name


@every
def test_serial_and_batched_engines_agree(name):
    problem = Quadratics(9, 5)
    feds = [federation(ALGORITHMS[name], problem, cohort=7, block_size=3, serial=serial) for serial in (True, False)]
    for fed in feds:
        run(fed, 6)
    (tensors, facts), (others, other_facts) = map(state_of, feds)
    assert facts == other_facts
    for key in tensors:
        torch.testing.assert_close(tensors[key], others[key], atol=1e-12, rtol=1e-12)


@every
@pytest.mark.parametrize("together", [7, 100])
def test_which_blocks_are_computed_together_does_not_show_in_one_bit(name, together):
    problem = Quadratics(20, 5)
    plain, joined = (federation(ALGORITHMS[name], problem, cohort=17, block_size=3) for _ in range(2))
    joined.engine = replace(joined.engine, together=together)
    assert [len(group) for group in joined.engine._groups([Block(torch.arange(3), {}, {}, None)] * 6)] == (
        [2, 2, 2] if together == 7 else [6]
    )
    run(plain, 4)
    run(joined, 4)
    equal(plain, joined)


@dataclass(frozen=True)
class Scattered:
    """Blocks in any order, on a number of makeshift workers, some of them computed twice."""

    inner: BatchedEngine
    workers: int

    def run(self, blocks):
        results = [None] * len(blocks)
        for worker in reversed(range(self.workers)):
            for number in range(worker, len(blocks), self.workers):
                self.inner.run([blocks[number]])  # whose result is lost on the way
                results[number] = self.inner.run([blocks[number]])[0]
        return results


@every
@pytest.mark.parametrize("workers", [1, 3])
def test_who_computes_which_block_does_not_show_in_one_bit(name, workers):
    problem = Quadratics(20, 5)
    plain, scattered = (federation(ALGORITHMS[name], problem, cohort=17, block_size=4) for _ in range(2))
    scattered.engine = Scattered(scattered.engine, workers)
    run(plain, 4)
    run(scattered, 4)
    equal(plain, scattered)


@every
def test_going_on_from_a_checkpoint_is_bitwise(name):
    def build():
        who = Availability(5, waiting=OvercommitConfig(factor=1.3), dropout=0.2, latency=LATE)
        return federation(ALGORITHMS[name], Quadratics(9, 4), availability=who, block_size=3, rate=lambda t: 0.1 / (1 + t))

    whole = run(build(), 7)
    half = run(build(), 3)
    server, clients, facts = half.state()
    other = build()
    other.restore({n: x.clone() for n, x in server.items()}, {n: x.clone() for n, x in clients.items()}, facts)
    equal(whole, run(other, 4))


def test_a_checkpoint_of_another_algorithm_is_refused():
    with pytest.raises(ValueError, match=r"what the server keeps is \['x'\] here, and \['c', 'x'\] there"):
        federation(FedAvg(), Quadratics(4, 3)).restore(*federation(SCALLION(), Quadratics(4, 3)).state())


@every
def test_the_message_and_the_states_that_are_lent_are_not_changed(name):
    problem, algorithm = Quadratics(6, 4), ALGORITHMS[name]
    fed = run(federation(algorithm, problem), 2)
    message, clients = algorithm.broadcast(fed.server), torch.arange(6)
    state = fed.store.read(clients)
    lent = {"message": {k: v.clone() for k, v in message.items()}, "state": {k: v.clone() for k, v in state.items()}}
    fed.engine.run([Block(clients, message, state, fed.plan)])
    assert all(torch.equal(message[key], lent["message"][key]) for key in message)
    assert all(torch.equal(state[key], lent["state"][key]) for key in state)


@few
@given(sizes(), st.sampled_from(sorted(ALGORITHMS)))
def test_who_takes_no_part_keeps_what_it_has(size, name):
    fed = federation(ALGORITHMS[name], Quadratics(size.clients, size.d), size.cohort, steps=size.steps, seed=size.seed)
    run(fed, 2)
    cohort = fed.availability.participation.cohort(torch.arange(size.clients), fed.sizes, size.cohort, size.seed, 2).tolist()
    others = [client for client in range(size.clients) if client not in cohort]
    before = {key: rows[others].clone() for key, rows in fed.store.vectors.items()}
    fed.step()
    assert all(torch.equal(fed.store.vectors[key][others], rows) for key, rows in before.items())


@every
def test_who_is_late_or_lost_is_as_if_it_had_not_been_asked(name):
    problem = Quadratics(12, 4)
    who = Availability(8, waiting=DeadlineConfig(seconds=3.0), dropout=0.3, latency=LATE)
    fed = run(federation(ALGORITHMS[name], problem, availability=who), 1)  # FedAMD and MIFA meet everybody first
    cohort, arrivals = fed._ask(replace(fed.plan, round=1))
    asked, used = len(cohort), int(arrivals.used.sum())  # FedPAGE asks everybody
    assert 0 < used < asked

    class Heard:
        def cohort(self, *_):
            return cohort[arrivals.used]

    other = federation(ALGORITHMS[name], problem, availability=Availability(8, participation=Heard()))
    other.restore(*fed.state())
    report, reference = fed.step(), other.step()
    assert torch.equal(fed.x, other.x)
    for key, rows in fed.store.vectors.items():
        assert torch.equal(rows, other.store.vectors[key])
    assert report.lost == asked - used
    assert (report.bytes_up, report.evaluations) == (reference.bytes_up, reference.evaluations)
    assert report.asked == asked
    assert report.bytes_down > reference.bytes_down, "what was sent was sent"


def test_a_void_round_counts_and_changes_nothing():
    who = Availability(4, dropout=0.999999)
    fed = federation(SCALLION(), Quadratics(6, 3), availability=who, start=torch.ones(3, dtype=torch.float64))
    report = fed.step()
    assert (report.void, report.used, report.lost, report.bytes_up) == (True, 0, 4, 0)
    assert report.bytes_down == 4 * 2 * 3 * 8
    assert torch.equal(fed.x, torch.ones(3, dtype=torch.float64))
    assert (fed.round, fed.totals.void_rounds) == (1, 1)


def test_too_few_answers_make_a_round_void():
    def make(min_completion):
        who = Availability(8, waiting=DeadlineConfig(seconds=3.0), latency=LATE, min_completion=min_completion)
        return federation(SCALLION(), Quadratics(12, 4), availability=who)

    used = make(0.0).step().used
    assert not make(used / 8).step().void
    fed = make((used + 1) / 8)
    assert fed.step().void
    assert not any(rows.any() for rows in fed.store.vectors.values())


class Exploding(Quadratics):
    """One client's gradients are not finite."""

    def gradients(self, y, clients, draws):
        losses, gradients = super().gradients(y, clients, draws)
        gradients[clients == 2] = torch.nan
        return losses, gradients


@every
@pytest.mark.parametrize("serial", [True, False])
def test_a_reply_that_is_not_finite_is_refused(name, serial):
    fed = federation(ALGORITHMS[name], Exploding(5, 3), serial=serial)
    reports = [fed.step() for _ in range(4)]
    assert fed.x.isfinite().all()
    assert {report.used for report in reports} <= {4, 5}, "a miner of one step in FedAMD has sampled nothing"
    first = federation(ALGORITHMS[name], Exploding(5, 3)).store.vectors
    assert all(torch.equal(rows[2], first[key][2]) for key, rows in fed.store.vectors.items())


def test_a_round_that_is_void_after_all_commits_nothing():
    fed = federation(SCALLION(), Exploding(5, 3), availability=Availability(5, min_completion=1.0))
    report = fed.step()
    assert (report.void, report.used, report.lost) == (True, 0, 5)
    fed.store.commit()  # which finds nothing left
    assert not fed.store.vectors["control"].any()
    assert not fed.x.any()


def test_draws_differ_between_steps_rounds_and_clients_and_not_by_company(monkeypatch):
    problem, plan = Quadratics(6, 4), Plan(6, batch_size=1)
    y = torch.ones(6, 4, dtype=torch.float64)

    def gradient(step, number, clients):
        return Work.of_block(problem, replace(plan, round=number), torch.tensor(clients)).gradient(y[: len(clients)], step)

    seen = {tuple(gradient(step, number, [2])[0].tolist()) for step in range(6) for number in range(6)}
    assert len(seen) == 6, "each of the client's samples"
    assert torch.equal(gradient(3, 4, [5, 1, 2])[2], gradient(3, 4, [2])[0])
    with monkeypatch.context() as patch:
        one_by_one = [gradient(step, 4, [2, 5]) for step in range(12)]  # more steps than planned, too
        patch.setattr("disttrain.federated.work.MOST_DRAWS", 0)
        assert all(torch.equal(gradient(step, 4, [2, 5]), each) for step, each in enumerate(one_by_one))
    several = Work.of_block(problem, replace(plan, batch_size=3, seed=1), torch.tensor([0])).gradient(y[:1], 0)
    assert tuple(several[0].tolist()) not in seen


@dataclass
class Losing:
    """Loses the block with a client in it."""

    inner: BatchedEngine
    client: int

    def run(self, blocks):
        return [
            None if self.client in block.clients else result for block, result in zip(blocks, self.inner.run(blocks), strict=True)
        ]


def test_clients_of_a_lost_block_count_as_lost():
    fed = federation(SCALLION(), Quadratics(8, 3), block_size=3)
    fed.engine = Losing(fed.engine, 4)
    report = fed.step()
    assert (report.used, report.lost) in {(5, 3), (6, 2)}
    assert not fed.store.vectors["control"][4].any()
    torch.testing.assert_close(fed.server["c"], fed.store.vectors["control"].mean(0))


def test_clients_without_samples_are_never_asked():
    problem = Quadratics(6, 3)
    problem.sizes = torch.tensor([6, 0, 6, 6, 0, 6])
    fed = run(federation(MIFA(), problem, cohort=2), 20)
    assert fed.store.vectors["memory"].any(1).tolist() == [True, False, True, True, False, True]
    with_samples = fed.store.vectors["memory"][problem.sizes > 0]
    torch.testing.assert_close(fed.server["mean_memory"], with_samples.mean(0), msg="the others have no say")
    with pytest.raises(ValueError, match="from 1 to 4"):
        federation(MIFA(), problem, cohort=5)


def test_only_staged_states_can_be_committed_and_only_whole_ones():
    store = ClientStore(("a",), 4, 2)
    store.stage(torch.tensor([1, 3]), {"a": torch.ones(2, 2)})
    assert not store.vectors["a"].any()
    store.discard()
    store.commit()
    assert not store.vectors["a"].any()
    store.stage(torch.tensor([1, 3]), {"a": torch.ones(2, 2)})
    store.commit()
    assert store.vectors["a"].sum(1).tolist() == [0, 2, 0, 2]
    with pytest.raises(ValueError, match="clients keep"):
        store.stage(torch.tensor([0]), {})


def test_a_large_store_is_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr("disttrain.federated.store.LARGE_BYTES", 100)
    store = ClientStore(("a", "b"), 10, 5, folder=tmp_path / "clients")
    store.stage(torch.tensor([2]), {"a": torch.ones(1, 5), "b": torch.full((1, 5), 2.0)})
    store.commit()
    assert store.read(torch.tensor([2, 3]))["b"].tolist() == [[2.0] * 5, [0.0] * 5]
    assert (tmp_path / "clients" / "a").stat().st_size == 10 * 5 * 4


def test_replies_are_sums_in_whatever_order_clients_stand():
    problem = Quadratics(7, 4)
    algorithm = FedAvg()
    fed = run(federation(algorithm, problem), 1)
    clients = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    sums = [
        fed.engine.run([Block(each, algorithm.broadcast(fed.server), fed.store.read(each), fed.plan)])[0].sums["delta"]
        for each in (torch.arange(7), clients)
    ]
    torch.testing.assert_close(sums[0].vector, sums[1].vector)
    assert sums[0].weight == sums[1].weight == 7 * 6


def test_bad_federations():
    problem = Quadratics(4, 3)
    for cohort in (0, 5):
        with pytest.raises(ValueError, match="cohort"):
            federation(FedAvg(), problem, availability=Availability(cohort))
    assert isinstance(federation(FedAvg(), problem), Federation)
