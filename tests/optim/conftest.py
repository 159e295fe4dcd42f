"""One thread for everything in this room: the modules are tiny, and bitwise comparisons should not meet a scheduler."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
