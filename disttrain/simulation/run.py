"""``disttrain simulate``: a run of N workers in this process, written down like any other run.

The config is that of ``disttrain train``; data, order, initial parameters, strategy and optimizer are the same, so with the same
number of workers the weights are those of the processes, to the bit where the gradients are.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from disttrain.component import UserError
from disttrain.config import ConfigError, LoadedConfig, dump
from disttrain.consensus import consensus_distance
from disttrain.data import make_order
from disttrain.launch.shutdown import StopRequest
from disttrain.launch.start import start_cpu
from disttrain.models.base import num_trainable
from disttrain.optim import GroupRow, table
from disttrain.optim.schedules import ConstantConfig
from disttrain.parameters import sha256_of
from disttrain.recording.folder import RunFolder, write_atomically
from disttrain.recording.memory import peak_memory_bytes
from disttrain.recording.metrics import finite_or_none
from disttrain.recording.progress import Display, readable_bytes
from disttrain.recording.recorder import Recorder
from disttrain.recording.trackers import open_trackers
from disttrain.recording.weights import export_weights
from disttrain.simulation.engine import Engine
from disttrain.simulation.evaluation import Validation, cpu_autocast, validate
from disttrain.simulation.gradients import Method, WorkerGradients
from disttrain.simulation.memory import MemoryForecast, activation_bytes, available_bytes, forecast
from disttrain.simulation.replicas import Replicas
from disttrain.training.buffers import choice_of, settle_buffers
from disttrain.training.seeds import seed_model
from disttrain.training.session import MOST_SKIPS
from disttrain.worlds import StackedWorld
from disttrain.worlds.traffic import all_reduce_wire_bytes

FORECAST_SAMPLES = 8
"""Whose activations are measured, and multiplied."""


@dataclass(frozen=True)
class SimulateOptions:
    """What the command line adds to a config."""

    workers: int
    chunk: int | None = None
    """Workers whose gradients are computed at a time; None: as many as a small part of the memory holds."""
    gradients: Method | None = None
    """How gradients are computed; None: the fastest in a short trial."""


def check(loaded: LoadedConfig, options: SimulateOptions) -> None:
    """Check what can be seen before anything is built.

    Raises:
        ConfigError: naming settings that a simulation would have to ignore, or a batch that cannot be shared.
    """
    config = loaded.config
    config.check_world(options.workers)
    config.check_data()
    problems = []
    if config.training.resume == "auto" or config.training.stop_after is not None:
        problems.append("training: resume=auto and stop_after need checkpoints, and a simulation writes none: remove them")
    if config.launch.device == "cuda" or config.launch.backend == "nccl":
        problems.append("launch: a simulation runs on the CPU: remove device=cuda and backend=nccl")
    if config.launch.emulated_step_time is not None:
        problems.append("launch.emulated_step_time: a simulation computes; it is `disttrain emulate` that can pretend to")
    if getattr(config.optimizer, "sharding", None) is not None:
        problems.append("optimizer.sharding: a simulation has one process, and nobody to deal work to: set it to null")
    if getattr(config.strategy, "inner", "ddp") != "ddp":
        problems.append("strategy.inner: a simulation has one process, and nothing to shard: ddp computes the same")
    if problems:
        raise ConfigError(problems)


class Diverged(RuntimeError):
    """Training has led nowhere; the message says who and when."""


class Simulation:
    """A run of N workers as rows.

    Args:
        loaded: checked by :func:`check`.
        options: the command line's.
        folder: claimed.
        stop_request: becomes true when the process is asked to stop.

    Raises:
        UserError: if model, data, optimizer and number of workers do not fit together, or not into memory.
    """

    def __init__(self, loaded: LoadedConfig, options: SimulateOptions, folder: RunFolder, stop_request: StopRequest) -> None:
        config = self._config = loaded.config
        self._folder, self._stop_request, training = folder, stop_request, config.training
        start_cpu(config.launch.threads, local_world_size=1)
        self._display = Display(training.steps, True, folder.logs / "console.log")
        self._objective = config.objective.build()
        self._world = StackedWorld(options.workers, config.launch.debug)
        with _users_mistakes():
            self._corpus = config.data.build(training.seed)
            self._objective.check(self._corpus.task)
            self._order = make_order(config.partition, self._corpus.train, options.workers, training.seed)
            seed_model(training.seed)
            module = config.model.build(self._corpus.task)
            config.initialise(module)
            self._say_what(module)
            self.memory = self._forecast(module, options.chunk)
            self._display.say(f"memory    {self.memory}")
            self._replicas = Replicas(module, options.workers)
            self._strategy = config.build_strategy()
            self._engine = self._build_engine()
        self._step = 0
        inputs, targets = self.microbatches(0)[0]
        self._gradients = WorkerGradients(self._replicas, self._objective, training.seed, self.memory.chunk, self._autocast)
        self.choice = self._gradients.choose(inputs, targets, options.gradients)
        self._say_how()
        self._losses, self._unlogged = torch.zeros(options.workers), 0
        self._started = self._logged_at = time.perf_counter()
        self._logged_step = 0

    # --- before training ---------------------------------------------------------------------------------------------

    def _build_engine(self) -> Engine:
        config, training = self._config, self._config.training
        schedule, total = config.schedule, training.steps
        multiplier = None if schedule == ConstantConfig() else lambda update: schedule.multiplier(update, total)
        build = config.optimizer.build
        return Engine(self._replicas, self._strategy, self._world, build, multiplier, training.clip_norm, training.seed)

    def _forecast(self, module: nn.Module, chunk: int | None) -> MemoryForecast:
        """What will be needed, before any of it is taken; a UserError if the machine has not got it."""
        config, state = self._config, torch.get_rng_state()
        batch, scale = self._few_samples()
        own = round(scale * activation_bytes(copy.deepcopy(module), self._objective, batch, self._autocast))
        memory = forecast(module, self._world.size, config.build_strategy, config.optimizer.build, own, chunk)
        torch.set_rng_state(state)
        available = available_bytes()
        if available is not None and memory.total_bytes > available:
            have = readable_bytes(available)
            raise UserError(f"--workers {self._world.size} needs {memory}; this machine has {have} left: take fewer workers")
        return memory

    def _few_samples(self) -> tuple[tuple[Tensor, Tensor], float]:
        """Some samples, and how many times as many a worker passes at once: that may be too many to be loaded for a forecast."""
        training, dataset = self._config.training, self._corpus.train
        own = training.batch_size // self._world.size // training.gradient_accumulation
        few = min(own, FORECAST_SAMPLES, len(dataset))
        return dataset.batch(torch.arange(few)), own / few

    def _say_what(self, module: nn.Module) -> None:
        config, display = self._config, self._display
        display.unit = self._corpus.unit
        display.say(f"data      {self._corpus.description}")
        display.say(f"model     {config.model.name}, {num_trainable(module):,} trainable parameters")
        display.say(f"strategy  {config.strategy.name}, {self._world.size:,} simulated workers")
        if self._order.report:
            display.say(f"partition {self._order.report}")
        if buffers := choice_of(config.strategy.buffers, module):
            display.say(f"buffers   {buffers}")
        rows = [
            tuple(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row)
            for row in table(config.optimizer.build(module))
        ]
        display.table(GroupRow._fields, rows)
        if config.checkpoint.every:
            display.say("note: a simulation writes no checkpoints; checkpoint.every is for `disttrain train`")
        if config.recording.trace:
            display.say("note: a simulation has no timeline; recording.trace is for `disttrain train` and `disttrain emulate`")

    def _say_how(self) -> None:
        if self._strategy.description:
            self._display.say(f"exchange  {self._strategy.description}")
        if self._strategy.warning:
            self._display.say(f"warning: {self._strategy.warning}")
        together = "all rows in one step" if self._engine.optimizer.elementwise else "an instance for each worker"
        self._display.say(f"optimizer {together}")
        self._display.say(f"gradients {self.choice.method}: {self.choice.reason}")

    # --- training ----------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Make all steps, or as many as until somebody asks to stop; returns the summary.

        Raises:
            Diverged: if some worker's gradients have not been finite for :data:`MOST_SKIPS` steps in a row.
        """
        config, training = self._config, self._config.training
        recorder = self._open_records()
        try:
            while self._step < training.steps and not self._stop_request:
                self.step()
                due = training.validate_every and self._step % training.validate_every == 0 and self._step < training.steps
                measured = self._validate(self._strategy.evaluation()) if due else {}
                if due or (self._step % config.recording.log_every == 0 and self._step < training.steps):
                    self._log(recorder, measured)
        finally:
            self._display.close()
        return self._close(recorder)

    def step(self) -> None:
        """One step of all workers, unrecorded."""
        parts, total = self.microbatches(self._step), torch.zeros(self._world.size)
        for number, (inputs, targets) in enumerate(parts):
            total += self._gradients(inputs, targets, len(parts), accumulate=number > 0)
        self._engine.step(self._replicas.g)
        self._step += 1
        self._losses += total
        self._unlogged += 1
        stuck = self._engine.consecutive_skips >= MOST_SKIPS
        if stuck.any():
            worker = int(stuck.nonzero()[0])
            raise Diverged(
                f"diverged: worker {worker}'s gradients have not been finite for {MOST_SKIPS} steps, up to step {self._step}"
            )

    def microbatches(self, step: int) -> list[tuple[Tensor, Tensor]]:
        """Inputs and targets ``[N, b, ...]`` of each forward and backward pass of a step."""
        training, world = self._config.training, self._world
        indices = self._order.batch(step, training.batch_size, world.ids)
        batches = []
        for part in indices.chunk(training.gradient_accumulation, dim=1):
            inputs, targets = self._corpus.train.batch(part.flatten())
            shape = part.shape
            batches.append((inputs.view(*shape, *inputs.shape[1:]), targets.view(*shape, *targets.shape[1:])))
        return batches

    def _autocast(self) -> AbstractContextManager[Any]:
        return cpu_autocast(self._config.training)

    def _validate(self, exported: Tensor) -> dict[str, float]:
        start = time.perf_counter()
        validation = Validation.of(self._config.training, self._corpus.validation, self._objective)
        record, losses = validate(self._replicas, exported, validation)
        line = {
            "step": self._step,
            "training_losses": [finite_or_none(loss) for loss in (self._losses / max(1, self._unlogged)).tolist()],
            "validation_losses": {str(worker): finite_or_none(loss) for worker, loss in losses.items()},
        }
        with (self._folder.path / "workers.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._logged_at += time.perf_counter() - start  # speeds are those of training
        return record

    # --- records -----------------------------------------------------------------------------------------------------

    def _open_records(self) -> Recorder:
        config, say = self._config.model_dump(mode="json"), self._display.say
        trackers = open_trackers(self._config.recording, self._folder.path, config, 0, lambda text: say(f"warning: {text}"))
        write_atomically(self._folder.config, dump(self._config))
        return Recorder(self._folder, self._display, trackers)

    def _log(self, recorder: Recorder, measured: dict[str, float]) -> None:
        now, steps = time.perf_counter(), max(1, self._step - self._logged_step)
        seconds_per_step = (now - self._logged_at) / steps
        self._logged_step = self._step
        losses = self._losses / max(1, self._unlogged)
        self._losses, self._unlogged = torch.zeros_like(losses), 0
        optimizer, traffic = self._engine.optimizer, self._world.traffic
        recorder.log(
            {
                "step": self._step,
                "tokens": self._tokens,
                "loss": float(losses.mean()),
                "loss_min": float(losses.min()),
                "loss_max": float(losses.max()),
                "learning_rate": optimizer.first.param_groups[0]["lr"],
                "seconds": now - self._started,
                "tokens_per_second": self._tokens / self._step / seconds_per_step if self._step else 0.0,
                "worker_steps_per_second": self._world.size / seconds_per_step,
                "payload_bytes": traffic.payload_bytes,
                "wire_bytes": traffic.wire_bytes,
                "exposed_seconds": None,
                "optimizer_seconds": optimizer.seconds,
                "gradient_norm": float(self._engine.gradient_norms.mean()),
                "skipped_steps": self._step - int(optimizer.updates.min()),
                "consensus_distance": consensus_distance(self._replicas.x),
            }
            | self._strategy.metrics
            | measured,
            (self._config.training.steps - self._step) * seconds_per_step,
        )
        self._logged_at = time.perf_counter()

    @property
    def _tokens(self) -> int:
        return self._step * self._config.training.batch_size * self._corpus.task.units_per_sample

    @property
    def completed(self) -> bool:
        """Whether all steps were made."""
        return self._step >= self._config.training.steps

    def _close(self, recorder: Recorder) -> dict[str, Any]:
        """Merge, measure, and write weights, last record and summary."""
        policy = self._config.strategy.buffers if self.completed else "local"
        result = (self._strategy.finish() if self.completed else self._strategy.evaluation()).clone()
        measured = self._validate(result) if self.completed else {}
        if recorder.last.get("step", 0) != self._step:  # stopped before the first, there is nothing to tell of
            self._log(recorder, measured)
        module = self._replicas.load(result)
        settle_buffers(policy, module, self._replicas.buffers, self._world, self._training_inputs())
        weights_sha256 = sha256_of({name: p.detach() for name, p in module.named_parameters()})
        export_weights(module, self._folder.weights)
        summary = self._summary(recorder.last, weights_sha256)
        recorder.finish(summary, self._corpus.unit)
        return summary

    def _summary(self, last: dict[str, Any], weights_sha256: str) -> dict[str, Any]:
        traffic, config = self._world.traffic, self._config
        gradient_bytes = 4 * self._replicas.layout.numel
        return {
            "status": "finished" if self.completed else "stopped",
            "mode": "simulated",
            "steps": self._step,
            "tokens": self._tokens,
            "final_loss": last.get("loss"),
            "validation_loss": None,
            **{key: value for key, value in last.items() if "validation_" in key or key.startswith("mean_model_")},
            "consensus_distance": last.get("consensus_distance"),
            "seconds": time.perf_counter() - self._started,
            "model": type(self._replicas.template).__name__,
            "optimizer": type(self._engine.optimizer.first).__name__,
            "strategy": config.strategy.name,
            "workers": self._world.size,
            "gradients": self.choice.method,
            "chunk": self.memory.chunk,
            "payload_bytes": traffic.payload_bytes,
            "wire_bytes": traffic.wire_bytes,
            "ddp_wire_bytes": self._step * all_reduce_wire_bytes(gradient_bytes, self._world.size),
            "exposed_seconds": None,
            "forecast_memory_bytes": self.memory.total_bytes,
            "peak_memory_bytes": peak_memory_bytes(torch.device("cpu")),
            "weights_sha256": weights_sha256,
        }

    def _training_inputs(self) -> Iterator[Tensor]:
        """Worker 0's batches, from the first step on."""
        for step in count():
            yield self.microbatches(step)[0][0][0]


@contextmanager
def _users_mistakes() -> Iterator[None]:
    """What does not fit together is the user's to mend."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from error
