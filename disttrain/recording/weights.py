"""``model.safetensors``: a run's result, to be loaded anywhere."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from disttrain.component import UserError
from disttrain.recording.folder import RunFolder


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


def read_weights(path: Path) -> dict[str, Tensor]:
    """By name, of a run's folder or of a safetensors file.

    Raises:
        UserError: if there are none, or the file is damaged.
    """
    file = RunFolder(path).weights if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{path} has no {file.name} (a run writes it when it ends)" if path.is_dir() else f"there is no {file}")
    try:
        return safetensors.torch.load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is unreadable: {error}") from None


def load_weights(module: nn.Module, path: Path) -> None:
    """Put what :func:`export_weights` wrote into a module of the same kind, tied weights too.

    Raises:
        UserError: as :func:`read_weights`; or if names or shapes are not those of the module.
    """
    found, own = read_weights(path), module.state_dict()
    place = {name: (tensor.data_ptr(), tensor.shape) if tensor.numel() else name for name, tensor in own.items()}
    written = {place[name] for name in found.keys() & own.keys()}  # of tied weights one is enough
    missing = [name for name in own if place[name] not in written]
    for names, what in ((missing, "it lacks"), (list(found.keys() - own.keys()), "this model has no")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"they are of another model: {what} {min(names)}{more}")
    for name, tensor in found.items():
        if tensor.shape != own[name].shape:
            raise UserError(f"they are of another model: {name} is {list(tensor.shape)}, and {list(own[name].shape)} here")
    module.load_state_dict(found, strict=False)
