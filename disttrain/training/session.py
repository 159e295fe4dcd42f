"""One worker's run, from its first meeting with the others to the summary; the loop around it may be ours or the user's.

A step is the caller's forward and backward, ``optimizer.step()``, and :meth:`Session.record`, which notes the loss, agrees with
the other workers on what must be agreed, logs, saves, and says whether to stop.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
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
from disttrain.training.aside import SecondsAside
from disttrain.training.assembly import assemble
from disttrain.training.buffers import settle_buffers
from disttrain.training.meeting import Meeting
from disttrain.training.resume import keeps_its_own, newest_agreed, refuse_other_run, what_workers_own
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
        self._recorded = 0
        self._no_checkpoint_until = 0
        self._tokens, self._aside = 0, SecondsAside()
        self._seconds_before, self._exposed_before, self._started = 0.0, 0.0, time.perf_counter()
        self._logged_at, self._logged_step, self._logged_tokens = self._started, 0, 0
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
        self._start_clock()
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
        self.world.traffic.exposed_seconds = self._exposed_before  # waiting for others to start is not training
        self._open_records(step or 0)
        self._start_clock()
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
        self.world.traffic.restore(snapshot.local_facts["traffic"])
        self._interface.restore(snapshot.local_facts.get("interface", {}))
        self.optimizer.seconds = snapshot.local_facts["optimizer_seconds"]
        self._aside = SecondsAside(**snapshot.local_facts.get("aside", {}))
        self._tokens, self._seconds_before = facts["tokens"], facts["seconds"]
        self._exposed_before = snapshot.local_facts["traffic"]["exposed_seconds"]
        self._agreement = Agreement(self.strategy, self.config.recording.log_every, self.stopping.at, step)
        if snapshot.local_facts["worker"] == self.world.rank:
            self._agreement.own.add(*snapshot.local_facts["own_loss"])
            self._agreement.loss.add(*snapshot.local_facts["unlogged_loss"])
        if self.step > self.config.training.steps:
            raise UserError(f"the checkpoint is of step {self.step}, beyond training.steps={self.config.training.steps}")
        self._recorded, self.should_stop = self.step, self.step >= self.stopping.at
        furthest = self.world.gather(torch.tensor([[self.step]], device=self.device)).max()
        self._no_checkpoint_until = int(furthest)  # workers without lockstep may have stopped at different steps
        self.display.say(f"continuing from step {step} of {self._store.directory}")

    def _join(self) -> int:
        """Go on from another worker's state; what this one did in earlier lives is not counted in its own."""
        snapshot = self.survival.take_state(lambda: not self.stopping.asked())
        self._state.restore(snapshot)
        self.strategy.join()
        self._tokens, self._seconds_before = snapshot.shared_facts["tokens"], snapshot.shared_facts["seconds"]
        self._agreement = Agreement(self.strategy, self.config.recording.log_every, self.stopping.at, self.step)
        self._recorded = self._no_checkpoint_until = self.step
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
        self._tokens += tokens * (1 + self.survival.take_missed())  # the others have made what this worker has skipped
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
        every = self.config.checkpoint.every
        due = every and self.step % every == 0 and self.step > self._no_checkpoint_until
        if due or self.step >= self.stopping.at:
            with self._aside.spent_on("checkpoint", self.world.traffic):
                self._save()
        self._store.settle()
        self.should_stop = self.step >= self.stopping.at
        if self.should_stop and not self._lockstep:
            self._wait_for_the_others()

    @contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """Inside it, the module is in evaluation mode, without gradients, and holds what the strategy would export now."""
        start, exported = time.perf_counter(), self.strategy.evaluation()
        counted = self._aside.spent_on("evaluation", self.world.traffic)
        exchanged = parameters_as(self.strategy.x, exported, self.model.live)
        with counted, training_mode(self.model, False), exchanged, torch.no_grad():
            yield self.model.module
        self._logged_at += time.perf_counter() - start  # tokens per second are those of training

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
        facts = {"workers": self.world.size, "tokens": self._tokens, "seconds": self._seconds(), "config": config}
        facts |= self.survival.facts
        own: dict[str, Any] = {"traffic": self.world.traffic.state(), "interface": self._interface.counts()}
        own |= {
            "optimizer_seconds": self.optimizer.seconds,
            "aside": asdict(self._aside),
            "own_loss": self._agreement.own.state(),
            "unlogged_loss": self._agreement.loss.state(),
        }
        return self._state.capture(facts, own)

    def _save(self) -> None:
        snapshot = self._capture()
        stopping, timeout = self.stopping, self.config.launch.timeout
        try:
            meeting_place = "stop" if stopping.apart else None
            self._store.save(self.step, snapshot, lambda waited: stopping.patient(waited, timeout), meeting_place)
        except CheckpointError as error:
            if not self._lockstep and stopping.asked() and not stopping.interrupted:
                self._save_apart()  # the others stop before they come here
                return
            older = self._store.steps()
            kept = f"the one of step {older[0]} is whole" if older else "there is no older one"
            if self.step >= self.stopping.at:
                raise RuntimeError(f"{error}; {kept}") from None
            self._warn(f"{error}; {kept}; training goes on")

    def _save_apart(self) -> None:
        """Stop here, while other workers stop elsewhere."""
        self.stopping.interrupt(self.step)
        self._save()

    def _wait_for_the_others(self) -> None:
        """Stay until the last checkpoint is whole, or until others are stopped on their way to it."""
        while self.step not in self._store.steps() and not self.stopping.interrupted:
            if self.stopping.asked():
                self._save_apart()
            self._store.settle()
            time.sleep(0.02)

    def _take_over(self) -> None:
        """Write for all from now on, if whoever did is lost."""
        if self._recorder is None and self.survival.possible and self.survival.leads:
            self.display = Display(self.config.training.steps, True, self.folder.logs / "console.log")
            self.display.unit = self.unit
            self._open_records(self.step - 1)

    def _log(self) -> None:
        """Write a record; the loss is taken on every worker, so that all forget it alike."""
        loss, now = self._agreement.loss.take(), time.perf_counter()
        self._take_over()
        if self._recorder is None:
            return
        speed = (self._tokens - self._logged_tokens) / (now - self._logged_at)
        seconds_left = (self.config.training.steps - self.step) * (now - self._logged_at) / max(1, self.step - self._logged_step)
        self._logged_at, self._logged_step, self._logged_tokens = now, self.step, self._tokens
        how = {"compute": "emulated"} if self.emulated else {}
        extra, self._extra = self._extra | self._agreement.metrics | self.strategy.metrics | self._interface.counts() | how, {}
        if self.flops_per_token and self.peak_flops:
            extra["mfu"] = speed * self.flops_per_token / (self.peak_flops * self.world.size)
        traffic, counts = self.world.traffic, self.optimizer.counts
        self._recorder.log(
            {
                "step": self.step,
                "tokens": self._tokens,
                "loss": loss,
                "learning_rate": self.optimizer.param_groups[0]["lr"],
                "seconds": self._seconds(),
                "tokens_per_second": speed,
                "payload_bytes": traffic.payload_bytes,
                "wire_bytes": traffic.wire_bytes,
                "exposed_seconds": self._exposed(),
                "optimizer_seconds": self.optimizer.seconds,
                **self._aside.metrics(),
                "gradient_norm": self.optimizer.gradient_norm,
                "skipped_steps": counts.steps - counts.updates,
            }
            | extra,
            seconds_left,
        )

    def _summary(self, weights_sha256: str | None) -> dict[str, Any]:
        counted = {"tokens": self._tokens, "seconds": self._seconds(), "exposed_seconds": self._exposed()}
        counted |= {"weights_sha256": weights_sha256} | self._interface.counts() | self.survival.facts
        return summarise(self, self._recorder.last if self._recorder else {}, counted)

    def _start_clock(self) -> None:
        self._started = self._logged_at = time.perf_counter()
        self._logged_step, self._logged_tokens = self.step, self._tokens

    def _seconds(self) -> float:
        return self._seconds_before + time.perf_counter() - self._started

    def _exposed(self) -> float | None:
        """Seconds of exposed communication; None on a GPU, where the host's clock does not see the kernels wait."""
        return None if self.device.type == "cuda" else self.world.traffic.exposed_seconds

    def _warn(self, text: str) -> None:
        self.display.say(f"warning: {text}")
