"""Clients with weighted least-squares losses, whose local problems have solutions in closed form."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class LeastSquares:
    """f_k(x) = w/2 ‖y_k − H_k x‖² over the client's rows; see :class:`~disttrain.federated.work.Problem` and ``ExactProblem``.

    A minibatch of b rows stands for all n_k: its gradient is n_k / b times the sum over the batch.

    Args:
        matrices: H_k ``[n_k, d]`` of each client.
        targets: y_k ``[n_k]``.
        weight: w, of every row.

    Attributes:
        sizes: int64 ``[N]``, n_k.
        d: of x.
        minimum: ``[d]``, of the sum of all losses: the best linear unbiased estimate.
    """

    def __init__(self, matrices: Sequence[Tensor], targets: Sequence[Tensor], weight: float = 1.0) -> None:
        self._matrices, self._targets, self._weight = list(matrices), list(targets), weight
        self.sizes = torch.tensor([len(each) for each in targets])
        self.d = matrices[0].shape[1]
        hessians = torch.stack([weight * h.T @ h for h in matrices])
        self._moments = torch.stack([weight * h.T @ y for h, y in zip(matrices, targets, strict=True)])
        eigenvalues, self._vectors = torch.linalg.eigh(hessians)
        self._values = eigenvalues.clamp_min(0)  # rounding makes some of the zeros negative
        self.minimum: Tensor = torch.linalg.solve(hessians.sum(0), self._moments.sum(0))

    def gradients(self, y: Tensor, clients: Tensor, draws: Tensor | None) -> tuple[Tensor, Tensor]:
        """Each client's loss ``[L]`` and gradient ``[L, d]``."""
        losses, gradients = [], []
        for row, client in enumerate(clients.tolist()):
            h, target = self._matrices[client], self._targets[client]
            scale = self._weight
            if draws is not None:
                rows = draws[row] % len(target)
                scale *= len(target) / len(rows)
                h, target = h[rows], target[rows]
            residual = h @ y[row] - target
            losses.append(scale / 2 * residual.square().sum())
            gradients.append(scale * (h.T @ residual))
        return torch.stack(losses), torch.stack(gradients)

    def minimise(self, clients: Tensor, centre: Tensor, rho: float) -> Tensor:
        """B_k (H_kᵀ W y_k + ρ centre_k), with B_k = (H_kᵀ W H_k + ρI)⁻¹; ``[L, d]``."""
        return self._scaled(clients, self._moments[clients] + rho * centre, 1 / (self._values[clients] + rho))

    def move(self, clients: Tensor, x: Tensor, centre: Tensor, rho: float, times: Tensor) -> Tensor:
        """``times [L]`` times x ← (I − ρB_k) x + ρB_k centre_k, which is centre + (I − ρB_k)^times (x − centre); ``[L, d]``."""
        values = self._values[clients]
        return centre + self._scaled(clients, x - centre, (values / (values + rho)) ** times[:, None])

    def _scaled(self, clients: Tensor, x: Tensor, factors: Tensor) -> Tensor:
        """x with its components along the eigenvectors of H_kᵀ W H_k multiplied by ``factors [L, d]``."""
        vectors = self._vectors[clients]
        components = torch.einsum("kij,ki->kj", vectors, x)
        return torch.einsum("kij,kj->ki", vectors, factors * components)
