"""A model's loss on each of many samples, to put them in order."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from disttrain.objectives import Objective
from disttrain.simulation.gradients import ModuleLoss
from disttrain.simulation.replicas import Replicas

PIECE = 512
"""Samples that are in memory at once."""


class SampleLosses:
    """Losses of single samples, in evaluation mode; all at once where torch can, one by one where it cannot.

    Args:
        replicas: of the model.
        objective: the loss.
    """

    def __init__(self, replicas: Replicas, objective: Objective) -> None:
        self._layout = replicas.layout
        self._loss = ModuleLoss(replicas.fresh_module(), objective).eval()
        self._at_once = True

    @torch.no_grad()
    def __call__(self, x: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        """The losses ``[n]`` of a model ``[d]`` on samples ``[n, ...]``."""
        parameters = {f"module.{name}": p[0] for name, p in self._layout.named(x[None])}
        pieces = zip(inputs.split(PIECE), targets.split(PIECE), strict=True)
        return torch.cat([self._piece(parameters, *piece) for piece in pieces])

    def _piece(self, parameters: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        def loss(inputs: Tensor, targets: Tensor) -> Tensor:
            value: Tensor = functional_call(self._loss, parameters, (inputs[None], targets[None]))
            return value

        if self._at_once:
            try:
                losses: Tensor = vmap(loss)(inputs, targets)
                return losses
            except Exception:  # whatever a model's code may raise on tensors that are not quite tensors
                self._at_once = False
        with torch.random.fork_rng(devices=[]):  # a model may draw numbers even so, which must not depend on what came before
            torch.manual_seed(0)
            return torch.stack([loss(*sample) for sample in zip(inputs, targets, strict=True)])
