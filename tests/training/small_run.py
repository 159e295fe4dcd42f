"""A run of seconds, in the kit's workers: the real loop over a tiny PLM and a little real text."""

from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

from disttrain.config import load_config
from disttrain.launch.rank_info import RankInfo
from disttrain.launch.shutdown import StopRequest
from disttrain.parameters import sha256_of
from disttrain.run import start_session
from disttrain.training.loop import fit

CONFIG = """
model: {name: plm, width: 32, layers: 2, heads: 2}
data: {name: python_source, sequence_length: 32, max_bytes: 400kB, validation_ratio: 0.2}
optimizer: {name: sgd, lr: 0.1}
strategy: {name: ddp}
training: {steps: 20, batch_size: 8, validate_every: 10, validation_batches: 2}
checkpoint: {every: 5, keep: 3}
recording: {log_every: 5}
"""


def write_config(folder: Path) -> Path:
    path = folder / "small.yaml"
    path.write_text(CONFIG)
    return path


def train(config, directory, *overrides, before_fit=None, picture=False):
    """Train in this worker, under torchrun's variables; returns this worker's own weights' digest and the summary.

    Drawing the loss takes longer than the run, so only who wants the picture gets it.
    """
    loaded = load_config(config, [f"run.directory={directory}", *overrides])
    session = start_session(loaded, RankInfo.from_environment(), StopRequest())
    if before_fit is not None:
        before_fit(session)
    with nullcontext() if picture else patch("disttrain.recording.recorder.draw_pictures"):
        summary = fit(session)
    own = {name: p.detach() for name, p in session.model.module.named_parameters()}
    return sha256_of(own), summary


NORMED = """
import torch
from torch import nn

class Normed(nn.Module):
    def __init__(self, vocabulary_size):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, 8)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, vocabulary_size)
    def forward(self, tokens):
        return self.head(self.norm(self.embedding(tokens).transpose(1, 2)).transpose(1, 2))
"""


def norm_statistics(config, directory, *overrides):
    kept = []
    train(config, directory, *overrides, before_fit=kept.append)
    return kept[0].model.module.norm.running_mean.clone()
