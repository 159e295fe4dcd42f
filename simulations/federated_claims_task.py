"""The digits of federated_claims.py, divided among clients by class, and a small network whose gradients are written by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from disttrain import random

PIXELS, CLASSES, HELD_OUT = 64, 10, 397


@dataclass(frozen=True)
class Task:
    """What the clients have.

    Args:
        clients: N.
        shards: of one class (or, a few of them, two) that a client has.
        shifted: whether each digit comes in nine places, moved by one pixel or not; otherwise once, where it was.
        centred: whether the mean image is subtracted.
        hidden: units of the network.
        smooth: whether these are tanh, not ReLU.
        decay: λ; λ/2 ‖x‖² is part of every client's loss.
    """

    clients: int = 100
    shards: int = 1
    shifted: bool = False
    centred: bool = False
    hidden: int = 64
    smooth: bool = False
    decay: float = 0.0


class Digits:
    """A problem of disttrain.federated: gradients are computed for all clients of a block at once.

    Args:
        task: what the clients have.
        seed: of what is held out, who has what, and the initial model.
        whole: whether local steps, too, take all that the client has.

    Attributes:
        sizes: int64 ``[N]``.
        start: ``[d]``, the initial model.
    """

    def __init__(self, task: Task, seed: int, whole: bool = False) -> None:
        from sklearn.datasets import load_digits

        self.task, self.whole = task, whole
        images, labels = (torch.from_numpy(each) for each in load_digits(return_X_y=True))
        order = torch.randperm(len(labels), generator=random.generator(seed, random.Stream.ORDER))
        images, labels = (images[order] / 16).float(), labels[order]
        self.held_out, self.held_out_labels = images[:HELD_OUT], labels[:HELD_OUT]
        images, labels = images[HELD_OUT:], labels[HELD_OUT:]
        if task.shifted:
            images, labels = shifts(images), labels.repeat_interleave(9)
        if task.centred:
            mean = images.mean(0)
            images, self.held_out = images - mean, self.held_out - mean
        mine = owners(labels, task, seed)
        self.images, self.labels = images[mine], labels[mine]
        self.sizes = torch.full((task.clients,), mine.shape[1])
        generator = random.generator(seed, random.Stream.INIT)
        layers = [(task.hidden, PIXELS), (CLASSES, task.hidden)]
        weights = [torch.randn(rows, columns, generator=generator) / math.sqrt(columns) for rows, columns in layers]
        self.start = torch.cat([torch.cat([each.flatten(), torch.zeros(len(each))]) for each in weights])

    def gradients(self, y: Tensor, clients: Tensor, draws: Tensor | None) -> tuple[Tensor, Tensor]:
        """Each client's mean loss ``[L]`` and gradient ``[L, d]``."""
        if draws is None or self.whole:
            return self.of(y, self.images[clients], self.labels[clients])
        samples = draws % self.sizes[clients, None]
        return self.of(y, self.images[clients[:, None], samples], self.labels[clients[:, None], samples])

    def of(self, x: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Losses ``[L]`` and gradients ``[L, d]`` of models ``[L, d]`` on images ``[L, b, 64]``."""
        hidden, logits = self.forward(x, images)
        logs = logits.log_softmax(-1)
        losses = -logs.gather(-1, labels[..., None])[..., 0].mean(1)
        error = logs.exp()
        error.scatter_add_(-1, labels[..., None], torch.full_like(labels, -1.0, dtype=x.dtype)[..., None])
        error /= labels.shape[-1]
        back = error @ self.parts(x)[2]
        back *= 1 - hidden.square() if self.task.smooth else hidden > 0
        pieces = (back.mT @ images, back.sum(1), error.mT @ hidden, error.sum(1))
        gradients = torch.cat([piece.flatten(1) for piece in pieces], -1)
        if self.task.decay:
            losses = losses + self.task.decay / 2 * x.square().sum(-1)
            gradients = gradients.add_(x, alpha=self.task.decay)
        return losses, gradients

    def forward(self, x: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden units ``[L, b, hidden]`` and logits ``[L, b, 10]``."""
        weight, bias, last_weight, last_bias = self.parts(x)
        hidden = torch.baddbmm(bias[:, None], images, weight.mT)
        hidden = hidden.tanh_() if self.task.smooth else hidden.relu_()
        return hidden, torch.baddbmm(last_bias[:, None], hidden, last_weight.mT)

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        """Weights and biases in models ``[L, d]``."""
        shapes = ((self.task.hidden, PIXELS), (self.task.hidden,), (CLASSES, self.task.hidden), (CLASSES,))
        split = x.split([math.prod(shape) for shape in shapes], -1)
        return tuple(part.unflatten(-1, shape) for part, shape in zip(split, shapes, strict=True))

    def accuracy(self, x: Tensor) -> float:
        """Of a model ``[d]`` on digits held out."""
        return float((self.forward(x[None], self.held_out[None])[1][0].argmax(-1) == self.held_out_labels).float().mean())

    def squared_norm(self, x: Tensor) -> float:
        """‖∇f(x)‖² of the mean of all clients' losses, who all have as many samples."""
        return float(self.of(x[None], self.images.view(1, -1, PIXELS), self.labels.view(1, -1))[1].square().sum())


def shifts(images: Tensor) -> Tensor:
    """Each image ``[n, 64]`` in nine places: ``[9 n, 64]``, those of one image together."""
    padded = pad(images.view(-1, 8, 8), (1, 1, 1, 1))
    moved = [padded[:, down : down + 8, right : right + 8] for down in range(3) for right in range(3)]
    return torch.stack(moved, 1).reshape(-1, PIXELS)


def owners(labels: Tensor, task: Task, seed: int) -> Tensor:
    """Which samples each client has, int64 ``[N, n]``: shards of what is sorted by class; what does not divide is dropped."""
    pieces = task.clients * task.shards
    kept = len(labels) // pieces * pieces
    shards = labels[:kept].argsort(stable=True).view(pieces, -1)
    order = torch.randperm(pieces, generator=random.generator(seed, random.Stream.PARTITION))
    return shards[order].view(task.clients, -1)
