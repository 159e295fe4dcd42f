"""Muon for the weight matrices, AdamW for everything else, as one optimizer.

Muon (Jordan, https://kellerjordan.github.io/posts/muon/) replaces a matrix's momentum M = UΣVᵀ by about UVᵀ, found by
Newton–Schulz iterations in bfloat16. It is made for the weights of hidden layers; embeddings, heads, norms, biases and
tensors of three axes or more go to AdamW. Both optimizers are torch's own.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from disttrain.component import UserError
from disttrain.optim.adamw import Beta, fused_by_default
from disttrain.optim.base import OptimizerConfig, optimizers
from disttrain.optim.combined import CombinedOptimizer
from disttrain.optim.groups import Decay, ParameterGroup, decayed_groups


@optimizers.register
class MuonConfig(OptimizerConfig):
    """torch.optim.Muon for matrices; torch.optim.AdamW, whose settings start with ``adamw_``, for the rest."""

    name: Literal["muon"] = "muon"
    lr: float = Field(4e-3, gt=0)
    """The peak learning rate of the matrices, which the schedule multiplies."""
    momentum: float = Field(0.95, ge=0, lt=1)
    """Memory of the running mean of gradients."""
    nesterov: bool = True
    """Orthogonalise a mix of gradient and momentum instead of the momentum."""
    ns_steps: int = Field(5, ge=1, lt=100)
    """Newton–Schulz iterations."""
    adjust: Literal["original", "match_rms_adamw"] = "match_rms_adamw"
    """What multiplies lr for a matrix [m, n]: √max(1, m/n), or 0.2·√max(m, n), with which it moves about as far as with
    AdamW at that lr (Moonlight, arXiv 2502.16982)."""
    weight_decay: float = Field(0.1, ge=0)
    """Share of a matrix removed per step, times lr."""
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

    def build(self, module: nn.Module) -> CombinedOptimizer:
        """Muon's part first, then AdamW's, which is missing if the module has nothing but matrices.

        Raises:
            UserError: if the module has no matrix, or torch's Muon would corrupt its momentum.
        """
        groups = self.groups(module)
        matrices = [group for group in groups if group.role == "matrix"]
        rest = [group for group in groups if group.role != "matrix"]
        if not matrices:
            raise UserError(f"{type(module).__name__} has no weight matrix for Muon; use optimizer.name=adamw")
        self._refuse_corruption(matrices)
        parts: list[Optimizer] = [self._muon(matrices)]
        return CombinedOptimizer([*parts, self._adamw(rest)] if rest else parts)

    def _muon(self, groups: list[ParameterGroup]) -> Muon:
        return Muon(
            [group.for_torch() for group in groups],
            lr=self.lr,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            nesterov=self.nesterov,
            ns_steps=self.ns_steps,
            adjust_lr_fn=self.adjust,
        )

    def _adamw(self, groups: list[ParameterGroup]) -> AdamW:
        return AdamW(
            decayed_groups(groups, self.adamw_weight_decay, self.adamw_decay),
            lr=self.adamw_lr,
            betas=self.adamw_betas,
            eps=self.adamw_eps,
            fused=fused_by_default(parameter for group in groups for parameter in group.parameters),
        )

    def _refuse_corruption(self, matrices: list[ParameterGroup]) -> None:
        """torch 2.13 normalises ``momentum.bfloat16()`` in place: the momentum itself, if that is its dtype already."""
        if not self.nesterov and any(p.dtype == torch.bfloat16 for group in matrices for p in group.parameters):
            raise UserError(
                "nesterov=false with bfloat16 parameters: torch's Muon would overwrite its momentum (PyTorch #194664). "
                "Set optimizer.nesterov=true, or keep the parameters in float32 and compute in bfloat16"
            )
