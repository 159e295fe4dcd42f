"""What every language model of ours keeps: causality, one tied embedding, meta construction, per-worker gradients."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.utils.flop_counter import FlopCounterMode

from disttrain.component import UserError
from disttrain.models import GptConfig, PlmConfig, models
from disttrain.task import ClassificationTask, TokenTask

CONFIGS = {
    "plm": PlmConfig(width=32, layers=2, heads=2),
    "gpt": GptConfig(width=32, layers=2, heads=2),
    "gpt without bias": GptConfig(width=32, layers=2, heads=2, bias=False),
}
VOCABULARY, TIME = 61, 12
TASK = TokenTask(VOCABULARY, TIME)
every_model = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def tokens_of(seed, batch=2):
    return torch.randint(VOCABULARY, (batch, TIME), generator=torch.Generator().manual_seed(seed))


def loss_of(module, parameters, tokens):
    logits = functional_call(module, parameters, (tokens[:, :-1],))
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def test_plm_is_the_default_and_every_model_is_found_by_name():
    assert models.default == "plm"
    assert models.names() == ["cnn", "gpt", "huggingface", "import", "mlp", "plm"]


@every_model
def test_logits_have_one_row_per_token_of_the_data(config):
    assert config.build(TASK)(tokens_of(0)).shape == (2, TIME, VOCABULARY)


@every_model
def test_a_token_changes_no_logit_before_it(config):
    module = config.build(TASK)

    @settings(max_examples=15)
    @given(seed=st.integers(0, 2**32), position=st.integers(0, TIME - 1), other=st.integers(1, VOCABULARY - 1))
    def check(seed, position, other):
        tokens = tokens_of(seed)
        changed = tokens.clone()
        changed[:, position] = (changed[:, position] + other) % VOCABULARY
        before, after = module(tokens), module(changed)
        assert torch.equal(before[:, :position], after[:, :position])
        assert not torch.equal(before[:, position], after[:, position])

    check()


@every_model
def test_the_embedding_is_the_output_layer_and_is_counted_once(config):
    module = config.build(TASK)
    shapes = [tuple(parameter.shape) for parameter in module.parameters()]
    assert shapes.count((VOCABULARY, 32)) == 1
    assert set(module.state_dict()) == dict(module.named_parameters()).keys()


@every_model
def test_built_on_meta_and_loaded_later_it_is_the_same_model(config):
    module = config.build(TASK)
    with torch.device("meta"):
        late = config.build(TASK)
    assert all(parameter.is_meta for parameter in late.parameters())
    late.to_empty(device="cpu").load_state_dict(module.state_dict())
    assert torch.equal(late(tokens_of(0)), module(tokens_of(0)))


@every_model
def test_initialize_draws_what_the_constructor_drew(config):
    torch.manual_seed(0)
    module = config.build(TASK)
    with torch.device("meta"):
        late = config.build(TASK)
    late.to_empty(device="cpu")
    torch.manual_seed(1)
    late.initialize()
    for (name, drawn), expected in zip(late.named_parameters(), module.parameters(), strict=True):
        torch.testing.assert_close(drawn.std(correction=0), expected.std(correction=0), rtol=0.3, atol=0, msg=name)


@every_model
def test_vmapped_gradients_of_stacked_workers_are_those_of_each_worker(config):
    workers = [config.build(TASK).double() for _ in range(3)]
    stacked, _ = stack_module_state(workers)
    tokens = torch.stack([tokens_of(seed) for seed in range(3)])

    def gradients(parameters, rows):
        return grad(lambda inner: loss_of(workers[0], inner, rows))(parameters)

    together = vmap(gradients)(stacked, tokens)
    for row, worker in enumerate(workers):
        alone = gradients(dict(worker.named_parameters()), tokens[row])
        for name, gradient in alone.items():
            torch.testing.assert_close(together[name][row], gradient, msg=name)


@every_model
@pytest.mark.filterwarnings("error", "ignore:TF32")
def test_bfloat16_autocast_stays_near_float32_and_warns_of_nothing(config):
    module, tokens = config.build(TASK), tokens_of(0)
    # oneDNN's bf16 kernels are killed on machines that promise AMX and do not have it; torch's own run anywhere.
    with torch.backends.mkldnn.flags(enabled=False), torch.autocast("cpu", torch.bfloat16):
        logits = module(tokens)
    assert logits.dtype == torch.bfloat16
    exact = module(tokens)
    assert (logits - exact).norm() < 0.03 * exact.norm()


@every_model
def test_a_few_steps_lower_the_loss_on_one_batch(config):
    torch.manual_seed(0)
    module, tokens = config.build(TASK), tokens_of(0)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = loss_of(module, dict(module.named_parameters()), tokens)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


@every_model
def test_flops_are_the_matrix_products_that_torch_counts_less_half_of_attention(config):
    module, tokens = config.build(TASK), tokens_of(0)
    with FlopCounterMode(display=False) as counter:
        module(tokens).sum().backward()
    vectors = sum(parameter.numel() for parameter in module.parameters() if parameter.ndim == 1)
    key_and_value_widths = {"plm": 24 + 16, "gpt": 16 + 16}[config.name]
    future = 6 * config.layers * config.heads * key_and_value_widths * TIME / 2
    expected = config.flops_per_token(module, TASK) - 6 * vectors + future
    assert counter.get_total_flops() / tokens.numel() == expected


@every_model
def test_a_vocabulary_below_the_datas_is_refused_with_both_sizes(config):
    small = config.model_copy(update={"vocabulary_size": 60})
    with pytest.raises(UserError, match=r"vocabulary_size=60 .* 61"):
        small.build(TASK)


@every_model
def test_a_vocabulary_above_the_datas_is_kept(config):
    large = config.model_copy(update={"vocabulary_size": 64})
    assert large.build(TASK)(tokens_of(0)).shape[-1] == 64


@every_model
def test_samples_with_classes_are_refused_with_what_to_use_instead(config):
    with pytest.raises(UserError, match=rf"model.name={config.name} reads tokens, .* shape \[1, 8, 8\] in 10 classes: use .*mlp"):
        config.build(ClassificationTask((1, 8, 8), 10))
