"""Any optimizer class by its import path, checked before anything is built."""

import pytest
import torch
from small_modules import same_parameters, split, tiny, train, twins

from disttrain.optim import ImportedConfig, table


class Sign(torch.optim.Optimizer):
    """w ← w − lr·sign(g), with an option that only ``**kwargs`` take."""

    def __init__(self, params, lr, **kwargs):
        super().__init__(params, {"lr": lr, **kwargs})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.mul_(1 - group.get("weight_decay", 0.0))
                parameter.sub_(parameter.grad.sign(), alpha=group["lr"])


class NoRate(torch.optim.Optimizer):
    def __init__(self, params, rate=1.0):
        super().__init__(params, {"rate": rate})


class NotOne:
    pass


def test_an_imported_optimizer_is_the_class_itself_with_our_decay():
    ours, theirs = twins()
    config = ImportedConfig(target="torch.optim:Adafactor", lr=0.02, arguments={"weight_decay": 0.2, "d": 2.0})
    decaying, spared = split(theirs, "matrix", "conv")
    groups = [{"params": decaying}, {"params": spared, "weight_decay": 0.0}]
    by_hand = torch.optim.Adafactor(groups, lr=0.02, weight_decay=0.2, d=2.0)
    assert same_parameters(train(ours, config.build(ours)), train(theirs, by_hand))


def test_decay_all_leaves_decay_to_the_class():
    ours, theirs = twins()
    config = ImportedConfig(target="torch.optim:AdamW", lr=0.02, decay="all")
    by_hand = torch.optim.AdamW(theirs.parameters(), lr=0.02)
    assert same_parameters(train(ours, config.build(ours)), train(theirs, by_hand))


def test_a_class_without_weight_decay_gets_all_parameters_in_one_group():
    module = tiny()
    (row,) = table(ImportedConfig(target="torch.optim:LBFGS", lr=0.5).build(module))
    assert (row.group, row.optimizer, row.tensors, row.lr) == ("all", "LBFGS", 12, 0.5)


def test_arguments_of_a_class_with_kwargs_are_passed_on():
    ours, theirs = twins()
    config = ImportedConfig(target=f"{__name__}:Sign", lr=0.02, arguments={"weight_decay": 0.1})
    decaying, spared = split(theirs, "matrix", "conv")
    by_hand = Sign([{"params": decaying, "weight_decay": 0.1}, {"params": spared}], lr=0.02)
    assert same_parameters(train(ours, config.build(ours)), train(theirs, by_hand))


def test_a_config_file_says_where_the_class_is():
    text = '{"name": "import", "target": "torch.optim:RAdam", "arguments": {"betas": [0.5, 0.6]}}'
    optimizer = ImportedConfig.model_validate_json(text).build(tiny())
    assert isinstance(optimizer, torch.optim.RAdam)
    assert tuple(optimizer.defaults["betas"]) == (0.5, 0.6)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"target": "torch.optim.Adafactor"}, "torch.optim:Adafactor"),
        ({"target": "torch.optim:Adafaktor"}, "did you mean Adafactor"),
        ({"target": "no_such_package:Adam"}, "cannot be imported"),
        ({"target": f"{__name__}:NotOne"}, r"is the class NotOne, not a subclass of torch\.optim\.Optimizer"),
        ({"target": "math:pi"}, "is a float, not a subclass"),
        ({"target": "torch.optim:AdamW", "arguments": {"beta": 0.9}}, "no argument 'beta'; did you mean betas"),
        ({"target": "torch.optim:AdamW", "arguments": {"zzz": 1}}, "no argument 'zzz'; it takes lr, betas, eps"),
        ({"target": "torch.optim:AdamW", "arguments": {"lr": 0.1}}, r"set by optimizer\.lr"),
        ({"target": "torch.optim:AdamW", "arguments": {"params": []}}, "no argument 'params'"),
        ({"target": f"{__name__}:NoRate"}, "no argument 'lr'; it takes rate"),
    ],
)
def test_mistakes_are_refused_with_the_reason(settings, reason):
    with pytest.raises(ValueError, match=reason):
        ImportedConfig(**settings)
