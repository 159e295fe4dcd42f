"""Among any part of the workers rounds keep the mean of that part, and touch nobody else."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from disttrain.strategies import DPSGDConfig, strategies
from disttrain.strategies.gossip import GradientTrackingConfig, NoLoCoConfig, QuasiGlobalMomentumConfig
from disttrain.strategies.gossip.living import among_living
from disttrain.topology import (
    BaseGraphConfig,
    HypercubeConfig,
    OnePeerExponentialConfig,
    RandomMatchingConfig,
    RingConfig,
    TorusConfig,
    complete,
)

CONFIGS = [BaseGraphConfig(), RingConfig(), HypercubeConfig(), RandomMatchingConfig(), TorusConfig()]


@given(st.sampled_from(CONFIGS), st.lists(st.booleans(), min_size=16, max_size=16).filter(any), st.integers(0, 20))
def test_rounds_are_doubly_stochastic_on_the_living_and_identity_on_the_others(config, living, t):
    living = torch.tensor(living)
    W = among_living(config.build(16, 3), config, t, living, 3).matrix()
    assert np.allclose(W.sum(0), 1)
    assert np.allclose(W, W.T)
    assert (W >= 0).all()
    dead = ~living.numpy()
    assert np.array_equal(W[dead], np.eye(16)[dead])


def test_the_living_reach_their_mean_as_soon_as_if_they_had_been_alone():
    config, living = BaseGraphConfig(), torch.tensor([True, False, True, True, False, True, True, False])
    topology, alone = config.build(8, 0), config.build(5, 0)
    product = np.eye(8)
    for t in range(alone.exact_after):
        product = among_living(topology, config, t, living, 0).matrix() @ product
    assert np.allclose(product[living][:, living], 1 / 5)


def test_all_with_all_stays_so():
    living = torch.tensor([True, False, True, True])
    W = among_living(complete(4), RingConfig(), 0, living, 0).matrix()
    assert np.allclose(W[living][:, living], 1 / 3)


def test_who_can_and_who_cannot_go_on():
    for config in (DPSGDConfig(), DPSGDConfig(order="adapt_then_combine"), QuasiGlobalMomentumConfig()):
        config.check_survival(8)
    for config in (GradientTrackingConfig(), NoLoCoConfig(), strategies["ddp"](), strategies["local_sgd"]()):
        with pytest.raises(ValueError, match=f"name={config.name} cannot go on when a worker is lost"):
            config.check_survival(8)
    with pytest.raises(ValueError, match=r"topology.name=one_peer_exponential: .* take a topology whose links go both ways"):
        DPSGDConfig(topology=OnePeerExponentialConfig()).check_survival(8)
