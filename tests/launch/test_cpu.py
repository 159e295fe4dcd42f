"""What a CPU is told before it trains."""

import os

import pytest
import torch
from torch.nn.functional import linear

from disttrain.launch.start import start_cpu

ENTRIES_IN_64_BYTES = 16


def test_products_do_not_depend_on_where_a_matrix_lies():
    generator = torch.Generator().manual_seed(0)
    for m, n in ((4, 33), (8, 64), (33, 33), (64, 128)):
        x, weight = torch.randn(m, n, generator=generator), torch.randn(m + 3, n, generator=generator)
        for product in (linear, lambda x, weight: weight @ x[0]):
            results = [product(x, each) for each in at_every_alignment(weight)]
            assert all(torch.equal(result, results[0]) for result in results), (m, n)


def at_every_alignment(x):
    """Copies of ``x`` whose addresses differ modulo 64."""
    memory = torch.empty(x.numel() + ENTRIES_IN_64_BYTES)
    for offset in range(ENTRIES_IN_64_BYTES):
        copy = memory[offset : offset + x.numel()].view(x.shape)
        yield copy.copy_(x)


@pytest.mark.parametrize(("chosen", "kept"), [(None, "AUTO"), ("COMPATIBLE", "COMPATIBLE")])
def test_a_choice_of_the_users_stays(monkeypatch, chosen, kept):
    monkeypatch.delenv("MKL_CBWR", raising=False)
    if chosen is not None:
        monkeypatch.setenv("MKL_CBWR", chosen)
    start_cpu(1, local_world_size=1)
    assert os.environ["MKL_CBWR"] == kept
