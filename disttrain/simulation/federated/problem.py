"""A model's losses on the samples that each client owns, as a federated algorithm sees them: flat vectors in, gradients out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from disttrain import random
from disttrain.component import UserError
from disttrain.data import Dataset
from disttrain.data.partitions import Part
from disttrain.objectives import Objective
from disttrain.recording.weights import load_weights
from disttrain.simulation.federated.sample_losses import SampleLosses
from disttrain.simulation.gradients import Choice, Method, WorkerGradients
from disttrain.simulation.replicas import Replicas

LOOK_EVERY = 16
"""Gradients between looks whether the model has changed its size; a look takes a twentieth of a small model's step."""
PIECE = 512
"""Samples of which a gradient on all local data is computed at a time."""


class ModelProblem:
    """See :class:`~disttrain.federated.work.Problem`.

    Args:
        module: initialised; its parameters are laid out without padding, so that what is sent is what there is.
        objective: the loss.
        dataset: all clients' samples.
        parts: int64 ``[n_i]`` for each client, which of them it owns.
        seed: the run's.
        rows: how many clients are computed at once, at most.

    Attributes:
        sizes: int64 ``[N]``.
        replicas: room for the clients of a block.

    Raises:
        ValueError: if the module's parameters cannot form one vector.
        UserError: if the model keeps statistics of what it has seen, which would pass from client to client.
    """

    def __init__(
        self, module: nn.Module, objective: Objective, dataset: Dataset, parts: Sequence[Part], seed: int, rows: int
    ) -> None:
        self._objective, self._dataset, self._seed = objective, dataset, seed
        self.sizes = torch.tensor([len(part) for part in parts])
        self._samples = torch.from_numpy(np.concatenate(parts))
        self._starts = self.sizes.cumsum(0) - self.sizes
        self.replicas = Replicas(module, rows, alignment=1)
        self._size = num_parameters(module)
        self._calls = 0
        self._seen: list[tuple[dict[str, Any], list[int]]] = []
        self._refuse_statistics(objective)
        self._sample_losses = SampleLosses(self.replicas, objective)
        self._gradients = WorkerGradients(self.replicas, objective, seed, rows, nullcontext)

    def __reduce__(self) -> tuple[Any, ...]:
        """As it was made, for another process: what is computed here otherwise hangs on views of one vector."""
        sent = (self.replicas.fresh_module(), self._objective, self._dataset, self._samples.numpy(), self.sizes.numpy())
        return _again, (*sent, self._seed, len(self.replicas), self.method, self._gradients.draws)

    def parameters_of(self, path: Path) -> Tensor:
        """The weights of a run's folder, or of a safetensors file, as ``[d]``.

        Raises:
            UserError: if there are none, or they are another model's.
        """
        module = self.replicas.fresh_module()
        load_weights(module, path)
        return Replicas(module, 1, alignment=1).x[0]

    @property
    def start(self) -> Tensor:
        """The initial model, ``[d]``."""
        return self.replicas.x[0].clone()

    def choose(self, batch_size: int, method: Method | None = None) -> Choice:
        """Settle how gradients are computed: as asked, or whichever is fastest in a short trial."""
        clients = self.sizes.nonzero()[:, 0].repeat(len(self.replicas))[: len(self.replicas)]
        draws = random.bits(random.key(self._seed, random.Stream.BATCHES, 0, clients), batch_size)
        try:
            return self._gradients.choose(*self._batch(self._places(clients, draws)), method)
        except UserError as error:  # which speaks of the option of `disttrain simulate`
            message = str(error).replace(f"--gradients {method}", "federated.engine=batched").replace("use loop", "use serial")
            raise UserError(message) from None

    @property
    def method(self) -> Method:
        """How gradients of minibatches are computed."""
        return self._gradients.method

    @method.setter
    def method(self, value: Method) -> None:
        self._gradients.method = value

    def gradients(self, y: Tensor, clients: Tensor, draws: Tensor | None) -> tuple[Tensor, Tensor]:
        """Each client's mean loss and gradient, at its own point."""
        if draws is None:
            rows = [self._on_all(y[row : row + 1], int(client)) for row, client in enumerate(clients)]
            return torch.stack([loss for loss, _ in rows]), torch.cat([gradient for _, gradient in rows])
        return self._at(y, self._places(clients, draws), draws[:, 0])

    def sample_losses(self, y: Tensor, clients: Tensor) -> list[Tensor]:
        """Each client's loss on every sample it has, in evaluation mode, computed client by client."""
        return [self._sample_losses(point, *self._own_batch(int(client))) for point, client in zip(y, clients, strict=True)]

    def _own_batch(self, client: int) -> tuple[Tensor, Tensor]:
        start = int(self._starts[client])
        return self._dataset.batch(self._samples[start : start + int(self.sizes[client])])

    def _on_all(self, y: Tensor, client: int) -> tuple[Tensor, Tensor]:
        """One client's mean loss and gradient ``[1, d]`` on all it has, piece by piece: clients have unequally much."""
        method, self._gradients.method = self._gradients.method, "loop"
        size, loss, gradient = int(self.sizes[client]), torch.zeros(()), torch.zeros_like(y)
        own = self._samples[self._starts[client] : self._starts[client] + size]
        for number, piece in enumerate(own.split(PIECE)):
            key = torch.tensor([random.key(self._seed, random.Stream.LARGE_BATCH, number, client)])
            losses, gradients = self._at(y, piece[None], key)
            loss = loss + losses[0] * (len(piece) / size)
            gradient = gradient + gradients * (len(piece) / size)
        self._gradients.method = method
        return loss, gradient

    def _at(self, y: Tensor, samples: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """On given samples, int64 ``[L, b]``; a model that draws does so by the keys, int64 ``[L]``."""
        if len(y) == 1 and self.method != "loop":  # torch computes a batch of one in another way, and nobody is to see that
            losses, gradients = self._at(y.expand(2, -1), samples.expand(2, -1), keys.expand(2))
            return losses[:1], gradients[:1]
        self._gradients.reseed(keys)
        losses, gradients = self._gradients.at(y, *self._batch(samples))
        self._calls += 1
        if self._calls % LOOK_EVERY == 0:
            self._refuse_another_size()
        return losses.detach(), gradients

    def _places(self, clients: Tensor, draws: Tensor) -> Tensor:
        return self._samples[self._starts[clients, None] + draws % self.sizes[clients, None]]

    def _batch(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        inputs, targets = self._dataset.batch(samples.flatten())
        shape = samples.shape
        return inputs.view(*shape, *inputs.shape[1:]), targets.view(*shape, *targets.shape[1:])

    def _refuse_another_size(self) -> None:
        """New parameters would be trained by nobody: they are not in the vector that is sent."""
        module = self.replicas.module(0) if self.method == "loop" else self.replicas.template
        if self._seen and self._seen[0][0] is module._parameters and all(held(each) == ids for each, ids in self._seen):
            return  # as at the last look; counting would take as long as a small model's step
        self._seen = [(each, held(each)) for part in module.modules() for each in (part._parameters, part._modules)]
        if (now := num_parameters(module)) != self._size:
            raise UserError(
                f"the model had {self._size:,} parameters at first and now has {now:,}: a federated model must keep its size"
            )

    def _refuse_statistics(self, objective: Objective) -> None:
        module = self.replicas.fresh_module().train()
        before = [buffer.clone() for buffer in module.buffers()]
        if not before:
            return
        state = torch.get_rng_state()
        with torch.no_grad():
            objective(module, *self._dataset.batch(self._samples[:2]))
        torch.set_rng_state(state)
        if any(not torch.equal(old, new) for old, new in zip(before, module.buffers(), strict=True)):
            raise UserError(
                "the model keeps running statistics (BatchNorm), which no client has and the server would not get: take "
                "another normalisation, such as model.norm=layer or group"
            )


def held(registry: dict[str, Any]) -> list[int]:
    """Which objects stand there."""
    return [*map(id, registry.values())]


def num_parameters(module: nn.Module) -> int:
    """Entries of all parameters, the frozen ones too."""
    return sum(parameter.numel() for parameter in module.parameters())


def _again(
    module: nn.Module,
    objective: Objective,
    dataset: Dataset,
    samples: Part,
    sizes: Part,
    seed: int,
    rows: int,
    method: Method,
    draws: bool,
) -> ModelProblem:
    problem = ModelProblem(module, objective, dataset, np.split(samples, sizes.cumsum()[:-1]), seed, rows)
    problem._gradients.settle(method, draws)
    return problem
