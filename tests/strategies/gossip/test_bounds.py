"""How far D-PSGD lets workers drift apart, and what it sends."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disttrain.strategies.gossip import DPSGD, SometimesConfig, WindowConfig
from disttrain.topology import CompleteConfig, ExponentialConfig, RandomMatchingConfig, RingConfig, StarConfig
from disttrain.worlds.traffic import all_reduce_wire_bytes
from tests.strategies.local_updates.drive import GAMMA, begun, local_step, run

D, BYTES = 3, 8


@settings(max_examples=30)
@given(
    topology=st.sampled_from([RingConfig(), StarConfig(), CompleteConfig(), ExponentialConfig()]),
    n=st.integers(2, 12),
    adverse=st.floats(0, 1),
    seed=st.integers(0, 2**20),
)
def test_workers_stay_within_what_the_spectral_gap_allows(topology, n, adverse, seed):
    """With ‖g‖ ≤ G and gap p, √Ξ ≤ γG/p after a step of combine while adapt, and (1 − p) of that if adapting comes first."""
    G, rng = 2.0, np.random.default_rng(seed)
    own = rng.standard_normal((n, D))  # the same direction in every step is the worst case

    def bounded(worker, step, x):
        g = adverse * own[worker] + (1 - adverse) * rng.standard_normal(D)
        return G * g / np.linalg.norm(g)

    gap = topology.build(n, 0).spectral_gap()
    for order, factor in (("combine_while_adapt", 1.0), ("adapt_then_combine", 1 - gap)):
        trace, _ = run(DPSGD(order, topology=topology), bounded, np.zeros(D), n, 30)
        distance = np.sqrt(np.square(trace - trace.mean(1, keepdims=True)).sum(2).mean(1))
        assert (distance <= factor * GAMMA * G / gap + 1e-12).all(), order


@pytest.mark.parametrize(
    ("topology", "communication", "period", "models"),
    [
        (RingConfig(), None, 1, 2 * 20),
        (RingConfig(), None, 3, 2 * 6),
        (ExponentialConfig(), None, 2, 3 * 10),
        (CompleteConfig(), None, 1, 7 * 20),
        (RandomMatchingConfig(), WindowConfig(start=5, stop=9), 1, 4),
        (RandomMatchingConfig(), WindowConfig(start=5, stop=9, everybody=True), 2, 7 * 2),
    ],
)
def test_bytes_are_as_many_as_messages(topology, communication, period, models):
    n, steps = 8, 20
    strategy = begun(DPSGD(topology=topology, communication=communication, period=period), n, np.zeros(D))
    for step in range(1, steps + 1):
        local_step(strategy, lambda worker, step, x: np.ones(D), step)
    strategy.before_step()
    assert strategy.world.traffic.wire_bytes == models * D * BYTES
    assert strategy.metrics["sent_by_all"] == n * models
    strategy.finish()
    assert strategy.world.traffic.wire_bytes == models * D * BYTES + all_reduce_wire_bytes(D * BYTES, n)


@settings(max_examples=30)
@given(st.integers(2, 9), st.floats(0.1, 0.9))
def test_what_is_drawn_is_what_is_counted(n, probability):
    """Bytes of worker 0, from a look at the draws themselves."""
    strategy = DPSGD(topology=RandomMatchingConfig(), communication=SometimesConfig(probability=probability))
    begun(strategy, n, np.zeros(D))
    heard = 0
    for step in range(1, 16):
        local_step(strategy, lambda worker, step, x: np.ones(D), step)
        mixing = strategy.round_due()
        heard += 0 if mixing is None else int((mixing.weights[0] != 0).sum())
    strategy.before_step()
    assert strategy.world.traffic.wire_bytes == heard * D * BYTES
