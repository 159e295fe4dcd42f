"""A transformers model trains like ours, comes from local files only, and silently ignores nothing."""

import json
import sys

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from disttrain.component import UserError
from disttrain.models import HuggingFaceConfig
from disttrain.task import ClassificationTask, TokenTask

pytest.importorskip("transformers")

TINY = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}
LLAMA = HuggingFaceConfig(config={"model_type": "llama", "num_key_value_heads": 1, **TINY})
TOKENS = torch.arange(24).reshape(2, 12)


@pytest.fixture
def directory(tmp_path):
    """A tiny llama as transformers saves it."""
    LLAMA.build(TokenTask(50, 16)).save_pretrained(tmp_path)
    return tmp_path


def test_a_llama_takes_the_datas_vocabulary_and_trains():
    torch.manual_seed(0)
    module = LLAMA.build(TokenTask(50, 16))
    assert module(TOKENS).shape == (2, 12, 50)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    losses = []
    for _ in range(2):
        loss = F.cross_entropy(module(TOKENS[:, :-1]).flatten(0, 1), TOKENS[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]


def test_a_bert_is_made_causal():
    module = HuggingFaceConfig(config={"model_type": "bert", **TINY}).build(TokenTask(50, 16)).eval()
    changed = TOKENS.clone()
    changed[:, 6:] += 1
    assert torch.equal(module(TOKENS)[:, :6], module(changed)[:, :6])


def test_the_state_dict_is_that_of_transformers(directory):
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(directory)
    assert LLAMA.build(TokenTask(50, 16)).state_dict().keys() == theirs.state_dict().keys()


def test_pretrained_weights_are_loaded_in_fp32_and_others_are_drawn(directory):
    saved = load_file(directory / "model.safetensors")
    save_file({name: weight.bfloat16() for name, weight in saved.items()}, directory / "model.safetensors", {"format": "pt"})
    loaded = HuggingFaceConfig(path=str(directory), pretrained=True).build(TokenTask(50, 16)).state_dict()
    drawn = HuggingFaceConfig(path=str(directory)).build(TokenTask(50, 16)).state_dict()
    for name, weight in saved.items():
        assert loaded[name].dtype == torch.float32
        assert torch.equal(loaded[name], weight.bfloat16().float())
    assert not torch.equal(drawn["lm_head.weight"], loaded["lm_head.weight"])


def test_weights_that_are_missing_are_refused_not_drawn(directory):
    saved = load_file(directory / "model.safetensors")
    del saved["model.norm.weight"]
    save_file(saved, directory / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights are missing, such as model\.norm\.weight"):
        HuggingFaceConfig(path=str(directory), pretrained=True).build(TokenTask(50, 16))


def test_pickled_weights_are_refused(directory):
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no file named model\.safetensors"):
        HuggingFaceConfig(path=str(directory), pretrained=True).build(TokenTask(50, 16))


def test_code_beside_the_weights_is_not_run(directory):
    (directory / "theirs.py").write_text("raise SystemExit('run')")
    config = json.loads((directory / "config.json").read_text())
    config |= {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.A", "AutoModelForCausalLM": "theirs.B"}}
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="contains custom code"):
        HuggingFaceConfig(path=str(directory)).build(TokenTask(50, 16))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "lama"}, "model_type='lama'; did you mean llama"),
        ({"model_type": "vit"}, "no causal language model of model_type='vit'"),
        ({"hiden_size": 16}, "hiden_size: llama has no such setting; did you mean hidden_size"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"vocab_size": 49}, "config.vocab_size=49 .* 50"),
        ({"max_position_embeddings": 8}, "config.max_position_embeddings=8 .* 16"),
    ],
)
def test_a_description_that_does_not_fit_is_refused_with_the_reason(changes, message):
    with pytest.raises(UserError, match=message):
        HuggingFaceConfig(config=LLAMA.config | changes).build(TokenTask(50, 16))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "either config.* or path"),
        ({"config": {"model_type": "llama"}, "path": "."}, "either config.* or path"),
        ({"config": {"model_type": "llama"}, "pretrained": True}, "pretrained: true needs path"),
        ({"config": {"hidden_size": 16}}, "config needs a model_type"),
        ({"path": "meta-llama/Llama-3.2-1B"}, "not a local directory .* nothing is downloaded"),
    ],
)
def test_sources_that_are_unclear_or_remote_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        HuggingFaceConfig(**settings)


def test_without_transformers_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install 'disttrain\[hf\]'"):
        LLAMA.build(TokenTask(50, 16))


def test_samples_with_classes_are_refused():
    with pytest.raises(UserError, match=r"model.name=huggingface reads tokens"):
        LLAMA.build(ClassificationTask((1, 8, 8), 10))
