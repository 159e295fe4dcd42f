"""Objectives are the textbook's means, run on many models at once, and refuse what they cannot be computed on."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

from disttrain.component import UserError
from disttrain.objectives import Classification, NextToken, Objective
from disttrain.task import ClassificationTask, TokenTask

TOKENS, CLASSES = TokenTask(vocabulary_size=7, sequence_length=5), ClassificationTask((3,), 4)


def batch_of(objective, seed, size=6):
    """Inputs and targets, and a model for them."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(objective, NextToken):
        return torch.randint(7, (2, size, 5), generator=generator), nn.Embedding(7, 7)
    return (torch.randn(size, 3, generator=generator), torch.randint(4, (size,), generator=generator)), nn.Linear(3, 4)


@given(st.integers(0, 2**32))
def test_classification_is_the_mean_of_minus_the_log_of_the_classes_probability(seed):
    (inputs, labels), model = batch_of(Classification(), seed)
    probabilities = model(inputs).softmax(-1)
    expected = -sum(probabilities[row, label].log() for row, label in enumerate(labels.tolist())) / len(labels)
    torch.testing.assert_close(Classification()(model, inputs, labels), expected)


@given(st.integers(0, 2**32))
def test_accuracy_counts_the_samples_whose_largest_logit_is_their_class(seed):
    (inputs, labels), model = batch_of(Classification(), seed)
    measured = Classification().evaluate(model, inputs, labels)
    right = [row.index(max(row)) == label for row, label in zip(model(inputs).tolist(), labels.tolist(), strict=True)]
    assert measured["accuracy"].item() == pytest.approx(sum(right) / len(right))
    assert measured["loss"] == Classification()(model, inputs, labels)


@pytest.mark.parametrize("objective", [Classification(), NextToken()])
def test_evaluating_takes_one_forward_pass(objective):
    (inputs, targets), model = batch_of(objective, 0)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    objective.evaluate(model, inputs, targets)
    assert calls == [1]


@pytest.mark.parametrize("objective", [Classification(), NextToken()])
def test_gradients_and_measures_of_stacked_models_are_those_of_each(objective):
    batches = [batch_of(objective, seed) for seed in range(3)]
    models = [model for _, model in batches]
    inputs, targets = (torch.stack([batch[side] for batch, _ in batches]) for side in range(2))
    stacked, _ = stack_module_state(models)

    def apply(method, parameters, x, y):
        return method(lambda z: functional_call(models[0], parameters, (z,)), x, y)

    together = vmap(grad(lambda p, x, y: apply(objective, p, x, y)))(stacked, inputs, targets)
    measured = vmap(lambda p, x, y: apply(objective.evaluate, p, x, y))(stacked, inputs, targets)
    for row, model in enumerate(models):
        objective(model, inputs[row], targets[row]).backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(together[name][row], parameter.grad)
        for name, value in objective.evaluate(model, inputs[row], targets[row]).items():
            torch.testing.assert_close(measured[name][row], value)


def test_an_objective_of_ones_own_is_evaluated_by_its_loss_and_fits_any_task():
    class Mean(Objective):
        def __call__(self, model, inputs, targets):
            return model(inputs).mean()

    assert Mean().evaluate(torch.neg, torch.ones(2), None) == {"loss": torch.tensor(-1.0)}
    Mean().check(TOKENS)
    Mean().check(CLASSES)


def test_a_task_of_the_other_kind_is_refused_with_the_right_objective():
    NextToken().check(TOKENS)
    Classification().check(CLASSES)
    with pytest.raises(UserError, match=r"next_token .* 4 classes: use objective.name=classification"):
        NextToken().check(CLASSES)
    with pytest.raises(UserError, match=r"classification .* tokens: use objective.name=next_token"):
        Classification().check(TOKENS)


@pytest.mark.parametrize("shape", [(6,), (5, 4), (6, 2, 4)])
def test_logits_of_another_shape_are_refused_with_both(shape):
    with pytest.raises(UserError, match=r"logits \[6, classes\], got \[" + ", ".join(map(str, shape))):
        Classification()(lambda _: torch.zeros(shape), torch.zeros(6, 3), torch.zeros(6, dtype=torch.int64))
