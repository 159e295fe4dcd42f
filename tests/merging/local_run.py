"""What workers of ``disttrain train`` leave behind, made in this process by training one after the other."""

from pathlib import Path

import torch

from disttrain.config import dump, load_config
from disttrain.data import make_order
from disttrain.parameters import FlatParameters
from disttrain.recording.checkpoint import CheckpointStore
from disttrain.recording.folder import RunFolder, write_atomically
from disttrain.recording.weights import export_weights
from disttrain.strategies.attach import StrategyOptimizer
from disttrain.training.seeds import seed_model
from disttrain.training.state import TrainingState
from disttrain.worlds import StackedWorld

CONFIG = """
model: {name: mlp, hidden: [16]}
data: {name: digits}
partition: {name: shards}
objective: {name: classification}
optimizer: {name: sgd, lr: 0.1, momentum: 0.9}
strategy: {name: local}
training: {steps: 20, batch_size: 32, validation_batches: 4}
launch: {threads: 1}
"""


def train_apart(directory: Path, workers: int, *overrides: str) -> list[dict[str, torch.Tensor]]:
    """Train each worker on its own part of the data, and save as a run does; returns every worker's parameters and buffers."""
    source = directory.with_suffix(".yaml")
    source.write_text(CONFIG)
    config = load_config(source, [f"run.directory={directory}", *overrides]).config
    folder, training = RunFolder(directory), config.training
    folder.claim(resume=True)
    write_atomically(folder.config, dump(config))
    corpus, objective, states = config.data.build(training.seed), config.objective.build(), {}
    order = make_order(config.partition, corpus.train, workers, training.seed)
    for worker in reversed(range(workers)):  # the first leads: the others' parts must be there when it saves its own
        seed_model(training.seed)
        module, strategy = config.model.build(corpus.task), config.strategy.build()
        flat = FlatParameters(module)
        strategy.begin(flat.x, flat.layout, StackedWorld(1))
        optimizer = StrategyOptimizer(config.optimizer.build(module), strategy)
        for step in range(training.steps):
            indices = order.batch(step, training.batch_size, torch.tensor([worker]))[0]
            objective(module, *corpus.train.batch(indices)).backward()
            optimizer.step()
            optimizer.zero_grad()
        facts = {"workers": workers, "config": config.model_dump(mode="json")}
        snapshot = TrainingState(module, optimizer, strategy, worker).capture(facts, {})
        store = CheckpointStore(folder.checkpoints, worker, list(range(workers)), "test")
        store.save(training.steps, snapshot, lambda waited: False)
        states[worker] = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    export_weights(module, folder.weights)
    return [states[worker] for worker in range(workers)]
