"""One worker's run, from its first meeting with the others to the summary; the loop around it may be ours or the user's.

A step is the caller's forward and backward, ``optimizer.step()``, and :meth:`Session.record`, which notes the loss, agrees with
the other workers on what must be agreed, logs, saves, and says whether to stop.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from disttrain.component import UserError
from disttrain.config import RunConfig, dump
from disttrain.launch.interface_counter import InterfaceCounter
from disttrain.launch.shutdown import StopRequest
from disttrain.parameters import sha256_of
from disttrain.recording.checkpoint import CheckpointError, Snapshot
from disttrain.recording.folder import write_atomically
from disttrain.recording.progress import Display
from disttrain.recording.recorder import Recorder
from disttrain.recording.trackers import open_trackers
from disttrain.recording.weights import export_weights
from disttrain.strategies.attach import PreparedModule, StrategyOptimizer, parameters_as, training_mode
from disttrain.training.agreement import Agreement
from disttrain.training.assembly import assemble
from disttrain.training.buffers import settle_buffers
from disttrain.training.clock import Clock
from disttrain.training.meeting import Meeting
from disttrain.training.resume import keeps_its_own, newest_agreed, refuse_other_run, what_workers_own
from disttrain.training.saving import Saving
from disttrain.training.seeds import seed_model, seed_worker
from disttrain.training.state import TrainingState
from disttrain.training.stopping import Stopping
from disttrain.training.summary import summarise
from disttrain.training.survival import Survival
from disttrain.training.tracing import Tracing
from disttrain.worlds import TorchWorld

MOST_SKIPS = 20
"""Steps in a row that may be skipped for gradients that are not finite, before the run ends as diverged."""


class Session:
    """Drives one worker through a run.

    Args:
        config: validated.
        world: all workers.
        device: this worker's.
        meeting: what the workers found out at the start.
        resume: whether to go on from a checkpoint, if there is one.
        stop_request: becomes true when this process is asked to stop.

    Attributes:
        stopping: the last step: of the run, of ``training.stop_after``, or after a stop request.
        should_stop: whether it has been made.
        strategy: begun in :meth:`prepare`.
        emulated: whether compute is, so that there is neither a loss nor a result.
    """

    def __init__(
        self,
        config: RunConfig,
        world: TorchWorld,
        device: torch.device,
        meeting: Meeting,
        resume: bool,
        stop_request: StopRequest,
    ) -> None:
        self.config, self.world, self.device, self.folder = config, world, device, meeting.folder
        self.strategy = config.build_strategy()
        self.survival = Survival(world)
        self.display = Display(config.training.steps, self.survival.leads, self.folder.logs / "console.log")
        self.should_stop, self._resume = False, resume
        self.emulated = config.launch.emulated_step_time is not None
        self._interface = InterfaceCounter(config.launch.interface)
        self.unit: str | None = None
        self.flops_per_token: float | None = None
        self.peak_flops: float | None = None
        self._lockstep = self.strategy.lockstep and not self.survival.possible
        planned_end = min(config.training.steps, config.training.stop_after or sys.maxsize)
        self.stopping = Stopping(stop_request, self.folder.path / f".stop-{meeting.token}", self._lockstep, planned_end)
        self._store = self.survival.checkpoints(self.folder.checkpoints, meeting.members, meeting.token, config.checkpoint.keep)
        if self._store.leads:
            self._store.forget_leftovers()
        self._tracing = Tracing(config.recording, world, self.folder, meeting.token, self._warn)
        self._recorder: Recorder | None = None
        timeout, every = config.launch.timeout, config.checkpoint.every
        self._saving = Saving(self._store, self.stopping, self._lockstep, timeout, every, self._capture, self._warn)
        self._clock = Clock(world.traffic)
        self._recorded = 0
        self._extra: dict[str, float] = {}
        seed_model(config.training.seed)

    # --- before training -------------------------------------------------------------------------------------------

    def prepare(
        self, module: nn.Module, optimizer: Optimizer | None = None, scaler: torch.amp.GradScaler | None = None
    ) -> tuple[PreparedModule, StrategyOptimizer]:
        """Put strategy, schedule and clipping around a module and its optimizer (None: the config's); a scaler scales the loss.

        Raises:
            UserError: if the module or the optimizer cannot be trained so.
            RuntimeError: if it was called before.
        """
        if hasattr(self, "model"):
            raise RuntimeError("prepare() was called already; put what is trained together into one module")
        self.config.initialise(module)
        module.to(self.device)
        if scaler is not None and self.strategy.lockstep and not self.strategy.replicated:
            name = self.config.strategy.name
            raise UserError(f"under strategy.name={name} each worker's GradScaler would skip other steps, and rounds not be "
                            "equally long any more: use bfloat16, which needs no scaler")  # fmt: skip
        if scaler is not None:
            self.strategy.loss_scale = scaler.get_scale
        self.model, self.optimizer = assemble(self.config, self.strategy, self.world, module, optimizer)
        self._state = TrainingState(module, self.optimizer, self.strategy, self.world.rank)
        self._agreement = Agreement(self.strategy, self.config.recording.log_every, self.stopping.at)
        if self.strategy.warning:
            self._warn(self.strategy.warning)
        seed_worker(self.config.training.seed, self.world.rank)
        self._clock.start(self.step)
        return self.model, self.optimizer

    def resume(self) -> int:
        """Go on from the newest checkpoint that is whole, if the run is to be continued; returns the step (0: a new run).

        Raises:
            UserError: if there are checkpoints and none is whole, or it is of another model or number of workers.
        """
        step = None
        if self.survival.joins:
            step = self._join()
        elif self._resume:
            step = newest_agreed(self._store, self.world, self.device, self._warn)
            if step is not None:
                self._restore(step)
        self._open_records(step or 0)
        self._clock.start(self.step)
        self._tracing.begin(self.step)
        self.survival.tell(self.step)
        return step or 0

    def _restore(self, step: int) -> None:
        snapshot = self._store.load(step)
        facts = snapshot.shared_facts
        for key, old, new in refuse_other_run(facts["config"], self.config.model_dump(mode="json")):
            self.display.say(f"note: {key} is {new} now, was {old}")
        if facts["workers"] != self.world.size and (own := what_workers_own(self.config, self.strategy)):
            raise UserError(
                f"the checkpoint of step {step} is of {facts['workers']} workers, this run has {self.world.size}: under "
                f"{own} of its own, so their number must stay"
            )
        try:
            alone = keeps_its_own(snapshot, self.config, self.strategy, self.world.size)
            self._state.restore(snapshot, None if alone else self._store.load_everybody(step, facts["workers"]))
        except (CheckpointError, ValueError) as error:
            raise UserError(str(error)) from error
        self._clock.restore(facts, snapshot.local_facts)
        self._interface.restore(snapshot.local_facts.get("interface", {}))
        self.optimizer.seconds = snapshot.local_facts["optimizer_seconds"]
        self._agreement = Agreement(self.strategy, self.config.recording.log_every, self.stopping.at, step)
        if snapshot.local_facts["worker"] == self.world.rank:
            self._agreement.own.add(*snapshot.local_facts["own_loss"])
            self._agreement.loss.add(*snapshot.local_facts["unlogged_loss"])
        if self.step > self.config.training.steps:
            raise UserError(f"the checkpoint is of step {self.step}, beyond training.steps={self.config.training.steps}")
        self._recorded, self.should_stop = self.step, self.step >= self.stopping.at
        furthest = self.world.gather(torch.tensor([[self.step]], device=self.device)).max()
        self._saving.not_until = int(furthest)  # workers without lockstep may have stopped at different steps
        self.display.say(f"continuing from step {step} of {self._store.directory}")

    def _join(self) -> int:
        """Go on from another worker's state; what this one did in earlier lives is not counted in its own."""
        snapshot = self.survival.take_state(lambda: not self.stopping.asked())
        self._state.restore(snapshot)
        self.strategy.join()
        self._clock.go_on_from(snapshot.shared_facts)
        self._agreement = Agreement(self.strategy, self.config.recording.log_every, self.stopping.at, self.step)
        self._recorded = self._saving.not_until = self.step
        giver = snapshot.local_facts["worker"]
        print(f"disttrain: rank {self.world.rank} is here again, with rank {giver}'s state of step {self.step}", file=sys.stderr)
        return self.step

    def _open_records(self, step: int) -> None:
        if not self.survival.leads:
            return
        config = self.config.model_dump(mode="json")
        trackers = open_trackers(self.config.recording, self.folder.path, config, step, self._warn)
        self._recorder = Recorder(self.folder, self.display, trackers)
        self._recorder.forget_after(step)
        if self._recorder.last.get("step") == step:
            self._agreement.loss.take()  # logged already, by the run that stopped here
        write_atomically(self.folder.config, dump(self.config))

    # --- during training -------------------------------------------------------------------------------------------

    def look_after_others(self) -> None:
        """Between steps, where workers may be lost: help those that are back, and go on where the others are."""
        self.survival.give_state(self._capture)
        self.survival.catch_up(self.optimizer, self.strategy, self.stopping.at)

    @property
    def step(self) -> int:
        """Steps made so far.

        Raises:
            UserError: before prepare().
        """
        if not hasattr(self, "optimizer"):
            raise UserError("call prepare() first: it makes the optimizer whose steps are counted")
        return self.optimizer.counts.steps

    def record(self, loss: Tensor | float, tokens: int = 0, log: bool = False, **metrics: float) -> None:
        """End a step, after ``optimizer.step()``.

        Args:
            loss: this worker's mean loss.
            tokens: that all workers together trained on in this step.
            log: write a record of this step, whatever ``recording.log_every`` says; the same on all workers.
            metrics: further numbers for this step's record; they are logged with the next record.

        Raises:
            UserError: if there was no step since the last call.
            RuntimeError: if the gradients have not been finite for :data:`MOST_SKIPS` steps in a row.
        """
        if self.step == self._recorded:
            raise UserError(
                f"record() ends a step: call it once after each optimizer.step() (step {self.step} was recorded already)"
            )
        self._clock.tokens += tokens * (1 + self.survival.take_missed())  # the others have made what this worker has skipped
        self._recorded = self.step
        self.survival.tell(self.step)
        self._extra |= metrics
        loss = float(loss.detach() if isinstance(loss, Tensor) else loss)
        self._agreement.step(self.step, loss, self.stopping.asked(), exchange=log)
        if self.optimizer.counts.consecutive_skips >= MOST_SKIPS:
            raise RuntimeError(f"diverged: the gradients have not been finite for {MOST_SKIPS} steps, up to step {self.step}")
        if self.optimizer.counts.updates == 1:
            self._state.check()
        if self._agreement.stop or (self.survival.possible and self.stopping.asked()):  # who cannot wait for others need not
            self.stopping.interrupt(self.step)
        self._tracing.end_step(self.step)
        if self.should_stop:  # a loop that goes on regardless
            return
        if (log or self.step % self.config.recording.log_every == 0) and self.step < self.stopping.at:
            self._log()  # the last record is written by close, which may have more to say
        if self._saving.due(self.step):
            with self._clock.saving():
                self._saving.save(self.step)
        self._store.settle()
        self.should_stop = self.step >= self.stopping.at
        if self.should_stop and not self._lockstep:
            self._saving.wait_for_the_others(self.step)

    @contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """Inside it, the module is in evaluation mode, without gradients, and holds what the strategy would export now."""
        with self._clock.evaluating():
            exported = parameters_as(self.strategy.x, self.strategy.evaluation(), self.model.live)
            with training_mode(self.model, False), exported, torch.no_grad():
                yield self.model.module

    # --- after training --------------------------------------------------------------------------------------------

    @property
    def completed(self) -> bool:
        """Whether the run has made all its steps, rather than been stopped on the way."""
        return self.step >= self.config.training.steps and not self.stopping.apart  # else another worker has not

    def merge(self, batches: Iterator[Any] | None = None) -> None:
        """Turn the live parameters into the run's result, a stopped run's into what it would validate.

        Args:
            batches: training inputs for ``strategy.buffers=recalibrate``.
        """
        module = self.model.module
        if self.completed:
            self.survival.come_to_the_end()
        with self.model.live():
            result = self.strategy.finish() if self.completed else self.strategy.evaluation()
            if result.data_ptr() != self.strategy.x.data_ptr():
                self.strategy.x.copy_(result)
        if self.completed:
            own = {name: buffer[None] for name, buffer in module.named_buffers()}
            settle_buffers(self.config.strategy.buffers, module, own, self.world, batches)

    def close(self, **metrics: float) -> dict[str, Any]:
        """Write the last record, the weights and the summary; returns the summary. ``model.module`` is whole from then on."""
        self._extra |= metrics
        self._tracing.write_part()
        module = self.model.detach()
        weights = {name: p.detach() for name, p in module.named_parameters()}
        self.survival.wait_for_the_summary()
        self._take_over()
        if self._recorder is None:
            return {}
        if self._recorder.last.get("step") != self.step:
            self._log()
        self.stopping.over()
        summary = self._summary(None if self.emulated else sha256_of(weights))
        if not self.emulated:
            export_weights(module, self.folder.weights)
        self._tracing.join(self._store.members)
        self._recorder.finish(summary, self.unit)
        self.survival.close()
        return summary

    # --- details ---------------------------------------------------------------------------------------------------

    def _capture(self) -> Snapshot:
        config = self.config.model_dump(mode="json")
        facts = {"workers": self.world.size, "config": config} | self._clock.shared_facts | self.survival.facts
        own = self._clock.local_facts | {
            "interface": self._interface.counts(),
            "optimizer_seconds": self.optimizer.seconds,
            "own_loss": self._agreement.own.state(),
            "unlogged_loss": self._agreement.loss.state(),
        }
        return self._state.capture(facts, own)

    def _take_over(self) -> None:
        """Write for all from now on, if whoever did is lost."""
        if self._recorder is None and self.survival.possible and self.survival.leads:
            self.display = Display(self.config.training.steps, True, self.folder.logs / "console.log")
            self.display.unit = self.unit
            self._open_records(self.step - 1)

    def _log(self) -> None:
        """Write a record; the loss is taken on every worker, so that all forget it alike."""
        loss = self._agreement.loss.take()
        self._take_over()
        if self._recorder is None:
            return
        speed, step_seconds = self._clock.lap(self.step)
        how = {"compute": "emulated"} if self.emulated else {}
        extra, self._extra = self._extra | self._agreement.metrics | self.strategy.metrics | self._interface.counts() | how, {}
        if self.flops_per_token and self.peak_flops:
            extra["mfu"] = speed * self.flops_per_token / (self.peak_flops * self.world.size)
        traffic, counts = self.world.traffic, self.optimizer.counts
        self._recorder.log(
            {
                "step": self.step,
                "tokens": self._clock.tokens,
                "loss": loss,
                "learning_rate": self.optimizer.param_groups[0]["lr"],
                "seconds": self._clock.seconds,
                "tokens_per_second": speed,
                "payload_bytes": traffic.payload_bytes,
                "wire_bytes": traffic.wire_bytes,
                "exposed_seconds": self._exposed(),
                "optimizer_seconds": self.optimizer.seconds,
                **self._clock.aside.metrics(),
                "gradient_norm": self.optimizer.gradient_norm,
                "skipped_steps": counts.steps - counts.updates,
            }
            | extra,
            seconds_left=step_seconds * (self.config.training.steps - self.step),
        )

    def _summary(self, weights_sha256: str | None) -> dict[str, Any]:
        counted = self._clock.shared_facts | {"exposed_seconds": self._exposed()}
        counted |= {"weights_sha256": weights_sha256} | self._interface.counts() | self.survival.facts
        return summarise(self, self._recorder.last if self._recorder else {}, counted)

    def _exposed(self) -> float | None:
        """Seconds of exposed communication; None on a GPU, where the host's clock does not see the kernels wait."""
        return None if self.device.type == "cuda" else self.world.traffic.exposed_seconds

    def _warn(self, text: str) -> None:
        self.display.say(f"warning: {text}")
