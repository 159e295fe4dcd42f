"""What compare_optimizers.py decides and computes, without its trainings."""

import math

import compare_optimizers
import optimizer_memory
import pytest
import torch
from optimizer_runs import LOG_EVERY, VALIDATIONS
from torch import nn

from disttrain.optim import COSMOS, SOAP

BLOCK = [(64, 64)] * 4 + [(256, 64), (64, 256)]


@pytest.mark.parametrize(
    ("losses", "wanted"),
    [
        ({1.0: 3.0, 2.0: 2.0, 4.0: 2.5}, None),
        ({1.0: 2.0, 2.0: 2.1, 4.0: 2.5}, 0.5),
        ({1.0: 3.0, 2.0: 2.1, 4.0: 2.0}, 8.0),
        ({1.0: 3.0, 2.0: 2.1, 4.0: math.inf}, None),
        ({1.0: 3.0, 2.0: math.inf, 4.0: math.inf}, 0.5),
    ],
)
def test_the_grid_goes_on_beyond_an_edge_that_is_best(losses, wanted):
    assert compare_optimizers.beyond_edge(losses) == wanted


def test_a_wider_models_grid_goes_on_downwards_only():
    assert compare_optimizers.beyond_edge({1.0: 3.0, 2.0: 2.0}, upwards=False) is None
    assert compare_optimizers.beyond_edge({1.0: 2.0, 2.0: 3.0}, upwards=False) == 0.5


def test_the_grid_does_not_go_on_where_all_diverged():
    with pytest.raises(RuntimeError, match="diverged at every learning rate"):
        compare_optimizers.beyond_edge({1.0: math.inf, 2.0: math.inf})


@pytest.mark.parametrize("affordable", [-5.0, 100.0, 777.0, 5000.0])
def test_steps_divide_into_validations_and_windows(affordable):
    steps = compare_optimizers.rounded_steps(affordable)
    assert steps > 0
    assert steps % (VALIDATIONS * LOG_EVERY) == 0
    assert steps <= max(affordable, VALIDATIONS * LOG_EVERY)


def test_formulas_of_memory_are_what_the_optimizers_store():
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in BLOCK]
    assert optimizer_memory.state_bytes(SOAP(parameters)) == 4 * optimizer_memory.soap_numbers(BLOCK)
    assert optimizer_memory.state_bytes(COSMOS(parameters, rank=8)) == 4 * optimizer_memory.cosmos_numbers(BLOCK, 8)


def test_the_papers_ratio_counts_one_square_matrix_a_side():
    d = 2048
    block = [(d, d)] * 4 + [(4 * d, d), (d, 4 * d)]
    cosmos = optimizer_memory.cosmos_numbers(block, 64)
    assert optimizer_memory.soap_numbers(block) == 108 * d**2
    assert optimizer_memory.soap_numbers(block, per_side=1) == 66 * d**2
    assert cosmos / (66 * d**2) == pytest.approx(0.190, abs=5e-4)


@pytest.mark.parametrize(
    ("ours", "judged"),
    [({0: 1.9, 1: 2.0}, "at or below"), ({0: 2.1, 1: 2.2}, "above"), ({0: 1.9, 1: 2.1}, "cannot be told apart")],
)
def test_a_verdict_needs_all_seeds(ours, judged):
    assert judged in compare_optimizers.verdict(ours, {0: 2.0, 1: 2.0}, "Muon")
