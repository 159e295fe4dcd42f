"""GPT-2 has the published size, and computes what Hugging Face's does with the same weights."""

import pytest
import torch
from pydantic import ValidationError

from disttrain.component import UserError
from disttrain.models import GptConfig
from disttrain.task import TokenTask


def test_gpt2_has_the_published_number_of_parameters():
    with torch.device("meta"):
        module = GptConfig(preset="gpt2").build(TokenTask(50_257, 1024))
    assert sum(parameter.numel() for parameter in module.parameters()) == 124_439_808


def test_equals_hugging_face_with_the_same_weights():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=16, vocab_size=50)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    ours = GptConfig(width=32, layers=2, heads=4).build(TokenTask(50, 16))
    ours.load_state_dict(from_hugging_face(theirs.state_dict()))
    tokens = torch.randint(50, (2, 16))
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits)


NAMES = {
    "wte": "embedding",
    "wpe": "positions",
    "h": "blocks",
    "ln_f": "norm",
    "ln_1": "attention_norm",
    "ln_2": "feedforward_norm",
    "attn": "attention",
    "c_attn": "qkv",
    "mlp": "feedforward",
    "c_fc": "up",
    "c_proj": "output",
}


def from_hugging_face(state):
    """Rename; their Conv1D keeps a linear layer's weight transposed."""
    ours = {}
    for name, tensor in state.items():
        if name != "lm_head.weight":
            renamed = ".".join(NAMES.get(part, part) for part in name.removeprefix("transformer.").split("."))
            ours[renamed] = tensor.T if name.endswith(("c_attn.weight", "c_fc.weight", "c_proj.weight")) else tensor
    return ours


def test_what_writes_to_the_residual_stream_starts_smaller():
    module = GptConfig(layers=8).build(TokenTask(256, 128))
    block = module.blocks[0]
    assert block.attention.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.attention.output.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert block.feedforward.output.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)


def test_dropout_acts_in_training_only():
    module, tokens = GptConfig(dropout=0.5).build(TokenTask(256, 8)), torch.zeros(1, 8, dtype=torch.int64)
    assert not torch.equal(module(tokens), module(tokens))
    module.eval()
    assert torch.equal(module(tokens), module(tokens))


def test_a_context_below_the_datas_sequence_length_is_refused_with_both():
    with pytest.raises(UserError, match=r"context=1024 .* 2048"):
        GptConfig(preset="gpt2").build(TokenTask(256, 2048))


def test_heads_must_divide_width():
    with pytest.raises(ValidationError, match="width=100 is not a multiple of heads=12"):
        GptConfig(preset="gpt2", width=100)
