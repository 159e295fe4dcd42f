"""CHOCO-SGD against its formula with a replica of every worker at every worker, and against what it is in special cases."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from disttrain.compression import QSGD, BlockTopK, Cast, Identity, Int8, PowerSGD, RandK, ScaledSign, TopK
from disttrain.compression.parameterwise import draw_keys
from disttrain.strategies.gossip import DPSGD, AlwaysConfig, Choco, ChocoConfig, SometimesConfig, WindowConfig
from disttrain.topology import (
    BaseGraphConfig,
    CompleteConfig,
    EdgesConfig,
    ExponentialConfig,
    OnePeerExponentialConfig,
    RandomMatchingConfig,
    RandomPushConfig,
    RingConfig,
    StarConfig,
)
from tests.reference.gossip import choco
from tests.strategies.local_updates.drive import GAMMA, begun, close, layout_of, local_step, quadratic, recorded, run, start

FIXED = [RingConfig(), StarConfig(), CompleteConfig(), ExponentialConfig(), EdgesConfig(edges=[[i, i + 1] for i in range(8)])]
COMPRESSORS = [Cast("fp64"), Identity(), Int8(3), ScaledSign(4), TopK(0.3), BlockTopK(1, 4), RandK(0.4),
               RandK(0.5, unbiased=True), QSGD(4, 8)]  # fmt: skip
SIZES = {"matrix": 5, "bias": 2}
EXACT = Cast("fp64")


class Updates:
    """Of plain descent; how many steps there will be."""

    def __init__(self, gradient, steps):
        self.gradient, self.steps = gradient, steps

    def __call__(self, step, x):
        return GAMMA * np.array([self.gradient(worker, step, row) for worker, row in enumerate(x)])


class Remembering(Choco):
    """CHOCO-SGD that remembers what it has compressed, by step."""

    def begin(self, x, layout, world, seed=0):
        super().begin(x, layout, world, seed)
        self.compressed, encode = {}, self.contraction.encode

        def remember(difference, seed, step, workers):
            self.compressed[step] = difference.clone()
            return encode(difference, seed, step, workers)

        object.__setattr__(self.contraction, "encode", remember)


def alone(strategy, seed=0):
    """What a worker's vector becomes, one parameter after the other: the reference's ``compress``.

    A last bit may decide what a compressor keeps, so it is given the strategy's own vector, if that is the same but for these.
    """

    def compress(step, worker, vector):
        same = strategy.compressed[step][worker].numpy()
        assert close(same, vector)
        compressor, out = strategy.compressor, np.zeros_like(vector)
        for number, unit in enumerate(strategy.layout.units):
            place = slice(unit.offset, unit.offset + unit.numel)
            keys = draw_keys(seed, number, step, torch.tensor([worker]))[0] if compressor.is_random else None
            payload = compressor.encode(torch.from_numpy(same[place]), keys)
            bound = compressor.bound(unit.numel)
            out[place] = compressor.decode(payload, unit.numel).double().numpy() / (1 + getattr(bound, "omega", 0.0))
        return out

    return compress


def held(strategy):
    """Σ_j W_ij (x̂_j − x̂_i) of the owners' replicas."""
    W, replicas = strategy.topology.matrix(), strategy.local["replica"].double().numpy()
    return W @ replicas - replicas


@settings(max_examples=40)
@given(
    st.sampled_from(FIXED),
    st.sampled_from(COMPRESSORS),
    st.integers(1, 9),
    st.integers(1, 3),
    st.floats(0.05, 1),
    st.integers(0, 99),
)
def test_it_is_the_formula_of_the_paper(topology, compressor, n, period, consensus_lr, seed):
    if isinstance(topology, EdgesConfig):
        topology = EdgesConfig(edges=topology.edges[: n - 1])
    layout, steps = layout_of(SIZES, alignment=4), 7
    gradient, x0 = quadratic(seed, n, layout.d), start(seed, layout.d)
    x0[5:8] = x0[10:] = 0.0  # padding
    padded = np.zeros(layout.d)
    padded[:5] = padded[8:10] = 1.0
    strategy = Remembering(compressor, consensus_lr, topology=topology, period=period)

    def descends(worker, step, x):
        return padded * gradient(worker, step, x)

    trace, result = run(strategy, descends, x0, n, steps, layout=layout)
    W = strategy.topology.matrix()
    expected, replicas = choco(x0, W, Updates(descends, steps), alone(strategy), 99 if n == 1 else period, consensus_lr)
    assert close(trace, expected)
    assert close(result, expected[-1].mean(0))
    assert close(strategy.local["flow"].numpy(), held(strategy))
    if n > 1:
        assert close(strategy.local["replica"].numpy(), replicas)


@pytest.mark.parametrize("topology", FIXED[:4])
@pytest.mark.parametrize("period", [1, 2])
def test_with_everything_sent_and_moved_it_is_dpsgd(topology, period):
    gradient, x0 = quadratic(2, 6, 4), start(2, 4)
    mine = run(Choco(EXACT, topology=topology, period=period), gradient, x0, 6, 12)
    theirs = run(DPSGD("adapt_then_combine", topology=topology, period=period), gradient, x0, 6, 12)
    assert all(close(*pair) for pair in zip(mine, theirs, strict=True))


@settings(max_examples=40)
@given(st.sampled_from(FIXED[:4]), st.sampled_from(COMPRESSORS), st.integers(2, 9), st.integers(0, 2**20))
def test_the_mean_is_that_of_the_updates_and_peers_hold_the_owners_replicas(topology, compressor, n, seed):
    d, steps = 6, 10
    gradient, x0 = recorded(seed, n, steps, d), start(seed, d)
    strategy = Choco(compressor, 0.3, topology=topology)
    trace, _ = run(strategy, gradient, x0, n, steps)
    updates = np.array([[gradient(worker, step, None) for worker in range(n)] for step in range(1, steps + 1)])
    assert close(trace.mean(1), x0 - GAMMA * updates.mean(1).cumsum(0))
    assert close(strategy.local["flow"].numpy(), held(strategy))


def consensus(strategy, n, d, rounds):
    """What is left of workers' distance to their mean after so many rounds without gradients."""
    apart = np.random.default_rng(0).standard_normal((n, d))

    def only_at_first(worker, step, x):
        return apart[worker] if step == 1 else np.zeros_like(x)

    trace, _ = run(strategy, only_at_first, np.zeros(d), n, rounds)
    return np.square(trace[-1] - trace[-1].mean(0)).sum() / np.square(GAMMA * (apart - apart.mean(0))).sum()


class MeanOfCompressed(DPSGD):
    """What one might think of first: send C(x), and mix by it."""

    def start(self, mixing, x):
        return super().start(mixing, TopK(1 / 8).decode(TopK(1 / 8).encode(x), x.shape[1]).to(x))


@pytest.mark.parametrize("compressor", [TopK(1 / 8), BlockTopK(1, 10), RandK(0.1), RandK(0.2, unbiased=True), QSGD(4), Int8()])
def test_an_eighth_of_the_entries_is_enough_for_consensus(compressor):
    assert consensus(Choco(compressor, topology=RingConfig()), 8, 80, 400) < 1e-6


def test_without_replicas_it_is_not():
    assert consensus(MeanOfCompressed("adapt_then_combine", topology=RingConfig()), 8, 80, 400) > 0.05


@pytest.mark.parametrize(("compressor", "consensus_lr"), [(TopK(1 / 8), 0.15), (ScaledSign(), 0.5), (Int8(), None)])
def test_workers_that_differ_find_the_optimum_of_all_by_smaller_steps(compressor, consensus_lr):
    n, d = 6, 40
    rng = np.random.default_rng(4)
    optima, x0 = rng.standard_normal((n, d)), rng.standard_normal(d)

    def gradient(worker, step, x):
        return (x - optima[worker]) * min(1.0, 20 / step)

    trace, _ = run(Choco(compressor, consensus_lr, topology=RingConfig()), gradient, x0, n, 1500)
    first, last = (np.square(trace[t] - optima.mean(0)).sum(1).max() for t in (0, -1))
    assert last < 1e-3 * first


def test_what_is_sent_is_a_payload_to_each_peer():
    layout, steps, period = layout_of({"matrix": 1000, "bias": 10}), 9, 2
    compressor = BlockTopK(1, 100)
    payload = compressor.payload_bytes(1000) + compressor.payload_bytes(10)
    for topology, peers in ((RingConfig(), 2), (CompleteConfig(), 5), (ExponentialConfig(), 3)):
        strategy = begun(Choco(compressor, topology=topology, period=period), 6, np.zeros(layout.d), layout)
        for step in range(1, steps + 1):
            local_step(strategy, quadratic(0, 6, layout.d), step)
        assert strategy.message_bytes == payload
        assert strategy.world.traffic.payload_bytes == steps // period * payload
        assert strategy.world.traffic.wire_bytes == steps // period * payload * peers
        assert f"after every 2 steps {payload * peers:,} bytes per worker" in strategy.description


def test_float32_drifts_by_nothing_but_rounding():
    n, d, rounds = 4, 64, 1000
    strategy = begun(Choco(TopK(0.1), 0.2, topology=RingConfig()), n, np.full(d, 100.0), dtype=torch.float32)
    generator = np.random.default_rng(0)
    total = np.zeros(d)
    for _ in range(rounds):
        assert strategy.before_step()
        step = torch.from_numpy(generator.standard_normal((n, d)).astype(np.float32) * 0.01)
        before = strategy.x.double().mean(0)
        strategy.x += step
        total += (strategy.x.double().mean(0) - before).numpy()
        strategy.after_step()
    drift = np.abs(strategy.x.double().mean(0).numpy() - 100 - total).max()
    assert drift < 5e-4  # a hundredth of it, had workers the sum of their peers' replicas instead of the flow


@pytest.mark.parametrize("compressor", [Int8(), TopK(0.5), ScaledSign()])
def test_a_worker_whose_parameters_are_not_finite_ends_it(compressor):
    def explodes(worker, step, x):
        return np.full_like(x, np.inf) if (worker, step) == (1, 3) else np.zeros_like(x)

    with pytest.raises(RuntimeError, match="diverged: after 3 steps some worker's parameters are not finite any more"):
        run(Choco(compressor, topology=RingConfig()), explodes, np.zeros(3), 4, 6)


def test_replicas_begin_at_parameters_that_were_loaded_after_the_start():
    strategy = begun(Choco(TopK(0.1), topology=RingConfig()), 4, np.zeros(20))
    strategy.x += 7.0
    local_step(strategy, lambda worker, step, x: np.zeros_like(x), 1)
    assert torch.equal(strategy.local["replica"], strategy.x)
    assert torch.equal(strategy.x, torch.full_like(strategy.x, 7.0))


@pytest.mark.parametrize("communication", [AlwaysConfig(), WindowConfig(start=3), WindowConfig(start=3, stop=9)])
def test_rounds_in_which_nobody_talks_are_made_up_for(communication):
    gradient, x0 = quadratic(1, 4, 5), start(1, 5)
    strategy = Choco(Int8(), topology=RingConfig(), communication=communication)
    run(strategy, gradient, x0, 4, 12)
    assert close(strategy.local["flow"].numpy(), held(strategy))


@pytest.mark.parametrize("topology", [BaseGraphConfig(), RandomMatchingConfig(), OnePeerExponentialConfig()])
def test_peers_that_change_are_refused(topology):
    message = f"peers that stay the same, and in {topology.name} of 8 workers they change.*: take ring, .*; or strategy dpsgd"
    with pytest.raises(ValueError, match=message):
        begun(Choco(Int8(), topology=topology), 8, np.zeros(3))
    with pytest.raises(ValueError, match=message):
        ChocoConfig(topology=topology).check_world(8)


@pytest.mark.parametrize(
    "communication", [SometimesConfig(), WindowConfig(start=1, outside=0.2), WindowConfig(start=1, everybody=True)]
)
def test_peers_that_hear_now_and_then_are_refused(communication):
    for make in (lambda: Choco(Int8(), topology=RingConfig(), communication=communication),
                 lambda: ChocoConfig(communication=communication)):  # fmt: skip
        with pytest.raises(ValueError, match=f"and {communication.name} is not so: take always, budget, or window .*; or"):
            make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Choco(Int8(), 0.0, topology=RingConfig()), "consensus_lr must be greater than 0 and at most 1, got 0.0"),
        (lambda: Choco(Int8(), 1.5, topology=RingConfig()), "at most 1, got 1.5"),
        (lambda: Choco(PowerSGD(), topology=RingConfig()), "power_sgd is an all-reduce, and gossip has none: take int8"),
        (lambda: Choco(TopK(0.1, QSGD(2)), topology=RingConfig()), "further from a vector than nothing is.* take int8"),
        (
            lambda: begun(Choco(Int8(), topology=RandomPushConfig(k=1)), 4, np.zeros(2)),
            "under random_push, 4 workers lose the mean",
        ),
    ],
)
def test_arguments_out_of_bounds(make, message):
    with pytest.raises(ValueError, match=message):
        make()
