"""PLM, the Peripheral Language Model (arXiv 2503.12167): a decoder made for small devices.

Two things tell it from a Llama. *Multi-head latent attention* (DeepSeek-V2, arXiv 2405.04434, section 2.1) derives keys
and values from one narrow vector per token, so that a cache holds kv_rank + rope_head values a token and layer instead
of 2 · width. The query keeps its full rank. For a token x_t of width d::

    q_t         = W_Q x_t                    per head [q_nope; q_rope],  q_rope turned by RoPE
    [c_t; k_r]  = W_DKV x_t                  c_t of width kv_rank; k_r turned by RoPE, one for all heads
    [k_nope; v] = W_UKV RMSNorm(c_t)         per head
    o_t         = W_O concat_heads softmax_j≤t((q_nope·k_nope_j + q_rope·k_r_j) / √(nope_head + rope_head)) v_j

And the feed-forward layer is W_down max(0, W_up x)², without gate, which leaves most of its activations exactly zero.
Pre-norm with RMSNorm, tied embeddings, no biases, no dropout, weights drawn from N(0, 0.02²).

Deviation: none in the mathematics; rows of W_Q, W_DKV and W_UKV are in DeepSeek's order, so published weights fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from disttrain.models.attention import causal_attention
from disttrain.models.base import ModelConfig, Size, at_least, models, num_trainable, token_task
from disttrain.models.rotary import rotary_table, rotate
from disttrain.task import Task

NORM_EPSILON = 1e-6
INITIAL_DEVIATION = 0.02


class Preset(NamedTuple):
    """What a preset fixes; the other sizes follow from it by PLM's ratios."""

    width: int
    layers: int
    heads: int
    vocabulary_size: int | None = None


PRESETS = {"tiny": Preset(256, 8, 4), "mini": Preset(768, 12, 12), "1.8b": Preset(2048, 32, 16, 151_936)}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Every size of a PLM but its vocabulary's; the fields are described in ``PlmConfig``."""

    width: int
    layers: int
    heads: int
    feedforward: int
    kv_rank: int
    nope_head: int
    rope_head: int
    value_head: int
    rope_base: float

    @property
    def key_head(self) -> int:
        """Entries of a query or key per head."""
        return self.nope_head + self.rope_head


@models.register
class PlmConfig(ModelConfig):
    """PLM: multi-head latent attention and a squared-ReLU feed-forward layer.

    A size left out follows from width and heads by the ratios that all presets keep.
    """

    name: Literal["plm"] = "plm"
    preset: Literal["tiny", "mini", "1.8b"] = "tiny"
    """Where width, layers and heads come from when left out. Without the embedding, tiny has 5.97 M parameters, mini
    79.9 M, and 1.8b, the published model, 1.51 B."""
    vocabulary_size: Size | None = None
    """Rows of the embedding. Left out: as many tokens as the data has; 151,936 in preset 1.8b."""
    width: Size | None = None
    """Entries of the residual stream, d."""
    layers: Size | None = None
    """Blocks of attention and feed-forward layer."""
    heads: Size | None = None
    """Attention heads, h."""
    feedforward: Size | None = None
    """Hidden entries of the feed-forward layer. Left out: 4 d."""
    kv_rank: Size | None = None
    """Entries of the vector from which a token's keys and values derive. Left out: d / 4."""
    nope_head: Size | None = None
    """Entries per head of query and key that carry no position. Left out: d / h."""
    rope_head: Size | None = None
    """Entries per head of query and key that are turned by position; even. Left out: nope_head / 2."""
    value_head: Size | None = None
    """Entries per head of a value. Left out: d / h."""
    rope_base: float = Field(100_000.0, gt=1)
    """Base of the rotary frequencies: pair i turns by base^(−2i / rope_head) radians a token."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        self.sizes()
        return self

    def sizes(self) -> Sizes:
        """Every size, given or derived.

        Raises:
            ValueError: if a size that was left out would not be whole, or rope_head is odd.
        """
        preset = PRESETS[self.preset]
        width, heads = self.width or preset.width, self.heads or preset.heads
        nope_head = self.nope_head or _share("nope_head", "width", width, heads, "heads")
        rope_head = self.rope_head or _share("rope_head", "nope_head", nope_head, 2)
        if rope_head % 2:
            raise ValueError(f"rope_head={rope_head} must be even, since rotary positions turn pairs; give an even rope_head")
        return Sizes(
            width=width,
            layers=self.layers or preset.layers,
            heads=heads,
            feedforward=self.feedforward or 4 * width,
            kv_rank=self.kv_rank or _share("kv_rank", "width", width, 4),
            nope_head=nope_head,
            rope_head=rope_head,
            value_head=self.value_head or _share("value_head", "width", width, heads, "heads"),
            rope_base=self.rope_base,
        )

    def build(self, task: Task) -> Plm:
        """The module; rotary positions have no end, so any sequence length fits."""
        own = self.vocabulary_size or PRESETS[self.preset].vocabulary_size
        return Plm(self.sizes(), at_least("vocabulary_size", own, token_task(self.name, task).vocabulary_size))

    def flops_per_token(self, module: nn.Module, task: Task) -> float:
        """6 for every parameter (the embedding, as output layer) and the causal half of attention's scores."""
        sizes = self.sizes()
        per_pair = 6 * sizes.layers * sizes.heads * (sizes.key_head + sizes.value_head)
        return 6.0 * num_trainable(module) + per_pair * token_task(self.name, task).sequence_length / 2


def _share(size: str, of: str, whole: int, parts: int, parts_name: str = "") -> int:
    """``whole / parts``, the value of a ``size`` that was left out."""
    if whole % parts:
        divisor = f"{parts_name}={parts}" if parts_name else str(parts)
        raise ValueError(f"{of}={whole} is not a multiple of {divisor}, so {size} has no default; change {of} or give {size}")
    return whole // parts


class LatentAttention(nn.Module):
    """Multi-head latent attention, ``[batch, time, width]`` to the same; the formulas are in the module's docstring."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.query = nn.Linear(sizes.width, sizes.heads * sizes.key_head, bias=False)
        self.kv_down = nn.Linear(sizes.width, sizes.kv_rank + sizes.rope_head, bias=False)
        self.kv_norm = nn.RMSNorm(sizes.kv_rank, eps=NORM_EPSILON)
        self.kv_up = nn.Linear(sizes.kv_rank, sizes.heads * (sizes.nope_head + sizes.value_head), bias=False)
        self.output = nn.Linear(sizes.heads * sizes.value_head, sizes.width, bias=False)

    def forward(self, x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        """Attend; ``table`` holds the cosines and sines of ``rotary_table``."""
        sizes = self.sizes
        query_nope, query_rope = self._heads(self.query(x), sizes.nope_head, sizes.rope_head)
        latent, key_rope = torch.split(self.kv_down(x), [sizes.kv_rank, sizes.rope_head], dim=-1)
        # Autocast makes the latent bf16 and leaves the norm's weight fp32, for which there is no fused norm.
        latent = self.kv_norm(latent.to(self.kv_norm.weight.dtype))
        key_nope, value = self._heads(self.kv_up(latent), sizes.nope_head, sizes.value_head)
        shared = rotate(key_rope.unsqueeze(1), table).expand(-1, sizes.heads, -1, -1)
        query = torch.cat([query_nope, rotate(query_rope, table)], dim=-1)
        mixed = causal_attention(query, torch.cat([key_nope, shared], dim=-1), value)
        attended: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return attended

    def _heads(self, x: Tensor, *widths: int) -> tuple[Tensor, ...]:
        """``[batch, time, heads · sum(widths)]`` as one ``[batch, heads, time, width]`` for each width."""
        by_head = x.view(*x.shape[:-1], self.sizes.heads, -1).transpose(1, 2)
        return torch.split(by_head, list(widths), dim=-1)


class SquaredReLU(nn.Module):
    """The feed-forward layer, W_down max(0, W_up x)²; Primer (arXiv 2109.08668) found the square."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.up = nn.Linear(sizes.width, sizes.feedforward, bias=False)
        self.down = nn.Linear(sizes.feedforward, sizes.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., width]`` to the same."""
        y: Tensor = self.down(F.relu(self.up(x)).square())
        return y


class Block(nn.Module):
    """Attention and feed-forward layer, each behind a norm and added to the residual stream."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(sizes.width, eps=NORM_EPSILON)
        self.attention = LatentAttention(sizes)
        self.feedforward_norm = nn.RMSNorm(sizes.width, eps=NORM_EPSILON)
        self.feedforward = SquaredReLU(sizes)

    def forward(self, x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
        """``[batch, time, width]`` to the same."""
        x = x + self.attention(self.attention_norm(x), table)
        x = x + self.feedforward(self.feedforward_norm(x))
        return x


class Plm(nn.Module):
    """The whole model: tokens, int64 ``[batch, time]``, to logits ``[batch, time, vocabulary]``.

    Every weight is drawn in the constructor; on the meta device nothing is, and ``initialize`` does it after
    ``to_empty``.
    """

    def __init__(self, sizes: Sizes, vocabulary_size: int) -> None:
        super().__init__()
        self.sizes = sizes
        self.embedding = nn.Embedding(vocabulary_size, sizes.width)
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.layers))
        self.norm = nn.RMSNorm(sizes.width, eps=NORM_EPSILON)
        self.initialize()

    @torch.no_grad()
    def initialize(self) -> None:
        """Draw all matrices anew from N(0, 0.02²) and set the norms to one."""
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=INITIAL_DEVIATION)
            else:
                nn.init.ones_(parameter)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the token that follows each one; the embedding, transposed, is the output layer."""
        table = rotary_table(tokens.shape[1], self.sizes.rope_head, self.sizes.rope_base, tokens.device)
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, table)
        return F.linear(self.norm(x), self.embedding.weight)
