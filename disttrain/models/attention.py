"""Causal softmax attention, ``softmax(Q Kᵀ / √d + mask) V``, where values may be narrower than keys.

Attention Is All You Need (arXiv 1706.03762), equation 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LONGEST_EXPLICIT = 512  # tokens; beyond, writing all scores to memory costs a CPU more than the fused kernel saves


def causal_attention(query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0) -> Tensor:
    """Mix for every position the values at and before it.

    Args:
        query: ``[batch, heads, time, key_width]``.
        key: ``[batch, heads, time, key_width]``.
        value: ``[batch, heads, time, value_width]``.
        dropout: the share of the attention weights that is zeroed; pass 0 outside training.

    Returns:
        ``[batch, heads, time, value_width]``.
    """
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
    if query.shape[-2] <= LONGEST_EXPLICIT:
        return _explicit(query, key, value, dropout)
    return _fused_on_cpu(query, key, value, dropout)


def _explicit(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    """Two matrix products and a softmax.

    For short sequences on a CPU. There, scaled_dot_product_attention falls back to fp32 arithmetic for bf16 whenever
    the widths differ, takes up to three times as long where they are padded to be equal (8 × 4 heads × 128 tokens), and
    has no batching rule for vmap, which would loop over workers. Nor is baddbmm one operation there: vmap scales and adds after
    the product, some processors inside it, and the last bits differ.
    """
    time, width = query.shape[-2:]
    mask = torch.full((time, time), -torch.inf, dtype=query.dtype, device=query.device).triu(1)
    scores = torch.bmm((query * width**-0.5).flatten(0, 1), key.flatten(0, 1).mT).add_(mask)
    weights = F.dropout(scores.softmax(-1), dropout)
    return torch.bmm(weights, value.flatten(0, 1)).view(*query.shape[:2], time, -1)


def _fused_on_cpu(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    """The fused kernel, whose memory is linear in time; on a CPU it runs only if values are as wide as keys.

    Wider values are rare, and fall back to torch's unfused arithmetic.
    """
    width = value.shape[-1]
    padded = F.pad(value, (0, max(0, key.shape[-1] - width)))
    return F.scaled_dot_product_attention(query, key, padded, dropout_p=dropout, is_causal=True)[..., :width]
