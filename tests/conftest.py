"""Settings of all tests: one thread each (the machine's cores are for the workers), and no deadline on a noisy machine."""

import pytest
import torch
from hypothesis import HealthCheck, settings

from disttrain.launch.cpu import avoid_broken_amx, round_alike_at_any_address

settings.register_profile("disttrain", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("disttrain")
torch.set_num_threads(1)
round_alike_at_any_address()
avoid_broken_amx()

pytest_plugins = ["tests.kit", "tests.parity", "tests.survivors"]


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {"workers", "launched", "survivors"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.multiprocess)
