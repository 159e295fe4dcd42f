"""Clients with quadratic losses f_i(x) = ‖A_i x − b_i‖² / 2 n_i in float64, whose minimum is known; samples are rows."""

import torch
from torch import Tensor

from disttrain.federated import Availability, BatchedEngine, Federation, Plan, SerialEngine


class Quadratics:
    """Each client has ``rows`` samples ``(a, b)``; ``alike``: all have the same ones."""

    def __init__(self, num_clients: int, d: int, rows: int = 6, seed: int = 0, alike: bool = False, spread: float = 1.0):
        generator = torch.Generator().manual_seed(seed)
        count = 1 if alike else num_clients
        a = torch.eye(d, dtype=torch.float64).repeat(-(-rows // d), 1)[:rows]
        a = a + 0.3 * torch.randn(count, rows, d, dtype=torch.float64, generator=generator)
        b = spread * torch.randn(count, rows, dtype=torch.float64, generator=generator)
        self.a, self.b = a.expand(num_clients, -1, -1).clone(), b.expand(num_clients, -1).clone()
        self.sizes = torch.full((num_clients,), rows)
        self.d = d

    def gradients(self, y: Tensor, clients: Tensor, draws: Tensor | None) -> tuple[Tensor, Tensor]:
        a, b = self.a[clients], self.b[clients]
        if draws is not None:
            samples = draws % self.sizes[clients, None]
            a, b = a.take_along_dim(samples[..., None], 1), b.take_along_dim(samples, 1)
        residual = (a * y[:, None]).sum(-1) - b
        return residual.square().mean(-1) / 2, (a * residual[..., None]).mean(1)

    def sample_losses(self, y: Tensor, clients: Tensor) -> list[Tensor]:
        """Of each row."""
        residuals = (self.a[clients] * y[:, None]).sum(-1) - self.b[clients]
        return list(residuals.square() / 2)

    def gradient(self, x: Tensor, clients: Tensor | None = None) -> Tensor:
        """Full gradients ``[L, d]`` of all or some clients at one point."""
        clients = torch.arange(len(self.sizes)) if clients is None else clients
        return self.gradients(x.expand(len(clients), -1), clients, None)[1]

    def minimum(self) -> Tensor:
        """Of the mean of all clients' losses."""
        n = len(self.sizes)
        hessian = torch.einsum("nri,nrj->ij", self.a, self.a) / (n * self.a.shape[1])
        return torch.linalg.solve(hessian, torch.einsum("nri,nr->i", self.a, self.b) / (n * self.a.shape[1]))


class FullGradients(Quadratics):
    """Every minibatch is all local data."""

    def gradients(self, y: Tensor, clients: Tensor, draws: Tensor | None) -> tuple[Tensor, Tensor]:
        return super().gradients(y, clients, None)


def federation(algorithm, problem, cohort=None, serial=False, start=None, block_size=16, availability=None, rate=None, **plan):
    """A federation over a problem; all clients take part unless told otherwise."""
    engine = (SerialEngine if serial else BatchedEngine)(algorithm, problem)
    x = torch.zeros(problem.d, dtype=torch.float64) if start is None else start
    who = availability or Availability(cohort or len(problem.sizes))
    settings = Plan(num_clients=len(problem.sizes), **({"lr": 0.1, "steps": 3, "batch_size": 2, "rounds": 20} | plan))
    return Federation(algorithm, x, engine, settings, who, problem.sizes, block_size, rate)


def run(federated, rounds):
    """Some rounds; returns the federation."""
    for _ in range(rounds):
        federated.step()
    return federated
