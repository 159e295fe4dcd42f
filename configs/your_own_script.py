"""Someone's own module and loop, trained by disttrain: what a script needs is marked by the comments.

python configs/your_own_script.py                                           one process
torchrun --nproc-per-node 2 configs/your_own_script.py strategy.name=local  two, and another strategy
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

import disttrain

CONFIG = Path(__file__).with_suffix(".yaml")


def moons(samples: int, seed: int) -> TensorDataset:
    """Two interleaved half circles with noise."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(samples) % 2
    angle = torch.rand(samples, generator=generator) * torch.pi + label * torch.pi
    points = torch.stack([angle.cos() + label, angle.sin() + 0.5 * label], dim=1)
    return TensorDataset(points + 0.1 * torch.randn(samples, 2, generator=generator), label)


def main() -> None:
    """Train a small classifier."""
    run = disttrain.Run.from_config(CONFIG, sys.argv[1:])  # 1: the config, and the other workers
    model, optimizer = run.prepare(nn.Sequential(nn.Linear(2, 64), nn.GELU(), nn.Linear(64, 2)))  # 2: the strategy around both
    step = run.resume()
    validation = moons(512, seed=1)
    for inputs, labels in run.shard(moons(4096, seed=0)):
        loss = F.cross_entropy(model(inputs.to(run.device)), labels.to(run.device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        extra = {}
        if step % 100 == 0:
            with run.evaluating() as module:
                points, wanted = (tensor.to(run.device) for tensor in validation.tensors)
                extra["accuracy"] = (module(points).argmax(1) == wanted).float().mean().item()
        run.record(loss=loss.detach(), **extra)  # 3: the step is over
        if run.should_stop:
            break
    run.finish()
    sys.exit(run.exit_code)  # 143 after a signal, which tells a batch system to start the script again


if __name__ == "__main__":
    main()
