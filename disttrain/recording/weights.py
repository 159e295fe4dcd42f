"""``model.safetensors``: a run's result, to be loaded anywhere."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
from torch import Tensor, nn


def export_weights(module: nn.Module, path: Path) -> None:
    """Write a module's ``state_dict`` as safetensors, tied weights once; ``safetensors.torch.load_model`` reads it back."""
    tensors: dict[str, Tensor] = {}
    seen = set()
    for name, tensor in module.state_dict().items():
        place = (tensor.data_ptr(), tensor.shape)
        if place not in seen or not tensor.numel():
            tensors[name] = tensor.detach().cpu().clone()
        seen.add(place)
    beside = path.with_suffix(".partial")
    beside.write_bytes(safetensors.torch.save(tensors, metadata={"format": "pt"}))
    beside.replace(path)
