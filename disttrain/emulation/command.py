"""``disttrain emulate``: from what the command line says to a plan, with every mistake found before anything is made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from disttrain.component import UserError
from disttrain.config import LoadedConfig, RunConfig
from disttrain.emulation.bandwidth import Link, parse_links
from disttrain.emulation.events import Event, load_events
from disttrain.emulation.network import INTERFACE
from disttrain.emulation.plan import Plan
from disttrain.quantities import parse_duration

MOST_WORKERS = 1000


def check_options(workers: int, bandwidth: str, events: str | None) -> tuple[tuple[Link, ...], tuple[Event, ...]]:
    """Every worker's link, and the script's events.

    Raises:
        UserError: for what is wrong with one of them.
    """
    if workers > MOST_WORKERS:
        raise UserError(f"--workers {workers}: a bridge has ports for {MOST_WORKERS}; `disttrain simulate` takes more")
    try:
        links = parse_links(bandwidth, workers)
    except ValueError as error:
        raise UserError(f"--bandwidth: {error} (got {bandwidth!r})") from None
    return links, () if events is None else load_events(events, workers)


def settings(step_time: str | None) -> list[str]:
    """The overrides that every emulated run has.

    Raises:
        UserError: if ``step_time`` is no duration with a unit: ``--step-time 50`` is not likely to mean 50 seconds.
    """
    try:
        _ = None if step_time is None else parse_duration(step_time)
    except ValueError:
        raise UserError(f"--step-time: must be a duration with its unit, such as 50ms (got {step_time!r})") from None
    return [f"launch.interface={INTERFACE}"] + ([] if step_time is None else [f"launch.emulated_step_time={step_time}"])


def check_config(config: RunConfig) -> None:
    """Check what an emulated network cannot serve.

    Raises:
        UserError: for nccl, and for Weights & Biases online.
    """
    if config.launch.backend == "nccl":
        raise UserError(
            "launch.backend=nccl would pass by the emulated links, for a host's GPUs reach each other directly: use gloo"
        )
    wandb = config.recording.wandb
    if wandb is not None and wandb.mode == "online":
        raise UserError("recording.wandb.mode=online: emulated workers have no way to the internet; use offline")


def make_plan(
    loaded: LoadedConfig,
    overrides: Sequence[str],
    folder: Path,
    links: tuple[Link, ...],
    events: tuple[Event, ...],
    max_restarts: int,
) -> Plan:
    """The plan of a checked emulation in a claimed folder."""
    launch = loaded.config.launch
    kept = [each for each in overrides if not each.startswith("launch.backend=")]  # auto might become nccl
    return Plan(
        config=str(loaded.path),
        overrides=(*kept, "launch.backend=gloo"),
        directory=str(folder),
        links=links,
        events=events,
        max_restarts=max_restarts,
        timeout=launch.timeout,
        compute="real" if launch.emulated_step_time is None else "emulated",
    )
