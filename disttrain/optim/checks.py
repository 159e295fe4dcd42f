"""Checks of an optimizer's settings, with the value and what is allowed in the message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def check_least(group: Mapping[str, Any], key: str, least: float) -> None:
    """Raise ValueError unless a setting is a number of at least ``least``."""
    if not group[key] >= least:
        raise ValueError(f"{key}={group[key]} must be at least {least:g}")


def check_count(group: Mapping[str, Any], key: str) -> None:
    """Raise ValueError unless a setting is a whole number of at least 1."""
    if not isinstance(group[key], int) or group[key] < 1:
        raise ValueError(f"{key}={group[key]!r} must be a whole number, at least 1")


def check_dtype(group: Mapping[str, Any], key: str) -> None:
    """Raise ValueError unless a setting is a floating-point dtype."""
    if not isinstance(group[key], torch.dtype) or not group[key].is_floating_point:
        raise ValueError(f"{key}={group[key]!r} must be a floating-point dtype such as torch.bfloat16")


def check_positive(group: Mapping[str, Any], key: str) -> None:
    """Raise ValueError unless a setting is more than 0."""
    if not group[key] > 0:
        raise ValueError(f"{key}={group[key]} must be greater than 0")


def check_betas(betas: tuple[float, ...]) -> None:
    """Raise ValueError unless all are in [0, 1)."""
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas={tuple(betas)} must each be at least 0 and less than 1")


def check_choice(group: Mapping[str, Any], key: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless a setting is one of ``choices``."""
    if group[key] not in choices:
        raise ValueError(f"{key}={group[key]!r} must be one of {', '.join(choices)}")
