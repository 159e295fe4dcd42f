"""SCALLION and SCAFCOM: controlled averaging with compressed uplinks, and SCAFFOLD as their special case.

"Stochastic Controlled Averaging for Federated Learning with Communication Compression" (arXiv 2308.08165), algorithms 1 and 2::

    down: x, c
    client:    y ← x;  K times  y ← y − η_l (∇f_i(y; ξ) − c_i + c);   u = (x − y) / (η_l K), the mean direction
    SCALLION:  δ_i = α (u − c)                                        C unbiased
    SCAFCOM:   v_i ← (1 − β) v_i + β (u + c_i − c);  δ_i = v_i − c_i  C a contraction
    up: d_i = C(δ_i);   c_i ← c_i + d_i
    server:    x ← x − η_g η_l K (mean d_i + c);   c ← c + (1/N) Σ d_i        the old c in both

All begin at zero, so c is the mean of all c_i for ever, whoever takes part, whatever C drops: a client's c_i moves by what the
server has decoded, and only if it was accepted. Note 1/N in c, over all clients, and the mean over those that answered in x.

With α = 1 and no compressor this is SCAFFOLD (arXiv 1910.06378, algorithm 1, option II): c_i + δ_i = u + c_i − c is the mean of
the client's raw gradients, and mean δ_i + c = mean u. SCAFFOLD as published sends Δy and Δc, two vectors where this sends one.

u is summed up along the way rather than taken from x − y, which would round it and divide by η_l. It is for plain steps only:
with momentum or weight decay inside, u would not be a mean of gradients. α must shrink with the compressor's variance ω: the
proof asks for α ≤ N / (4 (1 + ω)), and rand-k of 20 % diverges at α = 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, SerializeAsAny, ValidationInfo, field_validator
from torch import Tensor

from disttrain.compression.base import Compressor, CompressorConfig, Variance, compressors
from disttrain.compression.quantize import IdentityConfig
from disttrain.federated.algorithm import Algorithm, AlgorithmConfig, Replies, Reply, Vectors, federated_algorithms, rows_of
from disttrain.federated.local_steps import sum_of_directions
from disttrain.federated.work import Plan, Work


@dataclass(frozen=True)
class _ControlledAveraging(Algorithm):
    """What both have in common.

    Args:
        compressor: C; None: sent as it is.
        server_lr: η_g.
    """

    compressor: Compressor | None = None
    server_lr: float = 1.0
    client_vectors: ClassVar[tuple[str, ...]] = ("control",)
    adds_up: ClassVar[bool] = True

    def init(self, x: Tensor) -> Vectors:
        """The model, and c = 0."""
        return {"x": x.clone(), "c": torch.zeros_like(x)}

    def broadcast(self, server: Vectors) -> Vectors:
        """The model and c."""
        return {"x": server["x"], "c": server["c"]}

    def client(self, message: Vectors, state: Vectors, work: Work) -> tuple[Reply, Vectors]:
        """Corrected local steps; then what of their mean direction is news to the server."""
        c, control = message["c"], state["control"]
        correction = c - control
        total = sum_of_directions(rows_of(message["x"], len(work)), work, lambda gradient, y: gradient + correction)
        delta, memory = self.news(total / work.plan.steps, c, state)
        sent = work.send(delta, self.compressor)
        return {"news": sent}, {"control": control + sent.values, **memory}

    def news(self, mean_direction: Tensor, c: Tensor, state: Vectors) -> tuple[Tensor, Vectors]:
        """δ_i ``[L, d]``, and the client's other new vectors."""
        raise NotImplementedError(f"{type(self).__name__} must define news()")

    def aggregate(self, server: Vectors, replies: Replies, plan: Plan) -> Vectors:
        """Along the mean direction of those that answered; c moves by their share of all clients."""
        x, c, news = server["x"], server["c"], replies["news"]
        step = self.server_lr * plan.lr * plan.steps
        return {"x": x - step * (news.mean + c), "c": c + news.vector / plan.num_clients}


@dataclass(frozen=True)
class SCALLION(_ControlledAveraging):
    """For unbiased compressors.

    Args:
        alpha: α, in [0, 1]; 1 without a compressor is SCAFFOLD.

    Raises:
        ValueError: for another α.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be from 0 to 1, got {self.alpha}")

    def news(self, mean_direction: Tensor, c: Tensor, state: Vectors) -> tuple[Tensor, Vectors]:
        """α (u − c)."""
        return self.alpha * (mean_direction - c), {}


@dataclass(frozen=True)
class SCAFCOM(_ControlledAveraging):
    """For contractions.

    Args:
        beta: β, in (0, 1]; 1 without a compressor is SCAFFOLD.

    Raises:
        ValueError: for another β.
    """

    beta: float = 0.2
    client_vectors: ClassVar[tuple[str, ...]] = ("control", "momentum")

    def __post_init__(self) -> None:
        if not 0 < self.beta <= 1:
            raise ValueError(f"beta must be greater than 0 and at most 1, got {self.beta}")

    def news(self, mean_direction: Tensor, c: Tensor, state: Vectors) -> tuple[Tensor, Vectors]:
        """v_i − c_i, and the new v_i: a moving average of the client's mean gradients."""
        control = state["control"]
        momentum = (1 - self.beta) * state["momentum"] + self.beta * (mean_direction + control - c)
        return momentum - control, {"momentum": momentum}


@federated_algorithms.register
class ScaffoldConfig(AlgorithmConfig):
    """Local steps corrected by control variates, uncompressed (arXiv 1910.06378, option II)."""

    name: Literal["scaffold"] = "scaffold"
    server_lr: float = Field(1.0, gt=0)
    """η_g."""

    def build(self) -> Algorithm:
        """SCALLION with α = 1 and nothing compressed."""
        return SCALLION(None, self.server_lr, 1.0)


class _CompressedConfig(ScaffoldConfig):
    compressor: SerializeAsAny[CompressorConfig] = IdentityConfig()
    """What becomes of the one vector that a client sends; each is compressed as a whole."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        compressors.choose_in(cls, "compressor")

    def build_compressor(self) -> Compressor | None:
        """The compressor itself; None for ``identity``."""
        if isinstance(self.compressor, IdentityConfig):
            return None
        compressor = self.compressor.build()
        if not isinstance(compressor, Compressor):
            raise ValueError(f"compressor.name={self.compressor.name} is an exchange among workers, not for a client's message")
        return compressor


@federated_algorithms.register
class ScallionConfig(_CompressedConfig):
    """SCAFFOLD that sends one vector, compressed without bias (arXiv 2308.08165, algorithm 1)."""

    name: Literal["scallion"] = "scallion"  # type: ignore[assignment]
    alpha: float = Field(0.1, gt=0, le=1)
    """α, how much of what is new is sent: the less, the larger the compressor's variance."""

    @field_validator("compressor")
    @classmethod
    def _unbiased(cls, value: CompressorConfig, info: ValidationInfo) -> CompressorConfig:
        bound = value.build().bound(2**20) if not isinstance(value, IdentityConfig) else Variance(0.0)
        if not isinstance(bound, Variance):
            raise ValueError(
                f"scallion is for unbiased compressors, and {value.name} is not (as it is set): take rand_k with unbiased=true, "
                "qsgd, or algorithm.name=scafcom"
            )
        return value

    def build(self) -> SCALLION:
        """The algorithm itself."""
        return SCALLION(self.build_compressor(), self.server_lr, self.alpha)


@federated_algorithms.register
class ScafcomConfig(_CompressedConfig):
    """SCAFFOLD that sends one vector, compressed by a contraction such as top-k (arXiv 2308.08165, algorithm 2)."""

    name: Literal["scafcom"] = "scafcom"  # type: ignore[assignment]
    beta: float = Field(0.2, gt=0, le=1)
    """β, the newest gradients' share of a client's moving average."""

    @field_validator("compressor")
    @classmethod
    def _contraction(cls, value: CompressorConfig, info: ValidationInfo) -> CompressorConfig:
        if isinstance(value.build().bound(2**20), Variance):
            raise ValueError(
                f"scafcom is for contractions, and {value.name} (as it is set) is unbiased instead, with a variance that its "
                "memory would add up: take top_k, block_top_k, sign, rand_k with unbiased=false, or algorithm.name=scallion"
            )
        return value

    def build(self) -> SCAFCOM:
        """The algorithm itself."""
        return SCAFCOM(self.build_compressor(), self.server_lr, self.beta)
