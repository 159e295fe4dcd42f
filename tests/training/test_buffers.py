"""Recalibration gives a merged model running statistics of its own, and touches nothing else."""

import pytest
import torch
from torch import nn

from disttrain.training.buffers import RECALIBRATION_BATCHES, settle_buffers
from disttrain.worlds import StackedWorld

WORKERS = 3


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.dropout, self.norm, self.head = nn.Dropout(0.5), nn.BatchNorm1d(4, momentum=0.3), nn.Linear(4, 2)
        self.other_norm = nn.BatchNorm1d(2, momentum=None)

    def forward(self, x):
        return self.other_norm(self.head(self.norm(self.dropout(x))))


def batches(count):
    generator = torch.Generator().manual_seed(1)
    return [3 * torch.randn(8, 4, generator=generator) + 1 for _ in range(count)]


def rows_of(module):
    """Every worker's buffers: what the module has, plus the worker's number."""
    return {name: torch.stack([b + worker for worker in range(WORKERS)]) for name, b in module.named_buffers()}


def settled(module, policy, inputs=()):
    settle_buffers(policy, module, rows_of(module), StackedWorld(WORKERS), iter(inputs))
    return module


def test_recalibrated_statistics_are_the_plain_mean_over_the_batches_without_dropout():
    inputs = batches(RECALIBRATION_BATCHES + 5)
    norm = settled(Normed(), "recalibrate", inputs).norm
    used = torch.stack(inputs[:RECALIBRATION_BATCHES])
    torch.testing.assert_close(norm.running_mean, used.mean((0, 1)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(norm.running_var, used.var(1).mean(0), rtol=1e-5, atol=1e-5)
    assert norm.num_batches_tracked == RECALIBRATION_BATCHES


def test_recalibration_restores_momenta_and_modes_and_no_parameter_moves():
    module = Normed()
    module.head.eval()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    generator = torch.get_rng_state()
    settled(module, "recalibrate", batches(4))
    assert (module.norm.momentum, module.other_norm.momentum) == (0.3, None)
    assert (module.training, module.dropout.training, module.norm.training, module.head.training) == (True, True, True, False)
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())
    assert torch.equal(torch.get_rng_state(), generator), "nothing is drawn"


@pytest.mark.parametrize("policy", ["local", "average", "recalibrate"])
def test_a_model_without_running_statistics_is_left_alone(policy):
    module = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    settled(module, policy, batches(4))
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_an_average_leaves_counters_to_worker_0():
    norm = settled(Normed(), "average").norm
    assert torch.equal(norm.running_mean, torch.ones(4))
    assert norm.num_batches_tracked == 0


def test_local_statistics_are_worker_0s():
    norm = settled(Normed(), "local").norm
    assert torch.equal(norm.running_mean, torch.zeros(4))
    assert torch.equal(norm.running_var, torch.ones(4))
