"""A strategy around a real module and a real optimizer: the only file that knows DDP.

The module is wrapped in torch DDP if the strategy reduces gradients, with the strategy in DDP's communication hook; if it does
not, DDP would only copy, so the module runs bare. The optimizer is wrapped so that the user's own ``optimizer.step()`` drives
schedule, clipping and strategy.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from disttrain.optim.closure import refuse_closures
from disttrain.parameters import FlatParameters, Unit, sha256_of
from disttrain.strategies.base import Strategy
from disttrain.worlds.torch_world import TorchWorld


class PreparedModule(nn.Module):
    """The user's module as its strategy runs it: called the same way, with ``no_sync()`` and an un-prefixed ``state_dict``.

    Args:
        module: the user's module.
        strategy: says whether gradients are due.
        ddp: the module in DDP, where gradients are ever exchanged.

    Attributes:
        module: the user's module.
    """

    def __init__(self, module: nn.Module, strategy: Strategy, ddp: DistributedDataParallel | None) -> None:
        super().__init__()
        self.module = module
        self._strategy = strategy
        self.__dict__["_ddp"] = ddp  # past nn.Module's registry: the parameters must not appear twice

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The user's forward pass."""
        ddp = self.__dict__["_ddp"]
        if ddp is None:
            return self.module(*args, **kwargs)
        with nullcontext() if self._strategy.gradients_due else ddp.no_sync():
            return ddp(*args, **kwargs)

    def no_sync(self) -> AbstractContextManager[None]:
        """Inside it, backward accumulates this worker's own gradients and nothing is exchanged."""
        ddp = self.__dict__["_ddp"]
        return nullcontext() if ddp is None else ddp.no_sync()

    def live(self) -> AbstractContextManager[None]:
        """Inside it, the strategy's vector and the parameters are the same; here they always are, in one memory."""
        return nullcontext()

    def norm(self, gradients: list[Tensor]) -> Tensor:
        """The Euclidean norm of the whole model's gradients, of which these are what this worker has."""
        return nn.utils.get_total_norm(gradients)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The user's module's own."""
        return self.module.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Into the user's module."""
        return self.module.load_state_dict(*args, **kwargs)

    def detach(self) -> nn.Module:
        """Drop DDP, which must go before the process group does; returns the user's module."""
        self.__dict__["_ddp"] = None
        return self.module


@dataclass
class StepCounts:
    """What has happened in training so far; kept in checkpoints."""

    steps: int = 0
    """Calls of ``optimizer.step()``."""
    updates: int = 0
    """Steps in which the optimizer moved; the schedule counts these."""
    consecutive_skips: int = 0
    """Steps skipped since the last update."""


class StrategyOptimizer(Optimizer):
    """An optimizer whose ``step`` drives schedule, clipping and strategy; everything else is the wrapped optimizer's.

    A step whose gradients are not finite changes nothing. Where gradients are averaged, every worker sees the same ones and
    decides alike, so this needs no exchange.

    Args:
        optimizer: the wrapped optimizer; its learning rates of now are the schedule's peak.
        strategy: the one that :func:`attach` begins.
        multiplier: learning rate as a share of the peak at update t = 0, 1, …; None leaves the rates alone.
        clip_norm: gradients of a larger Euclidean norm are scaled down to it; None: never.
        module: what :func:`attach` or its like returned; None: the optimizer is wrapped before.

    Raises:
        ValueError: if the optimizer cannot step without a closure, as LBFGS.

    Attributes:
        counts: steps and updates so far.
        gradient_norm: before clipping, of the last step.
        seconds: spent in the wrapped optimizer's step, in total, waiting for other workers aside.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        strategy: Strategy,
        multiplier: Callable[[int], float] | None = None,
        clip_norm: float | None = None,
        module: PreparedModule | None = None,
    ) -> None:
        # Not Optimizer.__init__, which would make parameter groups of its own.
        refuse_closures(optimizer)
        self.inner, self.strategy, self._multiplier, self._clip_norm = optimizer, strategy, multiplier, clip_norm
        self._live = nullcontext if module is None else module.live
        self._norm = nn.utils.get_total_norm if module is None else module.norm
        self._peaks = [group["lr"] for group in optimizer.param_groups]
        self.counts, self.gradient_norm, self.seconds = StepCounts(), float("nan"), 0.0

    def __getattr__(self, name: str) -> Any:
        """What Optimizer keeps in attributes, such as the hooks around a step, is the wrapped optimizer's."""
        if "inner" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.__dict__["inner"], name)

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The wrapped optimizer's groups themselves."""
        return self.inner.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The state itself, of this worker's part if the work is dealt out."""
        return self.keeper.state

    @property
    def keeper(self) -> Optimizer:
        """What has the state: the wrapped optimizer, or this worker's part if it is dealt out."""
        return getattr(self.inner, "members_part", self.inner)  # of a ZeroOptimizer, whose import takes seconds

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The wrapped optimizer's defaults."""
        return self.inner.defaults

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's, or this worker's part of it."""
        return self.keeper.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Into the wrapped optimizer, or this worker's part of it."""
        self.keeper.load_state_dict(state_dict)

    def skip(self, steps: int) -> None:
        """Count so many steps, and updates, that are not made."""
        self.counts.steps += steps
        self.counts.updates += steps

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        self.inner.zero_grad(set_to_none=set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused: the strategy has laid out the parameters already.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("add parameter groups before prepare(): the strategy has laid out the parameters already")

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step of the run; returns the closure's loss, if there is a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.counts.steps += 1
        traffic = self.strategy.world.traffic
        if traffic.trace is not None:
            traffic.trace.fill("compute", "forward and backward")
        with traffic.during("optimizer", "clip"):
            self.gradient_norm = self._clip()
        finite = self.gradient_norm < float("inf")
        with traffic.during("strategy", "before the step"):
            proceed = self.strategy.before_step()
        if proceed and finite:
            self._update()
        else:
            self.counts.consecutive_skips += 1
        if proceed:
            with self._live(), traffic.during("strategy", "after the step"):
                self.strategy.after_step()
        return loss

    def _update(self) -> None:
        if self._multiplier is not None:
            for group, peak in zip(self.param_groups, self._peaks, strict=True):
                group["lr"] = peak * self._multiplier(self.counts.updates)
        traffic = self.strategy.world.traffic  # workers that divide the work wait for each other in here
        start = time.perf_counter() - traffic.exposed_seconds
        with traffic.during("optimizer", type(self.inner).__name__):
            self.inner.step()
        self.seconds += time.perf_counter() - traffic.exposed_seconds - start
        self.counts.updates += 1
        self.counts.consecutive_skips = 0

    @torch.no_grad()
    def _clip(self) -> float:
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = self._norm([p.grad for p in parameters if p.grad is not None])
        if self._clip_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, self._clip_norm, norm)
        return float(norm)


def attach(module: nn.Module, strategy: Strategy, world: TorchWorld, seed: int = 0) -> PreparedModule:
    """Put ``strategy`` around ``module``: the parameters become one vector, worker 0's if they differed, and training may begin.

    The optimizer is wrapped by :class:`StrategyOptimizer`, before or after; ``seed`` is of what the strategy draws.

    Raises:
        ValueError: if the module's trainable parameters cannot form one vector.
    """
    flat = FlatParameters(module)
    start_alike(module, flat, world)
    strategy.begin(flat.x, flat.layout, world, seed)
    if not strategy.reduces_gradients:
        return PreparedModule(module, strategy, None)
    ddp = _ddp(module, strategy, world)
    ddp.register_comm_hook(None, GradientHook(strategy, flat.parameters, world).reduce)
    return PreparedModule(module, strategy, ddp)


def start_alike(module: nn.Module, flat: FlatParameters, world: TorchWorld) -> None:
    """Give every worker worker 0's parameters and buffers; 32 bytes each where they are equal already."""
    state = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    mine = torch.frombuffer(bytearray.fromhex(sha256_of(state)), dtype=torch.uint8)
    everybody = world.gather(mine.to(flat.x.device)[None])
    if (everybody == everybody[:, :1]).all():
        return
    flat.x.copy_(world.broadcast(flat.x))
    for tensor in [p.data for p in module.parameters() if not p.requires_grad] + list(module.buffers()):
        tensor.copy_(world.broadcast(tensor[None])[0])


def _ddp(module: nn.Module, strategy: Strategy, world: TorchWorld) -> DistributedDataParallel:
    known = signature(DistributedDataParallel).parameters  # the option was renamed in torch 2.13
    sync_buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    device = next(p.device for p in module.parameters() if p.requires_grad)
    options: dict[str, Any] = {
        "device_ids": [device.index] if device.type == "cuda" else None,
        "process_group": world.group,
        "init_sync": False,  # start_alike has done it
        "gradient_as_bucket_view": True,
        "find_unused_parameters": strategy.find_unused_parameters,
        sync_buffers: False,  # or DDP overwrites every worker's buffers by worker 0's in every forward, unasked and uncounted
    }
    return DistributedDataParallel(module, **options)


class GradientHook:
    """DDP's communication hook: called in backward with each bucket of gradients, in the same order on every worker.

    What it starts, torch's all-reduce or a job on the strategy's lane, goes on while backward computes the next bucket.

    Exposed communication is the time from the last bucket's call, when this worker has nothing left to compute, to the moment
    at which the last mean has arrived.
    """

    def __init__(self, strategy: Strategy, parameters: dict[str, nn.Parameter], world: TorchWorld) -> None:
        self._strategy, self._world = strategy, world
        self._units = {id(parameters[unit.name]): unit for unit in strategy.layout.units}
        self._last_called: float | None = None  # None while backward has buckets to fill
        self._exposed = 0.0

    # DDP insists on the name `bucket`, and keys nothing by its index: buckets are rebuilt after the first backward.
    def reduce(self, _: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:  # type: ignore[name-defined]
        """Start to average a bucket.

        Raises:
            RuntimeError: under torch.compile's python reducer, whose parameters come one by one.
        """
        if isinstance(bucket, tuple):
            raise RuntimeError(
                "torch.compile's python reducer calls communication hooks parameter by parameter and ignores what they return; "
                "set torch._dynamo.config.optimize_ddp to True, or 'ddp_optimizer', before the module is compiled"
            )
        self._last_called = time.perf_counter() if bucket.is_last() else None
        self._exposed = 0.0
        return self._start(bucket).then(self._land)

    def _land(self, future: torch.futures.Future[Tensor]) -> Tensor:
        if self._last_called is not None:  # counted up to here already: what earlier buckets were late by
            waited = time.perf_counter() - self._last_called
            self._world.traffic.expose(waited - self._exposed)
            self._exposed = waited
        return future.value()

    def _start(self, bucket: Any) -> torch.futures.Future[Tensor]:
        strategy, buffer = self._strategy, bucket.buffer()
        if strategy.gradients is None:
            lane = next((each for each in strategy.gradient_lanes if len(each.rows)), self._world)
            assert isinstance(lane, TorchWorld)
            return lane.start_mean_(buffer)  # torch's own asynchrony
        if strategy.reducer is not None:  # elementwise: the bucket as a whole
            return strategy.gradients.start(self._reduce_whole, buffer).as_torch_future()
        units = [self._units[id(parameter)] for parameter in bucket.parameters()]
        return strategy.gradients.start(self._reduce_units, units, bucket.gradients()).as_torch_future()

    def _reduce_whole(self, buffer: Tensor) -> Tensor:
        assert self._strategy.reducer is not None
        assert self._strategy.gradients is not None
        return self._strategy.reducer.reduce(self._strategy.gradients, buffer[None])[0]

    def _reduce_units(self, units: list[Unit], gradients: list[Tensor]) -> Tensor:
        return torch.cat(self._strategy.reduce(units, [g.reshape(1, -1) for g in gradients]), dim=1)[0]


@contextmanager
def training_mode(module: nn.Module, training: bool) -> Iterator[None]:
    """Inside it, all of the module is in training mode, or all in evaluation mode; each part goes back to its own."""
    modes = {part: part.training for part in module.modules()}
    module.train(training)
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


@contextmanager
def parameters_as(
    x: Tensor, parameters: Tensor, live: Callable[[], AbstractContextManager[None]] = nullcontext
) -> Iterator[None]:
    """Inside it, the live parameters hold ``parameters [1, d]``; nothing moves where they are ``x [1, d]`` itself.

    ``live`` is the module's: inside it, ``x`` and its parameters are the same.
    """
    if parameters.data_ptr() == x.data_ptr():
        yield
        return
    with live():
        kept = x.clone()
        x.copy_(parameters)
    try:
        yield
    finally:
        with live():
            x.copy_(kept)
