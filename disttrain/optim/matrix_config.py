"""What the configs of Muon, SOAP and COSMOS share: which parameters are theirs, and AdamW's settings for the rest."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn
from torch.optim import Optimizer

from disttrain.component import UserError
from disttrain.optim.adamw import Beta, fused_by_default
from disttrain.optim.base import OptimizerConfig
from disttrain.optim.groups import Decay, ParameterGroup, decayed_groups
from disttrain.optim.matrix_optimizer import ADAMW, MatrixOptimizer
from disttrain.optim.sharding import WireDtype
from disttrain.worlds.world import World

Parts = Annotated[int, Field(ge=1)]
NSDtype = Literal["bfloat16", "float32"]
NS_DTYPES: dict[NSDtype, torch.dtype] = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class MatrixOptimizerConfig(OptimizerConfig):
    """Base of the configs; a subclass names its optimizer and lists the settings that are the optimizer's own."""

    optimizer: ClassVar[type[MatrixOptimizer]]

    weight_decay: float = Field(0.1, ge=0)
    """Share of a matrix removed per step, times lr."""
    conv: bool = False
    """Treat a convolution as the matrix [out, in·height·width] too; else AdamW steps it."""
    experts: bool = False
    """Treat the last two axes of a parameter of three or more as matrices, such as stacked experts; else AdamW steps it."""
    split: dict[str, Parts | tuple[Parts, ...]] = Field(default_factory=dict)
    """Fused matrices that are several: a name or pattern, such as "*.qkv.weight", and in how many equal parts, or parts of
    which sizes, its rows divide."""
    sharding: WireDtype | None = None
    """Deal the matrices to the workers, each stepping its own, and gather the updates in this dtype; null: all step all."""
    compile: bool = False
    """Compile the mathematics by torch.compile (needs a C++ compiler on a CPU)."""
    adamw_lr: float = Field(2e-3, gt=0)
    """The peak learning rate of everything but matrices, which the schedule multiplies too."""
    adamw_betas: tuple[Beta, Beta] = (0.9, 0.95)
    """Memory of AdamW's first and second moment."""
    adamw_eps: float = Field(1e-8, gt=0)
    """Added to the root of AdamW's second moment."""
    adamw_weight_decay: float = Field(0.1, ge=0)
    """Share of a weight removed per step, times adamw_lr."""
    adamw_decay: Decay = "matrices"
    """What else decays: matrices (here heads, convolutions, stacked experts), weights (embeddings too) or all."""

    def settings(self) -> dict[str, Any]:
        """The optimizer's own settings, as its constructor takes them."""
        raise NotImplementedError(f"{type(self).__name__} must define settings()")

    def build(self, module: nn.Module) -> MatrixOptimizer:
        """One optimizer for all: matrices first.

        Raises:
            UserError: if the module has no matrix, or a setting does not fit it.
        """
        groups = self.groups(module)
        roles = {"matrix": "refuse"} | ({"conv": "flatten"} if self.conv else {}) | ({"other": "batch"} if self.experts else {})
        matrices = [entry for group in groups if group.role in roles for entry in self._split(group, roles[group.role])]
        if not matrices:
            raise UserError(f"{type(module).__name__} has no weight matrix for {self.name}; use optimizer.name=adamw")
        names = [name for entry in matrices for name, _ in entry["params"]]
        for pattern in self.split:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise UserError(f"optimizer.split: no matrix of {type(module).__name__} is called {pattern!r}")
        rest = [group for group in groups if group.role not in roles]
        settings = {"lr": self.lr, "weight_decay": self.weight_decay, "compile": self.compile} | self.settings()
        try:
            return self.optimizer([*matrices, *self._adamw(rest)], **settings)
        except ValueError as error:
            raise UserError(f"optimizer.name={self.name}: {error}") from error

    def share(self, optimizer: Optimizer, world: World, replicated: bool) -> None:
        """Deal the work out, if that is wanted.

        Raises:
            UserError: if the workers' gradients are not the same.
        """
        if self.sharding is None:
            return
        if not replicated:
            raise UserError(
                f"optimizer.sharding={self.sharding} deals out what all workers would do alike, and under this strategy each has "
                "a model of its own: set optimizer.sharding=null"
            )
        assert isinstance(optimizer, MatrixOptimizer)
        optimizer.shard(world, self.sharding)

    def _split(self, group: ParameterGroup, more_axes: str) -> list[dict[str, Any]]:
        """A group's parameters, those that are split in groups of their own."""
        whole = group.for_torch(more_axes=more_axes)
        entries, names = [], set()
        for pattern, parts in self.split.items():
            pairs = [(name, p) for name, p in whole["params"] if fnmatchcase(name, pattern) and name not in names]
            names |= {name for name, _ in pairs}
            if pairs:
                entries.append({**whole, "params": pairs, "split": parts})
        left = [(name, p) for name, p in whole["params"] if name not in names]
        return ([{**whole, "params": left}] if left else []) + entries

    def _adamw(self, groups: list[ParameterGroup]) -> list[dict[str, Any]]:
        fused = fused_by_default(parameter for group in groups for parameter in group.parameters)
        own = {"algorithm": ADAMW, "lr": self.adamw_lr, "betas": self.adamw_betas, "eps": self.adamw_eps, "fused": fused}
        return [own | group for group in decayed_groups(groups, self.adamw_weight_decay, self.adamw_decay)]
