"""PLM has the published sizes and formulas, and refuses sizes that do not fit, by their names."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from disttrain.models.plm import LatentAttention, PlmConfig, SquaredReLU
from disttrain.task import TokenTask
from tests.reference.mla import latent_attention

QUICKSTART = PlmConfig(width=128, layers=4, heads=4)


@pytest.mark.parametrize(
    ("config", "data_vocabulary", "parameters"),
    [
        (QUICKSTART, 256, 779_520),
        (PlmConfig(), 4096, 7_017_216),
        (PlmConfig(preset="mini"), 32_768, 105_108_480),
        (PlmConfig(preset="1.8b"), 256, 1_825_458_176),  # Hugging Face's file has two bytes for each
    ],
)
def test_has_the_published_number_of_parameters(config, data_vocabulary, parameters):
    with torch.device("meta"):
        module = config.build(TokenTask(data_vocabulary, 128))
    assert sum(parameter.numel() for parameter in module.parameters()) == parameters


@st.composite
def odd_shaped_configs(draw):
    """Small models whose every size is given, none by PLM's ratios."""
    sizes = ("width", "layers", "heads", "feedforward", "kv_rank", "nope_head", "value_head")
    given_sizes = {size: draw(st.integers(1, 9)) for size in sizes}
    return PlmConfig(**given_sizes, rope_head=2 * draw(st.integers(1, 4)), vocabulary_size=draw(st.integers(2, 9)))


@settings(max_examples=30)
@given(odd_shaped_configs())
def test_the_number_of_parameters_follows_the_formula(config):
    d, h, r, dr = config.width, config.heads, config.kv_rank, config.rope_head
    dn, dv, ff = config.nope_head, config.value_head, config.feedforward
    per_layer = d * h * (dn + dr) + d * (r + dr) + r + r * h * (dn + dv) + h * dv * d + 2 * d * ff + 2 * d
    module = config.build(TokenTask(2, 4))
    total = config.vocabulary_size * d + config.layers * per_layer + d
    assert sum(parameter.numel() for parameter in module.parameters()) == total


@settings(max_examples=30)
@given(odd_shaped_configs(), st.integers(0, 2**32))
def test_latent_attention_equals_its_formulas_entry_by_entry(config, seed):
    torch.manual_seed(seed)
    module = config.build(TokenTask(2, 5)).double()
    torch.nn.init.normal_(module.blocks[0].attention.kv_norm.weight)
    for parameter in module.parameters():
        parameter.data.mul_(10)  # scores far from zero, so that the softmax is far from uniform
    attention, sizes = module.blocks[0].attention, config.sizes()
    x = torch.randn(2, 5, sizes.width, dtype=torch.float64)
    table = rotary_table_fp64(5, sizes.rope_head, sizes.rope_base)
    with torch.no_grad():
        ours = attention(x, table)
        slow = torch.stack([reference(attention, row) for row in x])
    torch.testing.assert_close(ours, slow, atol=1e-10, rtol=1e-10)


def rotary_table_fp64(time, width, base):
    angles = torch.outer(torch.arange(time).double(), base ** (-torch.arange(0, width, 2).double() / width))
    return angles.cos(), angles.sin()


def reference(attention: LatentAttention, x):
    sizes = attention.sizes
    weights = [attention.query, attention.kv_down, attention.kv_norm, attention.kv_up, attention.output]
    return latent_attention(
        x,
        *[layer.weight for layer in weights],
        heads=sizes.heads,
        kv_rank=sizes.kv_rank,
        nope=sizes.nope_head,
        rope=sizes.rope_head,
        value=sizes.value_head,
        base=sizes.rope_base,
    )


def test_published_deepseek_weights_fit_and_mean_the_same():
    transformers = pytest.importorskip("transformers")
    from transformers.models.deepseek_v2 import modeling_deepseek_v2 as deepseek

    sizes = QUICKSTART.sizes()
    settings = transformers.DeepseekV2Config(
        hidden_size=sizes.width,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.heads,
        q_lora_rank=None,
        kv_lora_rank=sizes.kv_rank,
        qk_nope_head_dim=sizes.nope_head,
        qk_rope_head_dim=sizes.rope_head,
        v_head_dim=sizes.value_head,
        rope_theta=sizes.rope_base,
        attn_implementation="eager",
    )
    theirs = deepseek.DeepseekV2Attention(settings, layer_idx=0)
    ours = LatentAttention(sizes)
    names = ["q_proj", "kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj", "o_proj"]
    layers = [ours.query, ours.kv_down, ours.kv_norm, ours.kv_up, ours.output]
    for name, layer in zip(names, layers, strict=True):
        layer.load_state_dict(getattr(theirs, name).state_dict())
    x = torch.randn(2, 16, sizes.width)
    positions = deepseek.DeepseekV2RotaryEmbedding(settings)(x, torch.arange(16)[None])
    causal = torch.full((16, 16), -torch.inf).triu(1)[None, None]
    expected = theirs(x, attention_mask=causal, position_embeddings=positions)[0]
    cosine_sine = tuple(part.float() for part in rotary_table_fp64(16, sizes.rope_head, sizes.rope_base))
    torch.testing.assert_close(ours(x, cosine_sine), expected, atol=1e-5, rtol=1e-4)


def test_the_feedforward_layer_is_a_squared_relu_between_two_matrices():
    layer = SquaredReLU(QUICKSTART.sizes())
    x = torch.randn(3, 128)
    hidden = x @ layer.up.weight.T
    expected = torch.where(hidden > 0, hidden * hidden, 0.0) @ layer.down.weight.T
    torch.testing.assert_close(layer(x), expected)


def test_weights_are_drawn_with_deviation_two_hundredths_and_norms_are_one():
    for name, parameter in QUICKSTART.build(TokenTask(256, 128)).named_parameters():
        if parameter.ndim == 2:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05), name
        else:
            assert (parameter == 1).all(), name


@pytest.mark.parametrize("preset", ["tiny", "mini", "1.8b"])
def test_a_preset_is_what_its_width_layers_and_heads_derive(preset):
    sizes = PlmConfig(preset=preset).sizes()
    derived = PlmConfig(width=sizes.width, layers=sizes.layers, heads=sizes.heads).sizes()
    assert sizes == derived


def test_a_size_that_is_given_is_taken_and_what_depends_on_it_follows():
    sizes = PlmConfig(width=64, heads=4, nope_head=24, feedforward=100).sizes()
    assert (sizes.feedforward, sizes.nope_head, sizes.rope_head, sizes.value_head) == (100, 24, 12, 16)
    assert (sizes.kv_rank, sizes.layers) == (16, 8)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"width": 130}, "width=130 is not a multiple of heads=4, so nope_head has no default"),
        (
            {"width": 130, "nope_head": 32, "value_head": 32},
            "width=130 is not a multiple of 4, so kv_rank has no default",
        ),
        ({"nope_head": 7}, "nope_head=7 is not a multiple of 2, so rope_head has no default"),
        ({"rope_head": 7}, "rope_head=7 must be even"),
        ({"heads": 0}, "heads\n.*greater than 0"),
        ({"width": 128.0}, "width\n.*valid integer"),
        ({"widht": 128}, "widht\n.*not permitted"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_by_name(sizes, message):
    with pytest.raises(ValidationError, match=message):
        PlmConfig(**sizes)
