"""Classifiers have the sizes they say, one row of logits per sample, and per-worker gradients; misfits are named."""

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.utils.flop_counter import FlopCounterMode

from disttrain.component import UserError
from disttrain.models import CnnConfig, MlpConfig
from disttrain.task import ClassificationTask, TokenTask

DIGITS = ClassificationTask((1, 8, 8), 10)
STATELESS = {
    "mlp": MlpConfig(),
    "logistic regression": MlpConfig(hidden=[]),
    "deep mlp": MlpConfig(hidden=[16, 12], activation="gelu", norm="layer"),
    "tanh mlp": MlpConfig(hidden=[5], activation="tanh"),
    "cnn": CnnConfig(),
    "group-normed cnn": CnnConfig(channels=[12, 7, 3], norm="group"),
}
BATCH_NORMED = {"batch-normed mlp": MlpConfig(norm="batch"), "batch-normed cnn": CnnConfig(norm="batch")}
EVERY = STATELESS | BATCH_NORMED
every_classifier = pytest.mark.parametrize("config", EVERY.values(), ids=EVERY)


def images(seed, batch=6):
    return torch.rand(batch, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def size(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_default_sizes_on_digits():
    assert size(MlpConfig().build(DIGITS)) == (64 + 1) * 64 + (64 + 1) * 10 == 4810
    assert size(CnnConfig().build(DIGITS)) == (9 + 1) * 8 + (9 * 8 + 1) * 16 + (16 * 2 * 2 + 1) * 10 == 1898


@every_classifier
def test_each_sample_gets_a_row_of_logits_and_every_parameter_a_gradient(config):
    module = config.build(DIGITS)
    logits = module(images(0))
    assert logits.shape == (6, 10)
    F.cross_entropy(logits, torch.arange(6)).backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


@every_classifier
def test_a_few_steps_lower_the_loss_on_one_batch(config):
    torch.manual_seed(0)
    module, inputs, labels = config.build(DIGITS), images(0), torch.arange(6)
    optimizer = torch.optim.AdamW(module.parameters(), lr=2e-2)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = F.cross_entropy(module(inputs), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("config", STATELESS.values(), ids=STATELESS)
def test_vmapped_gradients_of_stacked_workers_are_those_of_each_worker(config):
    workers = [config.build(DIGITS).double() for _ in range(3)]
    stacked, _ = stack_module_state(workers)
    inputs, labels = torch.stack([images(seed).double() for seed in range(3)]), torch.arange(6)

    def gradients(parameters, rows):
        return grad(lambda inner: F.cross_entropy(functional_call(workers[0], inner, (rows,)), labels))(parameters)

    together = vmap(gradients)(stacked, inputs)
    for row, worker in enumerate(workers):
        for name, gradient in gradients(dict(worker.named_parameters()), inputs[row]).items():
            torch.testing.assert_close(together[name][row], gradient, msg=name)


@pytest.mark.parametrize("config", [MlpConfig(), MlpConfig(hidden=[]), CnnConfig(), CnnConfig(channels=[4])], ids=repr)
def test_flops_are_three_times_those_that_torch_counts_forward(config):
    module = config.build(DIGITS)
    with FlopCounterMode(display=False) as counter:
        module(images(0))
    biases = sum(p.numel() for p in module.parameters() if p.ndim == 1) if config.name == "mlp" else 0
    assert config.flops_per_token(module, DIGITS) - 6 * biases == 3 * counter.get_total_flops() / 6


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_norms_and_dropout_stand_in_every_hidden_layer(norm):
    module = MlpConfig(hidden=[5, 6], norm=norm, dropout=0.5).build(DIGITS)
    kinds = [type(part) for part in module.modules()]
    assert kinds.count(nn.LayerNorm if norm == "layer" else nn.BatchNorm1d) == kinds.count(nn.Dropout) == 2


def test_dropout_acts_in_training_only():
    module = MlpConfig(dropout=0.5).build(DIGITS)
    assert not torch.equal(module(images(0)), module(images(0)))
    module.eval()
    assert torch.equal(module(images(0)), module(images(0)))


def test_an_mlp_takes_samples_of_any_shape():
    assert MlpConfig().build(ClassificationTask((3, 2, 2, 5), 4))(torch.zeros(7, 3, 2, 2, 5)).shape == (7, 4)
    assert MlpConfig().build(ClassificationTask((13,), 3))(torch.zeros(7, 13)).shape == (7, 3)


def test_a_cnn_takes_images_whose_sides_are_odd_and_differ():
    task = ClassificationTask((3, 9, 14), 5)
    assert CnnConfig().build(task)(torch.zeros(2, 3, 9, 14)).shape == (2, 5)


@pytest.mark.parametrize("config", [MlpConfig(), CnnConfig()])
def test_tokens_are_refused_with_what_to_use_instead(config):
    with pytest.raises(UserError, match=rf"model.name={config.name} .* sequences of 128 tokens: use model.name=plm, gpt"):
        config.build(TokenTask(256, 128))


@pytest.mark.parametrize(
    ("task", "channels", "message"),
    [
        (ClassificationTask((64,), 10), [8], r"needs images .* shape \[64\]: use model.name=mlp"),
        (DIGITS, [1, 1, 1, 1], r"model.channels=\[1, 1, 1, 1\] halves images 4 times, and the data's are 8 × 8"),
    ],
)
def test_samples_that_do_not_suit_a_cnn_are_refused(task, channels, message):
    with pytest.raises(UserError, match=message):
        CnnConfig(channels=channels).build(task)


@pytest.mark.parametrize("settings", [{"hidden": [0]}, {"dropout": 1.0}, {"norm": "group"}, {"activation": "sigmoid"}])
def test_impossible_mlps_are_refused(settings):
    with pytest.raises(ValidationError):
        MlpConfig(**settings)


@pytest.mark.parametrize("settings", [{"channels": []}, {"channels": [8, 0]}, {"norm": "layer"}])
def test_impossible_cnns_are_refused(settings):
    with pytest.raises(ValidationError):
        CnnConfig(**settings)
