"""The user's door: a run from a config, around our loop or the user's own."""

from __future__ import annotations

import atexit
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from disttrain.component import UserError
from disttrain.config import LoadedConfig, dump, load_config
from disttrain.data import EpochOrder, share
from disttrain.launch.rank_info import RankInfo
from disttrain.launch.shutdown import DONE, STOPPED, StopRequest, leave_on_errors, leave_world
from disttrain.launch.start import choose_device, start_cpu, start_world
from disttrain.random import Stream, generator
from disttrain.recording.folder import unused_directory
from disttrain.strategies.attach import PreparedModule, StrategyOptimizer
from disttrain.training.meeting import Meeting, meet
from disttrain.training.session import Session
from disttrain.worlds import JoiningWorld


def start_session(loaded: LoadedConfig, info: RankInfo, stop_request: StopRequest) -> Session:
    """Bring this worker together with the others.

    Raises:
        UserError: for what is wrong with config, machine or run folder; on every worker alike.
    """
    config = loaded.config
    config.check_world(info.world_size)
    if info.max_restarts and config.run.directory is None:
        raise UserError("restarts continue the run in its folder, so they need one: set run.directory")
    launch = config.launch
    start_cpu(launch.threads, info.local_world_size)
    device = choose_device(launch.device, info.local_rank, info.local_world_size)
    world = start_world(info, device, launch.backend, launch.interface, launch.timeout, launch.debug)
    if isinstance(world, JoiningWorld):
        return Session(config, world, device, Meeting.recalled(world), resume=False, stop_request=stop_request)
    directory = Path(config.run.directory or "")
    if config.run.directory is None and info.rank == 0:
        directory = unused_directory(str(config.run.name))
    identity = {
        "config": hashlib.sha256(dump(config).encode()).hexdigest()[:16],
        "torch": torch.__version__,
        "disttrain": version("disttrain"),
    }
    resume = config.training.resume == "auto" or info.restarts > 0
    meeting = meet(world, device, directory, identity, resume)
    meeting.remember(world)
    return Session(config, world, device, meeting, resume, stop_request)


LOOPS_OWN = (
    "model",
    "data",
    "partition",
    "objective",
    *(f"training.{key}" for key in ("gradient_accumulation", "precision", "validate_every", "validation_batches")),
    "launch.emulated_step_time",
)
"""Settings that only the built-in loop follows."""


class Run:
    """A run around the user's own module, data and loop.

    ::

        run = disttrain.Run.from_config("configs/your_own_script.yaml")
        model, optimizer = run.prepare(MyModel())
        for inputs, targets in run.shard(dataset):
            loss = F.cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            run.record(loss=loss.detach())
            if run.should_stop:
                break
        model = run.finish()
        sys.exit(run.exit_code)
    """

    def __init__(self, session: Session, loaded: LoadedConfig) -> None:
        self._session, self._loaded, self._finished = session, loaded, False
        atexit.register(self._remind)

    def _remind(self) -> None:
        if not self._finished and hasattr(self._session, "optimizer") and self._session.step:
            self._session.display.say("warning: run.finish() was not called: neither weights nor a summary were written")

    @classmethod
    def from_config(cls, path: str | Path, overrides: Sequence[str] = ()) -> Run:
        """Read a config, meet the other workers (those that torchrun started with this one) and open the run folder.

        Args:
            path: a YAML file; ``model``, ``data``, ``partition`` and ``objective`` are the caller's business, not its.
            overrides: ``a.b=c``, as on the command line.

        Raises:
            UserError: naming everything that is wrong.
        """
        leave_on_errors()
        loaded = load_config(path, overrides)
        for key in LOOPS_OWN:
            if loaded.sets(key):
                raise UserError(f"{path} sets {key}, which a script with its own loop would ignore: remove it")
        stop_request = StopRequest()
        stop_request.listen()
        return cls(start_session(loaded, RankInfo.from_environment(), stop_request), loaded)

    def prepare(
        self, model: nn.Module, optimizer: Optimizer | None = None, scaler: torch.amp.GradScaler | None = None
    ) -> tuple[PreparedModule, StrategyOptimizer]:
        """Put the config's strategy around ``model``, and its optimizer (or the one given) behind ``optimizer.step()``.

        Every worker starts from worker 0's weights, or, with ``training.resume=auto``, from the newest whole checkpoint. The
        module that comes back is called like ``model``, has ``no_sync()``, and its ``state_dict`` is that of ``model``. A
        ``scaler`` that multiplies the loss must be known to strategies that keep gradients; a step that it skips is not recorded.

        Raises:
            UserError: if an optimizer is given and the config sets one too, or the model cannot be trained so.
        """
        if optimizer is not None and self._loaded.sets("optimizer"):
            raise UserError(f"{self._loaded.path} sets optimizer, and prepare() was given one: only one can be used")
        prepared = self._session.prepare(model, optimizer, scaler)
        self._session.resume()
        return prepared

    def resume(self) -> int:
        """The step that the run stands at: 0, or where its checkpoint was. What else a script keeps, it rebuilds from this."""
        return self._session.step

    def shard(self, dataset: Dataset[Any], **loader_options: Any) -> DataLoader[Any]:
        """This worker's part of a map-style dataset, shuffled by ``training.seed``, up to the run's last step.

        Each batch has ``training.batch_size / workers`` samples; together the workers see every sample once in an epoch. It
        starts where the run stands, in mid-epoch too.

        Args:
            dataset: anything with ``__len__`` and ``__getitem__``, the same on all workers.
            loader_options: for ``torch.utils.data.DataLoader``: ``num_workers``, ``collate_fn`` …
        """
        session = self._session
        # Of its own, or the loader would draw from the global one, whose state a resumed run has restored.
        own = generator(session.config.training.seed, Stream.WORKER, session.step, session.world.rank)
        loader_options.setdefault("generator", own)
        return DataLoader(dataset, batch_sampler=_Batches(session, len(dataset)), **loader_options)  # type: ignore[arg-type]

    def record(self, *, loss: Tensor | float, tokens: int = 0, **metrics: float) -> None:
        """End a step, after ``optimizer.step()``: log, save and find out whether to stop.

        Args:
            loss: this worker's mean loss; the record has the workers' mean where they meet in every step, else worker 0's own.
            tokens: that this worker trained on in this step; counted for all.
            metrics: anything else for ``metrics.jsonl``, such as ``validation_loss``.
        """
        self._session.record(loss, tokens * self._session.world.size, False, **metrics)

    @property
    def should_stop(self) -> bool:
        """Whether the last step has been made, or somebody asked the run to stop (it is saved then)."""
        return self._session.should_stop

    @property
    def exit_code(self) -> int:
        """What a script should end with: 143 if it was asked to stop before its last step, else 0."""
        return STOPPED if self._session.stopping.interrupted and not self._session.completed else DONE

    @property
    def device(self) -> torch.device:
        """Where this worker computes."""
        return self._session.device

    def evaluating(self) -> AbstractContextManager[nn.Module]:
        """Inside it, the model holds what the strategy would export now, in evaluation mode and without gradients."""
        return self._session.evaluating()

    def finish(self, batches: Iterator[Any] | None = None, **metrics: float) -> nn.Module:
        """End the run: merge, write weights, metrics and summary. Returns the module, ready to save.

        Args:
            batches: training inputs, for ``strategy.buffers=recalibrate``.
            metrics: for the last record, such as ``validation_loss``.
        """
        self._session.merge(batches)
        self._session.close(**metrics)
        self._finished = True
        leave_world()
        return self._session.model.module


class _Batches:
    """Indices of this worker's batches, from the current step to the last: a batch sampler."""

    def __init__(self, session: Session, num_samples: int) -> None:
        self._session = session
        self._order = EpochOrder(num_samples, session.config.training.seed)

    def __iter__(self) -> Iterator[list[int]]:
        session, training = self._session, self._session.config.training
        for step in range(session.step, session.stopping.at):
            indices = self._order.batch_indices(step, training.batch_size)
            yield share(indices, session.world.rank, session.world.size).tolist()

    def __len__(self) -> int:
        return max(0, self._session.stopping.at - self._session.step)
