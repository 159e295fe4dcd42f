"""The sections of a config that are the same whatever model, optimizer or strategy is chosen."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from disttrain.component import Config
from disttrain.quantities import Duration

SAFE_NAME = re.compile("[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")

Count = Annotated[int, Field(ge=1)]
CountOrNone = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]


class TrainingConfig(Config):
    """How long to train, on how much at once, and how carefully."""

    steps: Count = 1000
    """Steps of the whole run."""
    batch_size: Count = 16
    """Samples (sequences, of text) per step, of all workers together."""
    gradient_accumulation: Count = 1
    """Forward and backward passes per step: more of them need less memory."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """What forward and backward compute in; parameters and optimizer state are fp32."""
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Gradients are scaled down to this norm; null: never."""
    validate_every: CountOrNone = 100
    """Steps between validations; 0: only at the end."""
    validation_batches: Count = 20
    """Batches of batch_size samples per validation."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Of the model's initial parameters, the order of the data and everything else that is random."""
    initial_weights: str | None = None
    """Weights to begin from rather than new ones: a run's folder, or a .safetensors file with the model's names; null: none."""
    resume: Literal["never", "auto"] = "never"
    """auto: continue the run in run.directory, if there is one."""
    stop_after: Count | None = None
    """Save and stop after this step, as if the run had been interrupted there."""

    @field_validator("gradient_accumulation")
    @classmethod
    def _accumulation_divides_the_batch(cls, value: int, info: ValidationInfo) -> int:
        batch_size = info.data.get("batch_size", 0)
        if batch_size % value:
            raise ValueError(f"must divide training.batch_size={batch_size}, so that all passes are of one size")
        return value


class CheckpointConfig(Config):
    """When to save what a run needs to be continued."""

    every: CountOrNone = 0
    """Steps between checkpoints; 0: only at the end."""
    keep: int = 2
    """How many of the newest checkpoints stay on disk."""

    @field_validator("keep")
    @classmethod
    def _leaves_one_to_fall_back_to(cls, value: int) -> int:
        if value < 2:
            raise ValueError("must be at least 2: a damaged newest checkpoint must leave one to fall back to")
        return value


class WandbConfig(Config):
    """Where Weights & Biases puts the run."""

    project: Text
    """The project that the run is shown in."""
    mode: Literal["online", "offline"] = "offline"
    """offline: write files that `wandb sync` uploads later."""


class RecordingConfig(Config):
    """What is written down while training."""

    log_every: Count = 10
    """Steps between lines of metrics.jsonl."""
    wandb: WandbConfig | None = None
    """Also log to Weights & Biases; null: do not."""
    tensorboard: bool = False
    """Also write TensorBoard's event files, into the run folder."""
    trace: bool = False
    """Write trace.json: when each worker computed, stepped, exchanged and waited, for https://ui.perfetto.dev."""
    trace_from: CountOrNone = 0
    """Steps before the first that is traced."""
    trace_steps: Count = 50
    """How many are."""


class RunFolderConfig(Config):
    """What the run is called and where it is kept."""

    name: str | None = None
    """Of the run; null: the config file's name."""
    directory: Text | None = None
    """The run's folder; null: a new one, runs/NAME."""

    @field_validator("name")
    @classmethod
    def _can_name_a_folder(cls, value: str | None) -> str | None:
        if value is not None and not SAFE_NAME.fullmatch(value):
            raise ValueError("must be 1 to 100 letters, digits, dots, underscores and dashes, the first not a dot or dash")
        return value


class LaunchConfig(Config):
    """What the workers run on, and how they reach each other."""

    backend: Literal["auto", "gloo", "nccl"] = "auto"
    """What carries the messages; auto: nccl on GPUs, else gloo."""
    interface: Text | None = None
    """The network interface, such as eth0; null: the backend's choice."""
    threads: Count | None = None
    """CPU threads per worker; null: the machine's cores, divided among its workers."""
    timeout: Duration = Field(300.0, gt=0)
    """How long one exchange may wait for other workers."""
    debug: bool = False
    """Check in every exchange that all workers call the same, and that strategies obey the rules of lanes; slower."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one."""
    emulated_step_time: Annotated[Duration, Field(gt=0)] | None = None
    """Pretend that a step's forward and backward take this long, and compute nothing: the exchange is real, the model is not
    trained. null: compute."""

    @field_validator("device")
    @classmethod
    def _fits_the_backend(cls, value: str, info: ValidationInfo) -> str:
        if value == "cpu" and info.data.get("backend") == "nccl":
            raise ValueError("must not be cpu with launch.backend=nccl, which connects GPUs only; use gloo or auto")
        return value
