"""What a CPU is told before it trains."""

import os
import subprocess
import sys

import torch
from torch.nn.functional import linear

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


def test_a_choice_of_the_users_stays():
    program = "from disttrain.launch.start import start_cpu; import os; start_cpu(1, 1); print(os.environ['MKL_CBWR'])"
    for chosen, kept in (({}, "AUTO"), ({"MKL_CBWR": "COMPATIBLE"}, "COMPATIBLE")):
        own = {key: value for key, value in os.environ.items() if key != "MKL_CBWR"} | chosen
        output = subprocess.run([sys.executable, "-c", program], env=own, capture_output=True, text=True, check=True).stdout
        assert output.strip() == kept
