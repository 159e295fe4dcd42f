"""Gradients of many workers at once are those of each alone, whatever the method, the chunk and the company."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from disttrain.component import UserError
from disttrain.models import CnnConfig, MlpConfig
from disttrain.objectives import Classification
from disttrain.simulation.gradients import METHODS, WorkerGradients, chunks
from disttrain.simulation.replicas import Replicas
from disttrain.task import ClassificationTask

DIGITS = ClassificationTask((1, 8, 8), 10)
WORKERS = 7


def replicas_of(config, workers=WORKERS):
    torch.manual_seed(0)
    replicas = Replicas(config.build(DIGITS), workers)
    replicas.x += 0.1 * torch.randn(replicas.x.shape)  # every worker has a model of its own
    return replicas


def batches(workers=WORKERS, size=5):
    return torch.randn(workers, size, 1, 8, 8), torch.randint(10, (workers, size))


def gradients_of(replicas, method, inputs, targets, chunk=WORKERS, passes=1):
    gradients = WorkerGradients(replicas, Classification(), 0, chunk, nullcontext)
    gradients.method = method
    losses = gradients(inputs, targets, passes)
    return losses, replicas.g.clone()


def one_by_one(replicas, inputs, targets):
    """Plain torch, on a module for each worker."""
    losses, rows = [], torch.zeros_like(replicas.x)
    for worker in range(len(replicas)):
        module = replicas.load(replicas.x[worker : worker + 1], worker)
        module.zero_grad()
        loss = F.cross_entropy(module(inputs[worker]), targets[worker])
        loss.backward()
        losses.append(loss.detach())
        for unit in replicas.layout.units:
            unit.of(rows[worker]).copy_(module.get_parameter(unit.name).grad)
    return torch.stack(losses), rows


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("config", [MlpConfig(), MlpConfig(hidden=[9, 8], norm="layer"), CnnConfig(), CnnConfig(norm="group")])
def test_methods_agree_with_plain_torch(config, method):
    replicas, (inputs, targets) = replicas_of(config), batches()
    losses, gradients = gradients_of(replicas, method, inputs, targets)
    expected_losses, expected = one_by_one(replicas, inputs, targets)
    assert torch.allclose(losses, expected_losses, atol=1e-6)
    assert torch.allclose(gradients, expected, atol=1e-6)
    if method == "loop" or (method == "vmap" and config == MlpConfig()):
        assert torch.equal(gradients, expected), "bitwise"


@given(st.integers(1, 40), st.integers(1, 50))
def test_chunks_cover_all_workers_once_and_leave_none_alone(workers, chunk):
    parts = chunks(workers, chunk)
    assert [worker for rows in parts for worker in range(rows.start, rows.stop)] == list(range(workers))
    assert all(2 <= rows.stop - rows.start <= max(2, chunk) + 1 for rows in parts) or workers == 1


@settings(max_examples=25)
@example(1, "vmap", 10, [1])
@example(2, "forward", 7, [1, 5])
@given(
    st.integers(1, WORKERS + 3),
    st.sampled_from(METHODS),
    st.integers(1, 70),
    st.lists(st.integers(1, 70), max_size=2),
)
def test_an_mlps_gradients_do_not_depend_on_the_chunk(chunk, method, size, hidden):
    replicas, (inputs, targets) = replicas_of(MlpConfig(hidden=hidden)), batches(size=size)
    losses, gradients = gradients_of(replicas, method, inputs, targets, chunk)
    all_at_once = gradients_of(replicas, method, inputs, targets)
    assert torch.equal(losses, all_at_once[0])
    assert torch.equal(gradients, all_at_once[1])


@pytest.mark.parametrize("method", METHODS)
def test_nor_on_the_number_of_workers(method):
    replicas, (inputs, targets) = replicas_of(MlpConfig()), batches()
    gradients = gradients_of(replicas, method, inputs, targets)[1]
    few = replicas_of(MlpConfig(), 3)
    few.x.copy_(replicas.x[2:5])
    assert torch.equal(gradients_of(few, method, inputs[2:5], targets[2:5])[1], gradients[2:5])


@pytest.mark.parametrize("method", METHODS)
def test_running_statistics_are_each_workers_own(method):
    replicas, (inputs, targets) = replicas_of(MlpConfig(hidden=[6], norm="batch")), batches()
    gradients_of(replicas, method, inputs, targets, chunk=3)
    alone = replicas_of(MlpConfig(hidden=[6], norm="batch"))
    one_by_one_statistics = []
    for worker in range(WORKERS):
        module = alone.load(alone.x[worker : worker + 1], worker).train()
        module(inputs[worker])
        one_by_one_statistics.append({name: b.clone() for name, b in module.named_buffers()})
    for name, stacked in replicas.buffers.items():
        expected = torch.stack([each[name] for each in one_by_one_statistics])
        assert torch.allclose(stacked, expected, atol=1e-6), name
    assert replicas.buffers["hidden0.norm.num_batches_tracked"].tolist() == [1] * WORKERS


@pytest.mark.parametrize("method", METHODS)
def test_passes_accumulate(method):
    replicas, (inputs, targets) = replicas_of(MlpConfig()), batches(size=6)
    whole = gradients_of(replicas, method, inputs, targets)[1]
    gradients = WorkerGradients(replicas, Classification(), 0, WORKERS, nullcontext)
    gradients.method = method
    for number in range(3):
        part = slice(2 * number, 2 * number + 2)
        gradients(inputs[:, part], targets[:, part], passes=3, accumulate=number > 0)
    assert torch.allclose(replicas.g, whole, atol=1e-6)


def test_a_model_with_dropout_gets_a_generator_for_each_worker():
    replicas, (inputs, targets) = replicas_of(MlpConfig(dropout=0.5)), batches()
    gradients = WorkerGradients(replicas, Classification(), 0, 3, nullcontext)
    choice = gradients.choose(inputs, targets)
    assert choice.method == "loop"
    assert "random" in choice.reason
    first = gradients(inputs, targets)
    second = gradients(inputs, targets)
    assert not torch.equal(first, second), "a new draw in every step"
    few = replicas_of(MlpConfig(dropout=0.5), 2)
    few.x.copy_(replicas.x[:2])
    again = WorkerGradients(few, Classification(), 0, 1, nullcontext)
    again.choose(inputs[:2], targets[:2])
    assert torch.equal(again(inputs[:2], targets[:2]), first[:2]), "no worker's draws depend on the others"
    with pytest.raises(UserError, match="--gradients vmap cannot be used: the model draws random numbers"):
        gradients.choose(inputs, targets, "vmap")


class Branches(nn.Linear):
    """Looks at values, which vmap cannot."""

    def forward(self, x):
        return super().forward(x.flatten(1)) * (2 if x.sum() > 0 else 1)


def test_what_vmap_refuses_is_looped_over_and_said():
    torch.manual_seed(0)
    replicas, (inputs, targets) = Replicas(Branches(64, 10), WORKERS), batches()
    gradients = WorkerGradients(replicas, Classification(), 0, WORKERS, nullcontext)
    choice = gradients.choose(inputs, targets)
    assert choice.method == "loop"
    assert "torch.func refuses this model" in choice.reason
    with pytest.raises(UserError, match="--gradients forward cannot be used"):
        gradients.choose(inputs, targets, "forward")


def test_the_trial_leaves_no_trace():
    replicas, (inputs, targets) = replicas_of(MlpConfig(norm="batch")), batches()
    kept = {name: b.clone() for name, b in replicas.buffers.items()}
    before, state = replicas.x.clone(), torch.get_rng_state()
    WorkerGradients(replicas, Classification(), 0, WORKERS, nullcontext).choose(inputs, targets)
    assert torch.equal(replicas.x, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(replicas.buffers[name], b) for name, b in kept.items())
