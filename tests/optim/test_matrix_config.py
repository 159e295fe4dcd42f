"""By config: which parameters are matrices, and what does not fit is said before training."""

import pytest
import torch
from small_modules import twins
from torch import nn

from disttrain.component import UserError
from disttrain.optim import COSMOS, SOAP, COSMOSConfig, Muon, MuonConfig, SOAPConfig, build_param_groups

CONFIGS = {"muon": (MuonConfig, Muon), "soap": (SOAPConfig, SOAP), "cosmos": (COSMOSConfig, COSMOS)}


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 16, bias=False)
        self.out = nn.Linear(8, 8, bias=False)


def shapes(optimizer):
    """What is computed as a matrix, by name."""
    groups = [group for group in optimizer.param_groups if group["algorithm"] != "adamw"]
    return {name: shape for group in groups for name, shape in optimizer.block_shapes(group)}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_builds_its_class_with_its_own_defaults(name):
    config, kind = CONFIGS[name]
    module, _ = twins()
    optimizer = config().build(module)
    assert type(optimizer) is kind
    own = config().settings()
    assert own.items() <= optimizer.param_groups[0].items()
    fields = set(type(config()).model_fields) - set(config.__mro__[1].model_fields) - {"name"}
    assert set(own) == fields, "every setting of the config reaches the optimizer"


def test_convolutions_and_experts_are_matrices_on_request():
    module = nn.Sequential(nn.Conv2d(3, 5, 2), nn.Linear(4, 6))
    module.experts = nn.Parameter(torch.zeros(7, 4, 6))
    assert shapes(MuonConfig().build(module)) == {"1.weight": (6, 4)}
    assert shapes(MuonConfig(conv=True, experts=True).build(module)) == {
        "1.weight": (6, 4), "0.weight": (5, 12), "experts": (7, 4, 6),
    }  # fmt: skip


@pytest.mark.parametrize(("split", "expected"), [(2, [(8, 8)] * 2), ((8, 4, 4), [(8, 8), (4, 8), (4, 8)])])
def test_a_fused_matrix_is_split(split, expected):
    found = shapes(COSMOSConfig(split={"*qkv*": split}, rank=4).build(Attention()))
    assert found == {"out.weight": (8, 8)} | {f"qkv.weight[{number}]": shape for number, shape in enumerate(expected)}


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ({"*qkv*": 3}, r"optimizer\.name=muon: qkv\.weight has 16 rows, which split=3 does not divide"),
        ({"*qkv*": (8, 9)}, r"has 16 rows, which split=\(8, 9\) does not divide"),
        ({"*kqv*": 2}, r"optimizer\.split: no matrix of Attention is called '\*kqv\*'"),
    ],
)
def test_a_split_that_does_not_fit_is_refused(split, words):
    with pytest.raises(UserError, match=words):
        MuonConfig(split=split).build(Attention())


def test_the_class_takes_a_modules_groups_as_they_are():
    module, _ = twins()
    groups = COSMOS(build_param_groups(module), lr=0.1, weight_decay=0.2, rank=2).param_groups
    assert {group["role"]: (group["algorithm"], group["lr"], group["weight_decay"]) for group in groups} == {
        "matrix": ("cosmos", 0.1, 0.2),
        "embedding": ("adamw", 0.1, 0.0),
        "norm": ("adamw", 0.1, 0.0),
        "bias": ("adamw", 0.1, 0.0),
        "conv": ("adamw", 0.1, 0.2),
    }
