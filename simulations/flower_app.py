"""Flower's side of `bench_federated.py`, to be run by the Python of Flower's own environment; prints seconds of each round.

    python flower_app.py DATA.npz HIDDEN,... CLIENTS COHORT ROUNDS STEPS BATCH LR

The same model, data, clients and local steps as there: FedAvg of plain SGD, in torch's own way. A client's samples are loaded
once in each of Ray's processes, and its model is made for each message, as Flower's own quickstart does.
"""

import functools
import itertools
import json
import os
import sys
import time
from collections import OrderedDict

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


def build(hidden: list[int]) -> nn.Module:
    """The MLP."""
    widths = [64, *hidden, 10]
    layers: list[nn.Module] = []
    for narrow, wide in itertools.pairwise(widths):
        layers += [nn.Linear(narrow, wide), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@functools.cache
def data(path: str) -> tuple[torch.Tensor, torch.Tensor, list[np.ndarray]]:
    """All clients' samples, and who owns which."""
    loaded = np.load(path)
    parts = np.split(loaded["samples"], loaded["sizes"].cumsum()[:-1])
    return torch.from_numpy(loaded["inputs"]).flatten(1), torch.from_numpy(loaded["labels"]), parts


def train(module: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int, batch: int, lr: float) -> None:
    """Local steps, of samples drawn with replacement."""
    optimizer = torch.optim.SGD(module.parameters(), lr)
    for _ in range(steps):
        rows = torch.randint(len(x), (batch,))
        optimizer.zero_grad()
        F.cross_entropy(module(x[rows]), y[rows]).backward()
        optimizer.step()


def main() -> None:
    """Run, and print."""
    from flwr.client import ClientApp, NumPyClient
    from flwr.common import ndarrays_to_parameters
    from flwr.server import ServerApp, ServerAppComponents, ServerConfig
    from flwr.server.strategy import FedAvg
    from flwr.simulation import run_simulation

    path, hidden = sys.argv[1], [int(each) for each in sys.argv[2].split(",")]
    clients, cohort, rounds, steps, batch = map(int, sys.argv[3:8])
    lr, here = float(sys.argv[8]), os.path.dirname(os.path.abspath(__file__))

    class Client(NumPyClient):
        def __init__(self, number: int) -> None:
            if here not in sys.path:
                sys.path.append(here)
            import flower_app  # whose cache outlives this object

            torch.set_num_threads(1)
            self.app, self.number = flower_app, number

        def fit(self, parameters: list, config: dict) -> tuple:
            inputs, labels, parts = self.app.data(path)
            own = torch.from_numpy(parts[self.number])
            module = self.app.build(hidden)
            names = module.state_dict().keys()
            module.load_state_dict(OrderedDict(zip(names, map(torch.from_numpy, map(np.copy, parameters)), strict=True)))
            self.app.train(module, inputs[own], labels[own], steps, batch, lr)
            return [each.numpy() for each in module.state_dict().values()], len(own), {}

    ends: list[float] = []

    class Timed(FedAvg):
        def aggregate_fit(self, server_round: int, results: list, failures: list) -> tuple:
            assert len(results) == cohort, (len(results), failures[:1])
            aggregated = super().aggregate_fit(server_round, results, failures)
            ends.append(time.perf_counter())
            return aggregated

    initial = ndarrays_to_parameters([each.numpy() for each in build(hidden).state_dict().values()])
    strategy = Timed(fraction_fit=cohort / clients, min_fit_clients=cohort, min_available_clients=clients, fraction_evaluate=0.0,
                     initial_parameters=initial)  # fmt: skip
    run_simulation(
        ServerApp(server_fn=lambda context: ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=rounds))),
        ClientApp(client_fn=lambda context: Client(int(context.node_config["partition-id"])).to_client()),
        num_supernodes=clients,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
    print("SECONDS", json.dumps(np.diff(ends).tolist()))


if __name__ == "__main__":
    main()
