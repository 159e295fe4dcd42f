"""What can be seen of a federated run before anything is built."""

from __future__ import annotations

from disttrain.component import UserError
from disttrain.config import ConfigError, LoadedConfig
from disttrain.data import Corpus
from disttrain.data.partitions import Part
from disttrain.federated.engines.ray_cluster import missing
from disttrain.federated.section import FederatedConfig

UNUSED = {
    "optimizer": "clients take the steps that federated.lr, momentum and weight_decay describe",
    "strategy": "federated.algorithm takes its place",
    "training.steps": "set federated.rounds",
    "training.batch_size": "set federated.batch_size",
    "training.clip_norm": "set federated.clip_norm",
    "training.gradient_accumulation": "a client's batch is computed in one pass",
    "training.precision": "clients compute in fp32",
    "training.validation_batches": "all validation data are used",
    "recording.trace": "clients' time is virtual",
    "recording.trace_from": "clients' time is virtual",
    "recording.trace_steps": "clients' time is virtual",
}
"""Settings of other runs, and what there is instead."""


def check(loaded: LoadedConfig) -> FederatedConfig:
    """The section itself.

    Raises:
        ConfigError: if there is none, or settings would be ignored.
    """
    config = loaded.config
    if config.federated is None:
        raise ConfigError([f"{loaded.path}: no section federated, which `disttrain federated` is about: write `federated: {{}}` "
                           "to take every default"])  # fmt: skip
    config.check_data()
    problems = [f"{key}: would be ignored in a federated run: {why}" for key, why in UNUSED.items() if loaded.sets(key)]
    if config.launch.device == "cuda" or config.launch.backend == "nccl":
        problems.append("launch: clients are simulated on the CPU: remove device=cuda and backend=nccl")
    if config.launch.emulated_step_time is not None:
        problems.append("launch.emulated_step_time: clients compute; it is `disttrain emulate` that can pretend to")
    stop = config.training.stop_after
    if stop is not None and stop > config.federated.rounds:
        problems.append(f"training.stop_after={stop} must be at most federated.rounds={config.federated.rounds}")
    if config.federated.engine == "ray":
        if fault := missing():
            problems.append(fault)
    elif loaded.sets("federated.ray"):
        problems.append(f"federated.ray: would be ignored with federated.engine={config.federated.engine}: set ray")
    if loaded.sets("federated.large_batch") and not config.federated.algorithm.build().large_batches:
        name = config.federated.algorithm.name
        problems.append(f"federated.large_batch: would be ignored: federated.algorithm.name={name} has no large batches")
    if config.partition.name == "none":
        problems.append("partition.name=none: clients must own their samples: take iid, shards, dirichlet or another partition")
    if problems:
        raise ConfigError(problems)
    return config.federated


def divide(loaded: LoadedConfig, federated: FederatedConfig, corpus: Corpus) -> list[Part]:
    """Each client's samples.

    Raises:
        UserError: if some client has none and there is no policy for that, or too few have any.
    """
    partition = loaded.config.partition
    parts = partition.divide(corpus.train, federated.clients, loaded.config.training.seed)
    assert parts is not None, "checked"
    empty = [client for client, part in enumerate(parts) if len(part) == 0]
    if empty and federated.on_empty == "error":
        which = f"client {empty[0]}" if len(empty) == 1 else f"{len(empty)} clients, such as {empty[0]},"
        raise UserError(
            f"partition.name={partition.name} leaves {which} without a sample: set federated.on_empty=skip, "
            "partition.on_small=repair, or take fewer clients"
        )
    if federated.cohort_size > len(parts) - len(empty):
        raise UserError(
            f"federated.cohort: {federated.cohort_size} clients are to be asked in a round, and only {len(parts) - len(empty)} "
            "have samples: take a smaller cohort, or partition.on_small=repair"
        )
    return parts
