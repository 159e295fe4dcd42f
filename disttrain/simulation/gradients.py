"""Every worker's gradient of its own loss on its own batch: at once where torch can, one by one where it cannot.

``vmap``     ``vmap(grad(loss))``: one call for a chunk of workers; fastest for small dense layers
``forward``  vmapped losses, then ordinary backward of their sum: faster for convolutions; a weight's gradient is then the
             transpose of the product that a process makes, which not all CPUs sum in the same order
``loop``     worker by worker, on modules whose parameters are rows: what a process would do; for whatever vmap refuses

No worker's result depends on which others share its chunk, nor on how many there are.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from disttrain.component import UserError
from disttrain.objectives import Objective
from disttrain.random import Stream, key
from disttrain.simulation.replicas import Replicas

Method: TypeAlias = Literal["vmap", "forward", "loop"]
METHODS: tuple[Method, ...] = get_args(Method)
TRIAL_WORKERS = {"vmap": 256, "forward": 256, "loop": 8}
TRIALS = 3


class ModuleLoss(nn.Module):
    """A module and its objective as one module, so that both see the parameters that functional_call puts in."""

    def __init__(self, module: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.module, self.objective = module, objective

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The loss."""
        return self.objective(self.module, inputs, targets)


@dataclass(frozen=True)
class Choice:
    """How gradients are computed, and why."""

    method: Method
    reason: str


class WorkerGradients:
    """Fills ``replicas.g`` with every worker's gradient.

    Args:
        replicas: the workers.
        objective: the loss.
        seed: the run's; each worker draws dropout and the like from a generator of its own, as its process would.
        chunk: workers whose activations are in memory at once; see :func:`chunks`.
        autocast: makes the context that forward passes run in.

    Attributes:
        method: see the module's docstring; :meth:`choose` sets it.
    """

    def __init__(
        self,
        replicas: Replicas,
        objective: Objective,
        seed: int,
        chunk: int,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self._replicas, self._chunk, self._autocast = replicas, chunk, autocast
        self._loss = ModuleLoss(replicas.template, objective)
        self._objective = objective
        self._seed = seed
        self._generators: list[Tensor] = []
        self.method: Method = "loop"

    def __call__(self, inputs: Tensor, targets: Tensor, passes: int = 1, accumulate: bool = False) -> Tensor:
        """Every worker's mean loss ``[N]``; its gradient goes into its row of ``replicas.g``.

        Args:
            inputs: ``[N, b, ...]``.
            targets: ``[N, b, ...]``.
            passes: losses are divided by it, where gradients are accumulated over so many.
            accumulate: add to the gradients that are there.
        """
        if self.method == "loop" and not accumulate:
            self._replicas.g[: len(inputs)].zero_()  # backward only ever adds
        parts = []
        for rows in chunks(len(inputs), self._chunk):
            if self.method == "loop":
                parts.append(self._loop(rows, inputs[rows], targets[rows], passes))
                continue
            losses, gradients = self._at_once(self._replicas.x[rows], rows, inputs[rows], targets[rows], passes)
            self._put(rows, gradients, accumulate)
            parts.append(losses)
        return torch.cat(parts)

    def at(self, x: Tensor, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mean losses ``[L]`` and fresh gradients ``[L, d]`` of models ``x [L, d]``, whose rows have no padding.

        The first L workers' rows are room to compute in for the loop, and are not touched otherwise.
        """
        if self.method == "loop":
            self._replicas.x[: len(x)] = x
            return self(inputs, targets), self._replicas.g[: len(x)].clone()
        parts = []
        for rows in chunks(len(inputs), self._chunk):
            losses, gradients = self._at_once(x[rows], rows, inputs[rows], targets[rows], 1)
            flat = torch.cat([gradients[unit.name].flatten(1) for unit in self._replicas.layout.units], 1)
            parts.append((losses, flat))
        if len(parts) == 1:
            return parts[0]
        return torch.cat([losses for losses, _ in parts]), torch.cat([gradients for _, gradients in parts])

    def choose(self, inputs: Tensor, targets: Tensor, method: Method | None = None) -> Choice:
        """Settle the method: the given one, or the fastest in a short trial on a first batch ``[N, b, ...]``.

        Raises:
            UserError: if the given method cannot be used with this model.
        """
        self._refuse_idle_parameters(inputs[0], targets[0])
        if self._draws_randomly(inputs[0], targets[0]):
            choice = Choice("loop", "the model draws random numbers, and every worker has its own generator")
            if method not in (None, "loop"):
                raise UserError(f"--gradients {method} cannot be used: {choice.reason}; use loop")
            self.settle("loop", draws=True)
        elif method is not None:
            choice = Choice(method, "as asked")
            outcome = self._seconds_per_worker(method, inputs, targets)
            if isinstance(outcome, Exception):
                raise UserError(f"--gradients {method} cannot be used with this model ({_first_line(outcome)}); use loop")
        else:
            choice = self._fastest(inputs, targets)
        self.method = choice.method
        return choice

    @property
    def draws(self) -> bool:
        """Whether the model draws random numbers; known once the method is settled."""
        return bool(self._generators)

    def settle(self, method: Method, draws: bool) -> None:
        """Take what :meth:`choose` has found for the same model elsewhere."""
        self.method = method
        self._generators = [self._first_state(worker) for worker in range(len(self._replicas))] if draws else []

    def reseed(self, keys: Tensor) -> None:
        """Let a model that draws draw anew in each of the first rows, by their keys, int64 ``[L]``; others need no generators."""
        for row, own in enumerate(keys.tolist() if self._generators else ()):
            self._generators[row] = torch.Generator().manual_seed(own).get_state()

    # --- the three methods -------------------------------------------------------------------------------------------

    def _loop(self, rows: slice, inputs: Tensor, targets: Tensor, passes: int) -> Tensor:
        losses = []
        for offset, worker in enumerate(range(rows.start, rows.stop)):
            with self._own_generator(worker):
                with self._autocast():
                    loss = self._objective(self._replicas.module(worker), inputs[offset], targets[offset])
                if passes > 1:
                    loss = loss / passes
                loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        return torch.stack(losses)

    def _at_once(self, x: Tensor, rows: slice, inputs: Tensor, targets: Tensor, passes: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses ``[L]`` and gradients by parameter of models ``x [L, d]`` with the buffers of some workers."""
        parameters = dict(self._replicas.layout.named(x))
        buffers = {name: stacked[rows] for name, stacked in self._replicas.buffers.items()}
        return (self._by_vmap if self.method == "vmap" else self._by_forward)(parameters, buffers, inputs, targets, passes)

    def _by_vmap(
        self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], inputs: Tensor, targets: Tensor, passes: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        def loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
            with self._autocast():
                value: Tensor = functional_call(self._loss, _in_module(parameters | buffers), (inputs, targets))
            return value / passes if passes > 1 else value

        gradients, losses = vmap(grad_and_value(loss))(parameters, buffers, inputs, targets)
        return losses, gradients

    def _by_forward(
        self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], inputs: Tensor, targets: Tensor, passes: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        def loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
            value: Tensor = functional_call(self._loss, _in_module(parameters | buffers), (inputs, targets))
            return value

        parameters = {name: p.detach().requires_grad_() for name, p in parameters.items()}
        with self._autocast():
            losses = vmap(loss)(parameters, buffers, inputs, targets)
        if passes > 1:
            losses = losses / passes
        gradients = torch.autograd.grad(losses.sum(), list(parameters.values()), allow_unused=True, materialize_grads=True)
        return losses.detach(), dict(zip(parameters, gradients, strict=True))

    def _put(self, rows: slice, gradients: dict[str, Tensor], accumulate: bool) -> None:
        for name, place in self._replicas.layout.named(self._replicas.g[rows]):
            if accumulate:
                place += gradients[name]
            else:
                place.copy_(gradients[name])

    # --- randomness --------------------------------------------------------------------------------------------------

    def _refuse_idle_parameters(self, inputs: Tensor, targets: Tensor) -> None:
        """A process would never step them; stacked, a gradient of zero would (by weight decay, say)."""
        module, state = self._replicas.fresh_module(), torch.get_rng_state()
        with self._autocast():
            loss = self._objective(module, inputs, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.set_rng_state(state)
        idle = [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None]
        if idle:
            raise UserError(f"a simulation needs a gradient for every trainable parameter, and {idle[0]} got none: freeze it")

    def _draws_randomly(self, inputs: Tensor, targets: Tensor) -> bool:
        """Whether a forward pass draws from torch's generator.

        Raises:
            UserError: if it draws from Python's or numpy's, which all workers would share.
        """
        before, others = torch.get_rng_state(), _other_generators()
        with torch.no_grad(), self._autocast():
            self._objective(self._replicas.fresh_module(), inputs, targets)
        after = torch.get_rng_state()
        torch.set_rng_state(before)
        if others != _other_generators():
            raise UserError("the model draws from Python's or numpy's generator, which simulated workers share: use torch's")
        return not torch.equal(before, after)

    def _first_state(self, worker: int) -> Tensor:
        """What `training/seeds.py` seeds the worker's process with."""
        return torch.Generator().manual_seed(key(self._seed, Stream.WORKER, worker=worker)).get_state()

    @contextmanager
    def _own_generator(self, worker: int) -> Iterator[None]:
        if not self._generators:
            yield
            return
        torch.set_rng_state(self._generators[worker])
        yield
        self._generators[worker] = torch.get_rng_state()

    # --- the trial ---------------------------------------------------------------------------------------------------

    def _fastest(self, inputs: Tensor, targets: Tensor) -> Choice:
        seconds = {method: self._seconds_per_worker(method, inputs, targets) for method in METHODS}
        possible = {method: each for method, each in seconds.items() if isinstance(each, float)}
        best = min(possible, key=lambda method: possible[method])
        times = ", ".join(f"{method} {1e3 * each:.3g} ms" for method, each in possible.items())
        refused = [method for method in METHODS if method not in possible]
        note = f"; torch.func refuses this model: {_first_line(seconds[refused[0]])}" if refused else ""
        return Choice(best, f"fastest in a short trial, a worker's step takes: {times}{note}")

    def _seconds_per_worker(self, method: Method, inputs: Tensor, targets: Tensor) -> float | Exception:
        """The least of a few trials on the first workers; or what torch.func has against the model."""
        workers = min(len(inputs), self._chunk, TRIAL_WORKERS[method])
        kept, self.method = self.method, method
        times = []
        try:
            with _unchanged(self._replicas):
                for _ in range(TRIALS):
                    start = time.perf_counter()
                    self(inputs[:workers], targets[:workers])
                    times.append((time.perf_counter() - start) / workers)
        except Exception as error:  # whatever a model's code may raise on tensors that are not quite tensors
            if method == "loop" or isinstance(error, UserError):
                raise
            return error
        finally:
            self.method = kept
        return min(times)


@contextmanager
def _unchanged(replicas: Replicas) -> Iterator[None]:
    """Inside it, forward passes may update buffers; afterwards all are as before."""
    pairs = [*((b, b.clone()) for b in replicas.buffers.values()), *((b, b.clone()) for b in replicas.template.buffers())]
    try:
        yield
    finally:
        for buffer, kept in pairs:
            buffer.copy_(kept)


def _other_generators() -> tuple[object, ...]:
    """The states of Python's and numpy's global generators."""
    _, keys, position, _, _ = np.random.get_state(legacy=True)
    return random.getstate(), tuple(map(int, keys)), position


def _in_module(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{name}": tensor for name, tensor in tensors.items()}


def chunks(workers: int, chunk: int) -> list[slice]:
    """All workers in parts of ``chunk``, but never one alone: torch computes a batch of one matrix in another way than a batch of
    several, and a layer of width 1 would show it."""
    starts = list(range(0, workers, max(2, chunk)))
    if len(starts) > 1 and workers - starts[-1] == 1:
        starts.pop()
    return [slice(start, stop) for start, stop in pairwise([*starts, workers])]


def _first_line(error: object) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
