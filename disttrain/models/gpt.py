"""GPT-2, a decoder with learned positions (Language Models are Unsupervised Multitask Learners, 2019).

Pre-norm with LayerNorm; GELU in its tanh form; tied embeddings. Weights are drawn from N(0, 0.02²), except that those
which write to the residual stream are drawn from N(0, 0.02² / 2 layers), because that many of them add up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from disttrain.models.attention import causal_attention
from disttrain.models.base import ModelConfig, Size, at_least, models, num_trainable, token_task
from disttrain.task import Task

INITIAL_DEVIATION = 0.02


class Preset(NamedTuple):
    """What a preset fixes; None is taken from the data."""

    width: int
    layers: int
    heads: int
    vocabulary_size: int | None = None
    context: int | None = None


PRESETS = {"tiny": Preset(128, 4, 4), "gpt2": Preset(768, 12, 12, 50_257, 1024)}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the module is built from; the fields are described in ``GptConfig``."""

    width: int
    layers: int
    heads: int
    vocabulary_size: int
    context: int
    bias: bool
    dropout: float


@models.register
class GptConfig(ModelConfig):
    """GPT-2: attention and a GELU feed-forward layer of four times the width."""

    name: Literal["gpt"] = "gpt"
    preset: Literal["tiny", "gpt2"] = "tiny"
    """Where the sizes come from when left out: 0.79 M parameters without embeddings, or GPT-2's 124 M."""
    vocabulary_size: Size | None = None
    """Rows of the embedding. Left out: as many tokens as the data has; 50,257 in preset gpt2."""
    context: Size | None = None
    """Learned positions, the longest sequence. Left out: the data's sequence_length; 1,024 in preset gpt2."""
    width: Size | None = None
    """Entries of the residual stream; a multiple of heads."""
    layers: Size | None = None
    """Blocks of attention and feed-forward layer."""
    heads: Size | None = None
    """Attention heads."""
    bias: bool = True
    """Whether linear layers and norms have biases."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of embeddings, attention weights and layer outputs that is zeroed in training. GPT-2 took 0.1."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        width, heads = self._shape[0], self._shape[2]
        if width % heads:
            raise ValueError(f"width={width} is not a multiple of heads={heads}")
        return self

    @property
    def _shape(self) -> tuple[int, int, int]:
        """Width, layers and heads, given or the preset's."""
        preset = PRESETS[self.preset]
        return self.width or preset.width, self.layers or preset.layers, self.heads or preset.heads

    def build(self, task: Task) -> Gpt:
        """The module, with at least ``task.sequence_length`` positions."""
        data = token_task(self.name, task)
        preset = PRESETS[self.preset]
        width, layers, heads = self._shape
        vocabulary = at_least("vocabulary_size", self.vocabulary_size or preset.vocabulary_size, data.vocabulary_size)
        context = at_least("context", self.context or preset.context, data.sequence_length)
        return Gpt(
            Sizes(
                width=width,
                layers=layers,
                heads=heads,
                vocabulary_size=vocabulary,
                context=context,
                bias=self.bias,
                dropout=self.dropout,
            )
        )

    def flops_per_token(self, module: nn.Module, task: Task) -> float:
        """6 for every parameter but the positions, which are looked up, and the causal half of attention's scores."""
        sequence_length = token_task(self.name, task).sequence_length
        width, layers, _ = self._shape
        positions = (self.context or PRESETS[self.preset].context or sequence_length) * width
        return 6.0 * (num_trainable(module) - positions) + 12 * layers * width * sequence_length / 2


class Attention(nn.Module):
    """Multi-head attention, ``[batch, time, width]`` to the same."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.qkv = nn.Linear(sizes.width, 3 * sizes.width, bias=sizes.bias)
        self.output = nn.Linear(sizes.width, sizes.width, bias=sizes.bias)
        self.dropout = sizes.dropout

    def forward(self, x: Tensor) -> Tensor:
        """Attend to all positions up to one's own."""
        query, key, value = self.qkv(x).view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = causal_attention(query, key, value, dropout=self.dropout if self.training else 0.0)
        attended: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return attended


class FeedForward(nn.Module):
    """W_down gelu(W_up x), ``[..., width]`` to the same."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.up = nn.Linear(sizes.width, 4 * sizes.width, bias=sizes.bias)
        self.output = nn.Linear(4 * sizes.width, sizes.width, bias=sizes.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Transform every position by itself."""
        y: Tensor = self.output(F.gelu(self.up(x), approximate="tanh"))
        return y


class Block(nn.Module):
    """Attention and feed-forward layer, each behind a norm and added to the residual stream."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(sizes.width, bias=sizes.bias)
        self.attention = Attention(sizes)
        self.feedforward_norm = nn.LayerNorm(sizes.width, bias=sizes.bias)
        self.feedforward = FeedForward(sizes)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, time, width]`` to the same."""
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        x = x + self.dropout(self.feedforward(self.feedforward_norm(x)))
        return x


class Gpt(nn.Module):
    """The whole model: tokens, int64 ``[batch, time]``, to logits ``[batch, time, vocabulary]``."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.embedding = nn.Embedding(sizes.vocabulary_size, sizes.width)
        self.positions = nn.Embedding(sizes.context, sizes.width)
        self.dropout = nn.Dropout(sizes.dropout)
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.layers))
        self.norm = nn.LayerNorm(sizes.width, bias=sizes.bias)
        self.initialize()

    @torch.no_grad()
    def initialize(self) -> None:
        """Draw all matrices anew, set the norms to one and the biases to zero."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                shrink = math.sqrt(2 * len(self.blocks)) if name.endswith("output.weight") else 1.0
                nn.init.normal_(parameter, std=INITIAL_DEVIATION / shrink)
            else:
                nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the token that follows each one; the embedding, transposed, is the output layer."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.dropout(self.embedding(tokens) + self.positions(places))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.embedding.weight)
