"""Both ways to compute causal attention are softmax(Q Kᵀ / √d) V over the past, whatever the widths."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from disttrain.models import attention
from disttrain.models.attention import causal_attention


def plain_attention(query, key, value):
    """One position at a time, over the positions up to it."""
    rows = []
    for t in range(query.shape[-2]):
        scores = query[..., t : t + 1, :] @ key[..., : t + 1, :].mT / query.shape[-1] ** 0.5
        rows.append(scores.softmax(-1) @ value[..., : t + 1, :])
    return torch.cat(rows, dim=-2)


@st.composite
def queries_keys_values(draw):
    """fp64, one to nine tokens; values narrower than keys, as wide, or wider."""
    batch, heads, time = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 9))
    key_width, value_width = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    widths = (key_width, key_width, value_width)
    return [torch.randn(batch, heads, time, width, generator=generator, dtype=torch.float64) for width in widths]


@pytest.mark.parametrize("longest_explicit", [0, 512], ids=["fused", "explicit"])
def test_equals_attention_position_by_position(longest_explicit, monkeypatch):
    monkeypatch.setattr(attention, "LONGEST_EXPLICIT", longest_explicit)

    @settings(max_examples=25)
    @given(queries_keys_values())
    def check(tensors):
        torch.testing.assert_close(causal_attention(*tensors), plain_attention(*tensors))

    check()


def test_gradients_do_not_depend_on_the_way_of_computing(monkeypatch):
    tensors = [torch.randn(2, 3, 7, width, dtype=torch.float64, requires_grad=True) for width in (6, 6, 4)]
    weights = torch.randn(2, 3, 7, 4, dtype=torch.float64)
    explicit = torch.autograd.grad((causal_attention(*tensors) * weights).sum(), tensors)
    monkeypatch.setattr(attention, "LONGEST_EXPLICIT", 0)
    fused = torch.autograd.grad((causal_attention(*tensors) * weights).sum(), tensors)
    torch.testing.assert_close(explicit, fused)


def test_dropout_zeroes_attention_weights_and_keeps_their_mean():
    query = key = torch.zeros(1, 1, 64, 4)  # all weights of position t are 1 / (t + 1)
    value = torch.ones(1, 1, 64, 1)
    torch.manual_seed(0)
    mixed = torch.stack([causal_attention(query, key, value, dropout=0.5) for _ in range(200)])
    assert set(mixed[:, 0, 0, 0, 0].tolist()) == {0.0, 2.0}
    torch.testing.assert_close(mixed.mean(0), value[0].expand_as(mixed[0]), atol=0.3, rtol=0)
