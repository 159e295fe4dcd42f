"""A federated run from a config: set up, rounds, records, checkpoints, result."""

from __future__ import annotations

import time
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from disttrain.component import UserError
from disttrain.config import LoadedConfig, dump
from disttrain.data.partitions import plot_partition, report
from disttrain.federated import Algorithm, BatchedEngine, Engine, EngineFailed, Federation, RayEngine, RoundReport, SerialEngine
from disttrain.federated.engines.ray_cluster import Cluster, is_joined, joined
from disttrain.launch.shutdown import StopRequest
from disttrain.launch.start import start_cpu
from disttrain.models.base import num_trainable
from disttrain.optim.schedules import ConstantConfig
from disttrain.parameters import sha256_of
from disttrain.recording.folder import RunFolder, write_atomically
from disttrain.recording.memory import peak_memory_bytes
from disttrain.recording.progress import Display
from disttrain.recording.recorder import Recorder
from disttrain.recording.trackers import open_trackers
from disttrain.recording.weights import export_weights
from disttrain.simulation.evaluation import Validation
from disttrain.simulation.federated.checking import check, divide
from disttrain.simulation.federated.checkpoints import Checkpoints
from disttrain.simulation.federated.problem import ModelProblem
from disttrain.simulation.gradients import Method
from disttrain.simulation.run import Diverged
from disttrain.training.seeds import seed_model

VALIDATION_BATCH = 512
MOST_TOGETHER, TOGETHER_BYTES = 64, 2 << 20
"""Blocks are computed together up to so many clients, as long as all their models fit a processor's cache."""
MOST_REFUSALS = 10
"""Rounds in a row in which whoever answers answers with what is not finite."""
METHODS: dict[str, Method | None] = {"auto": None, "serial": "loop", "batched": "vmap"}


class FederatedRun:
    """A run of all its clients, in this process or on Ray actors; to be closed.

    Args:
        loaded: checked here.
        folder: claimed.
        stop_request: becomes true when the process is asked to stop.

    Attributes:
        federation: server and clients.

    Raises:
        UserError: if model, data, partition and section do not fit together.
    """

    def __init__(self, loaded: LoadedConfig, folder: RunFolder, stop_request: StopRequest) -> None:
        self._section, config = check(loaded), loaded.config
        self._config, self._folder, self._stop_request = config, folder, stop_request
        on_ray = self._section.engine == "ray"
        # Ray's default, too; and bits must not depend on the number of actors, so they cannot share the cores
        self._threads = start_cpu(config.launch.threads or (1 if on_ray else None), local_world_size=1)
        self._resources = ExitStack()
        self._display = Display(self._section.rounds, True, folder.logs / "console.log")
        self._objective = config.objective.build()
        try:
            self._corpus = config.data.build(config.training.seed)
            self._objective.check(self._corpus.task)
            parts = divide(loaded, self._section, self._corpus)
            seed_model(config.training.seed)
            self._module = config.model.build(self._corpus.task)
            config.initialise(self._module)
            rows = max(self._section.block_size, min(MOST_TOGETHER, TOGETHER_BYTES // (4 * num_trainable(self._module))))
            self._problem = ModelProblem(self._module, self._objective, self._corpus.train, parts, config.training.seed, rows)
            self._cluster = self._join() if on_ray else None
            self.federation = self._build()
        except BaseException as error:
            self.close()
            if isinstance(error, (ValueError, TypeError)) and not isinstance(error, UserError):
                raise UserError(str(error)) from error  # what does not fit together is the user's to mend
            raise
        self._say_what(str(report(parts, self._corpus.train)).replace("workers", "clients"))
        plot_partition(parts, self._corpus.train, folder.partition_plot)
        self._checkpoints = Checkpoints(folder, config, self.federation)
        self._loss, self._losses, self._refusals, self._silences = 0.0, 0, 0, 0
        self._seconds_before, self._logged_evaluations, self._logged_round = 0.0, 0, 0

    def close(self) -> None:
        """End what runs elsewhere."""
        self._resources.close()

    # --- before training ---------------------------------------------------------------------------------------------

    def _join(self) -> Cluster:
        """The Ray cluster, or one of this machine, for as long as the run lasts."""
        own = self._section.ray
        if own.address is None and not is_joined():
            own.check_room_here(self._threads)
        return self._resources.enter_context(joined(own.address, own.start_timeout))

    def _build(self) -> Federation:
        section, seed, schedule = self._section, self._config.training.seed, self._config.schedule
        algorithm = section.build(self._expert())
        choice = self._problem.choose(section.batch_size, METHODS[section.compute])
        self._display.say(f"gradients {choice.method}: {choice.reason}")
        changes = schedule != ConstantConfig()
        return Federation(
            algorithm,
            self._problem.start,
            self._engine(algorithm, choice.method),
            section.plan(seed),
            section.availability(),
            self._problem.sizes,
            section.block_size,
            (lambda number: section.lr * schedule.multiplier(number, section.rounds)) if changes else None,
            self._folder.path / "clients",
        )

    def _expert(self) -> Tensor | None:
        """The parameters of the model that scores samples, if one does."""
        if (path := self._section.ordering.expert_path) is None:
            return None
        try:
            return self._problem.parameters_of(Path(path))
        except UserError as error:
            raise UserError(f"federated.ordering.expert={path}: {error}") from None

    def _engine(self, algorithm: Algorithm, method: Method) -> Engine:
        """Client after client where gradients are computed so, too."""
        self._problem.method = method
        serial = method == "loop"
        inner = (
            SerialEngine(algorithm, self._problem)
            if serial
            else BatchedEngine(algorithm, self._problem, len(self._problem.replicas))
        )
        self.engine_name = "serial" if serial else "batched"
        if self._cluster is None:
            return inner
        self.engine_name = "ray"
        most = -(-self._section.waiting.invited(self._section.cohort_size) // self._section.block_size)
        engine = RayEngine(inner, self._cluster, self._section.ray, self._threads, most, self._display.say)
        self._resources.callback(engine.close)
        return engine

    def _say_what(self, partition: str) -> None:
        section, display, count = self._section, self._display, num_trainable(self._module)
        display.unit = self._corpus.unit
        display.say(f"data      {self._corpus.description}")
        display.say(f"clients   {self._config.partition.name}: {partition}")
        display.say(f"model     {self._config.model.name}, {count:,} trainable parameters")
        steps = f"{section.local_steps} local steps of {section.batch_size} samples"
        if isinstance(engine := self.federation.engine, RayEngine) and self._cluster is not None:
            actors = f"{engine.num_actors} actors" if engine.num_actors > 1 else "1 actor"
            threads = f"{self._threads} threads each" if self._threads > 1 else "1 thread each"
            display.say(f"ray       {actors} with {threads}, on {self._cluster.place}")
        display.say(
            f"algorithm {section.algorithm.name}, {section.cohort_size} clients a round, {steps}; {self.engine_name} engine"
        )
        for said in section.order():
            display.say(f"order     {said}")
        if warning := self.federation.algorithm.warning(self.federation.plan):
            display.say(f"warning: {warning}")

    # --- rounds ------------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Make all rounds, or as many as until somebody asks to stop; returns the summary.

        Raises:
            Diverged: if the model is not finite, or no answer has been for :data:`MOST_REFUSALS` rounds in a row.
            UserError: if the run is to be continued and cannot be.
            EngineFailed: if clients can no longer be computed.
        """
        config, federation = self._config, self.federation
        facts = self._checkpoints.resume(self._display.say) if config.training.resume == "auto" else None
        self._recorder = self._open_records(facts)
        self._started = self._logged_at = time.perf_counter()
        end = min(self._section.rounds, config.training.stop_after or self._section.rounds)
        try:
            while federation.round < end and not self._stop_request:
                self._note(federation.step())
                number, last = federation.round, federation.round >= end
                every = config.training.validate_every
                measured = self._validate() if every and number % every == 0 and not last else {}
                if measured or (number % config.recording.log_every == 0 and not last):
                    self._log(measured)
                if config.checkpoint.every and number % config.checkpoint.every == 0 and not last:
                    self._save()
        finally:
            self._display.close()
        return self._finish()

    def _note(self, report: RoundReport) -> None:
        if report.used:
            self._loss, self._losses = self._loss + report.loss, self._losses + 1
        self._refusals = 0 if report.used else self._refusals + (report.refused > 0)
        self._silences = 0 if report.used else self._silences + (report.dropped > 0)
        if self._silences >= MOST_REFUSALS:
            raise EngineFailed(
                f"nothing of {MOST_REFUSALS} rounds in a row has come back from Ray, up to round {self.federation.round}: actors "
                "die, or take longer than federated.ray.block_timeout"
            )
        if self._refusals >= MOST_REFUSALS or not self.federation.x.isfinite().all():
            raise Diverged(
                f"diverged: clients' numbers are not finite, up to round {self.federation.round}: "
                "take a smaller federated.lr or server_lr, or set federated.clip_norm"
            )

    def _validate(self) -> dict[str, float]:
        start, dataset = time.perf_counter(), self._corpus.validation
        size = min(VALIDATION_BATCH, len(dataset))
        validation = Validation(dataset, self._objective, size, len(dataset) // size, nullcontext)
        measured = validation.measure(self._model())
        self._logged_at += time.perf_counter() - start  # speeds are those of training
        return {f"validation_{name}": value for name, value in measured.items()}

    def _model(self) -> nn.Module:
        """The module, now with the server's parameters."""
        return self._problem.replicas.load(self.federation.x[None])

    @property
    def completed(self) -> bool:
        """Whether all rounds were made."""
        return self.federation.round >= self._section.rounds

    # --- records -----------------------------------------------------------------------------------------------------

    def _open_records(self, facts: dict[str, Any] | None) -> Recorder:
        display, config, step = self._display, self._config.model_dump(mode="json"), self.federation.round
        trackers = open_trackers(
            self._config.recording, self._folder.path, config, step, lambda text: display.say(f"warning: {text}")
        )
        recorder = Recorder(self._folder, display, trackers)
        recorder.forget_after(self.federation.round)
        if facts is not None:
            display.say(f"continuing from round {self.federation.round} of {self._folder.checkpoints}")
            self._seconds_before = facts["seconds"]
            if self._section.compute == "auto":  # a trial may have ended otherwise, and its choice shows in the last bits
                self.federation.engine = self._engine(self.federation.algorithm, facts["method"])
            if recorder.last.get("step") != self.federation.round:  # else logged already, by the run that stopped here
                self._loss, self._losses = facts["unlogged"]
            self._logged_round, self._logged_evaluations = self.federation.round, self.federation.totals.evaluations
        write_atomically(self._folder.config, dump(self._config))
        return recorder

    def _log(self, measured: dict[str, float]) -> None:
        federation, now, totals = self.federation, time.perf_counter(), self.federation.totals
        interval = max(now - self._logged_at, 1e-9)
        rounds, samples = federation.round - self._logged_round, totals.evaluations - self._logged_evaluations
        schedule, section = self._config.schedule, self._section
        self._recorder.log(
            {
                "step": federation.round,
                "tokens": totals.evaluations * self._corpus.task.units_per_sample,
                "loss": self._loss / self._losses if self._losses else None,
                "learning_rate": section.lr * schedule.multiplier(max(0, federation.round - 1), section.rounds),
                "seconds": self._seconds(),
                "tokens_per_second": samples * self._corpus.task.units_per_sample / interval,
                "rounds_per_second": rounds / interval,
                **self._counts(),
            }
            | measured,
            (section.rounds - federation.round) * interval / rounds if rounds else None,
        )
        self._loss, self._losses = 0.0, 0
        self._logged_round, self._logged_evaluations, self._logged_at = federation.round, totals.evaluations, now

    def _counts(self) -> dict[str, Any]:
        totals = self.federation.totals
        return {
            "bytes_up": totals.bytes_up,
            "bytes_down": totals.bytes_down,
            "gradient_evaluations": totals.evaluations,
            "samples_scored": totals.scored,
            "clients_used": totals.clients_used,
            "clients_lost": totals.clients_lost,
            "clients_refused": totals.clients_refused,
            "clients_dropped": totals.clients_dropped,
            "void_rounds": totals.void_rounds,
            "virtual_seconds": totals.virtual_seconds,
        }

    def _seconds(self) -> float:
        return self._seconds_before + time.perf_counter() - self._started

    def _save(self) -> None:
        self._checkpoints.save(
            {"seconds": self._seconds(), "unlogged": [self._loss, self._losses], "method": self._problem.method}
        )

    def _finish(self) -> dict[str, Any]:
        """Save, measure, and write the last record, weights and summary."""
        self._save()
        measured = self._validate() if self.completed else {}
        if self._recorder.last.get("step", 0) != self.federation.round:
            self._log(measured)
        module = self._model()
        weights_sha256 = sha256_of({name: p.detach() for name, p in module.named_parameters()})
        export_weights(module, self._folder.weights)
        summary = self._summary(self._recorder.last | measured, weights_sha256)
        self._recorder.finish(summary, self._corpus.unit)
        return summary

    def _summary(self, last: dict[str, Any], weights_sha256: str) -> dict[str, Any]:
        return {
            "status": "finished" if self.completed else "stopped",
            "mode": "federated",
            "steps": self.federation.round,
            "tokens": self.federation.totals.evaluations * self._corpus.task.units_per_sample,
            "final_loss": last.get("loss"),
            "validation_loss": last.get("validation_loss"),
            **{name: value for name, value in last.items() if name.startswith("validation_")},
            "seconds": self._seconds(),
            "model": type(self._module).__name__,
            "algorithm": self._section.algorithm.name,
            "clients": self._section.clients,
            "cohort": self._section.cohort_size,
            "engine": self.engine_name,
            "exposed_seconds": None,
            **self._counts(),
            "peak_memory_bytes": peak_memory_bytes(torch.device("cpu")),
            "weights_sha256": weights_sha256,
        }
