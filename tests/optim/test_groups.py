"""Every trainable parameter is in exactly one group, for what it is; the groups depend on the module alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_modules import ROLES_OF_TINY, tiny
from torch import nn

from disttrain.optim import NO_DECAY, ROLES, build_param_groups

WIDTHS = (2, 3, 4)


def roles_of(module, roles=None):
    return {name: group.role for group in build_param_groups(module, roles) for name in group.names}


@st.composite
def layers(draw):
    """One layer, as a function that makes it."""
    a, b = draw(st.sampled_from(WIDTHS)), draw(st.sampled_from(WIDTHS))
    bias = draw(st.booleans())
    kinds = {
        "linear": lambda: nn.Linear(a, b, bias=bias),
        "embedding": lambda: nn.Embedding(a, b),
        "layer_norm": lambda: nn.LayerNorm(a, bias=bias),
        "rms_norm": lambda: nn.RMSNorm((a, b)),
        "batch_norm": lambda: nn.BatchNorm1d(a),
        "conv": lambda: nn.Conv2d(a, b, 1, bias=bias),
        "recurrent": lambda: nn.GRU(a, b),
        "attention": lambda: nn.MultiheadAttention(4, 2, add_bias_kv=bias),
    }
    return kinds[draw(st.sampled_from(sorted(kinds)))]


def nested(children):
    return st.lists(children, max_size=3).map(lambda makers: lambda: nn.ModuleList([make() for make in makers]))


@st.composite
def recipes(draw):
    """A function that makes a module: layers nested at random, some weights tied, some parameters frozen."""
    make = draw(st.recursive(layers(), nested, max_leaves=8))
    ties, frozen = draw(st.integers(0, 2**16)), draw(st.integers(0, 2**16))

    def recipe():
        module = nn.Sequential(nn.Linear(2, 2), make())
        tie(module, ties)
        for index, parameter in enumerate(module.parameters()):
            parameter.requires_grad_(index == 0 or not frozen >> index & 1)
        return module

    return recipe


def tie(module, choices):
    """Give some of the Linears the weight of an earlier layer of the same shape."""
    owners = [each for each in module.modules() if isinstance(each, (nn.Linear, nn.Embedding))]
    for index, owner in enumerate(owners):
        earlier = [each for each in owners[:index] if each.weight.shape == owner.weight.shape]
        if earlier and choices >> index & 1:
            owner.weight = earlier[0].weight


@given(recipes())
@settings(max_examples=150, deadline=None)
def test_every_trainable_parameter_is_in_exactly_one_group_and_no_frozen_one_in_any(recipe):
    module = recipe()
    grouped = [id(parameter) for group in build_param_groups(module) for parameter in group.parameters]
    assert sorted(grouped) == sorted({id(each) for each in module.parameters() if each.requires_grad})


@given(recipes())
@settings(max_examples=50, deadline=None)
def test_names_are_the_modules_own_in_its_own_order(recipe):
    module = recipe()
    named = list(module.named_parameters())
    for group in build_param_groups(module):
        pairs = list(zip(group.names, group.parameters, strict=True))
        assert [name for name, _ in pairs] == [name for name, _ in named if name in group.names]
        assert all(parameter is dict(named)[name] for name, parameter in pairs)


@given(recipes())
@settings(max_examples=50, deadline=None)
def test_two_ranks_that_build_the_same_module_find_the_same_groups(recipe):
    here, there = build_param_groups(recipe()), build_param_groups(recipe())
    assert [(group.role, group.names) for group in here] == [(group.role, group.names) for group in there]
    assert [group.role for group in here] == sorted((group.role for group in here), key=ROLES.index)


@given(recipes())
@settings(max_examples=150, deadline=None)
def test_what_an_embedding_or_a_norm_owns_is_never_a_matrix(recipe):
    module = recipe()
    special = (nn.Embedding, nn.LayerNorm, nn.RMSNorm, nn.BatchNorm1d)
    owned = {id(each) for owner in module.modules() if isinstance(owner, special) for each in owner.parameters()}
    matrices = [group for group in build_param_groups(module) if group.role == "matrix"]
    assert all(id(each) not in owned and each.ndim == 2 for group in matrices for each in group.parameters)


def test_one_of_everything_has_the_roles_one_would_give_by_hand():
    assert roles_of(tiny()) == ROLES_OF_TINY


def test_a_tied_weight_is_one_embedding_under_its_first_name():
    head_first = nn.ModuleDict({"head": nn.Linear(4, 9, bias=False), "embedding": nn.Embedding(9, 4)})
    head_first["head"].weight = head_first["embedding"].weight
    (group,) = build_param_groups(head_first)
    assert (group.role, group.names) == ("embedding", ("head.weight",))


def test_a_weight_shared_by_two_linears_is_one_matrix():
    module = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    module[1].weight = module[0].weight
    assert roles_of(module) == {"0.weight": "matrix"}


def test_an_untied_head_is_the_last_linear_if_it_has_an_output_per_token():
    byte_model = [nn.Embedding(256, 64), nn.Linear(64, 256), nn.Linear(256, 64)]
    assert roles_of(nn.Sequential(*byte_model, nn.Linear(64, 256, bias=False)))["3.weight"] == "head"
    assert roles_of(nn.Sequential(*byte_model))["1.weight"] == "matrix"
    assert roles_of(nn.Sequential(*byte_model, nn.Linear(64, 10)))["3.weight"] == "matrix"


def test_a_transformers_model_names_its_own_head():
    class Told(nn.Module):
        def __init__(self):
            super().__init__()
            self.lm_head, self.tokens, self.hidden = nn.Linear(4, 9), nn.Embedding(9, 4), nn.Linear(4, 9)

        def get_output_embeddings(self):
            return self.lm_head

    assert roles_of(Told())["lm_head.weight"] == "head"
    assert roles_of(Told())["hidden.weight"] == "matrix"


def test_third_party_layers_are_known_by_their_names():
    class ScaleNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

    class RotaryEmbedder(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.ones(3, 3))

    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.ensemble = nn.Parameter(torch.ones(2, 3, 3))
            self.pos_embed = nn.Parameter(torch.ones(1, 2, 3))

    assert roles_of(nn.Sequential(ScaleNorm(), RotaryEmbedder(), Experts())) == {
        "0.scale": "norm",
        "1.table": "embedding",
        "2.ensemble": "other",
        "2.pos_embed": "embedding",
    }


def test_corrections_are_patterns_of_which_the_first_match_wins():
    found = roles_of(tiny(), {"up.*": "head", "*.weight": "other", "head.weight": "bias"})
    assert found["up.weight"] == found["up.bias"] == "head"
    assert found["norm.weight"] == found["down.weight"] == "other"
    assert found["embedding.weight"] == "other", "a tied weight answers to both of its names"


def test_a_correction_that_corrects_nothing_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"'down\.wieght'; did you mean down\.weight"):
        build_param_groups(tiny(), {"down.wieght": "embedding"})


def test_a_vector_cannot_be_made_a_matrix():
    with pytest.raises(ValueError, match=r"up\.bias has shape \[13\]"):
        build_param_groups(tiny(), {"up.bias": "matrix"})


@pytest.mark.parametrize("module", [nn.ReLU(), nn.Linear(2, 2).requires_grad_(False)])
def test_a_module_with_nothing_to_train_is_refused_by_name(module):
    with pytest.raises(ValueError, match=f"{type(module).__name__} has no trainable parameter"):
        build_param_groups(module)


def test_norms_and_biases_decay_only_if_everything_does():
    assert {rule: set(ROLES) - spared for rule, spared in NO_DECAY.items()} == {
        "matrices": {"matrix", "head", "conv", "other"},
        "weights": {"matrix", "head", "conv", "other", "embedding"},
        "all": set(ROLES),
    }
