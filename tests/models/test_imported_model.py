"""A model named by its import path gets the data's sizes if it asks for them; every mistake is named."""

import sys

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from disttrain.component import UserError
from disttrain.models import ImportedConfig
from disttrain.task import ClassificationTask, TokenTask

SOURCE = """
from torch import nn

class Bigram(nn.Embedding):
    def __init__(self, vocabulary_size, width=None):
        super().__init__(vocabulary_size, width or vocabulary_size)

def classifier(num_classes, input_shape, layers=1):
    module = nn.Identity()
    module.sizes = (input_shape, num_classes, layers)
    return module

def sized(sequence_length, vocabulary_size, layers=1):
    module = nn.Identity()
    module.sizes = (vocabulary_size, sequence_length, layers)
    return module

def anything(**settings):
    module = nn.Identity()
    module.settings = settings
    return module

def a_number():
    return 7

constant = 7
"""


@pytest.fixture(autouse=True)
def _theirs(tmp_path, monkeypatch):
    """The user's own module ``their_models``, importable."""
    (tmp_path / "their_models.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("their_models", None)


def test_a_class_is_built_with_the_datas_vocabulary():
    module = ImportedConfig(target="their_models:Bigram").build(TokenTask(11, 5))
    assert module(torch.zeros(2, 5, dtype=torch.int64)).shape == (2, 5, 11)


def test_a_function_gets_the_sizes_it_names_and_the_arguments_given():
    config = ImportedConfig(target="their_models:sized", arguments={"layers": 3})
    assert config.build(TokenTask(11, 5)).sizes == (11, 5, 3)


def test_an_argument_outranks_the_datas_size():
    config = ImportedConfig(target="their_models:sized", arguments={"vocabulary_size": 99})
    assert config.build(TokenTask(11, 5)).sizes == (99, 5, 1)


def test_a_classifier_gets_the_shape_and_the_classes():
    config = ImportedConfig(target="their_models:classifier", arguments={"layers": 2})
    assert config.build(ClassificationTask((1, 8, 8), 10)).sizes == ((1, 8, 8), 10, 2)


def test_a_target_that_needs_sizes_of_other_data_is_refused_with_those_there_are():
    config = ImportedConfig(target="their_models:sized")
    with pytest.raises(UserError, match=r"sized needs sequence_length, vocabulary_size, .* tells input_shape, num_classes only"):
        config.build(ClassificationTask((1, 8, 8), 10))


def test_sizes_that_are_not_named_are_not_passed():
    assert ImportedConfig(target="their_models:anything").build(TokenTask(11, 5)).settings == {}
    assert isinstance(
        ImportedConfig(target="torch.nn:Linear", arguments={"in_features": 1, "out_features": 2}).build(TokenTask(11, 5)),
        nn.Linear,
    )


@pytest.mark.parametrize(
    ("target", "arguments", "message"),
    [
        ("their_model:Bigram", {}, "module their_model cannot be imported"),
        ("their_models:Bigrm", {}, "their_models has no 'Bigrm'; did you mean Bigram?"),
        ("their_models.Bigram", {}, "probably 'their_models:Bigram'"),
        ("their_models:constant", {}, "'their_models:constant' is a int; it must be a class or function"),
        (
            "their_models:sized",
            {"layer": 3},
            r"unexpected keyword argument 'layer'; it takes \(sequence_length, .*layers=1\)",
        ),
        ("torch.nn:Linear", {"in_features": 1}, "missing a required argument: 'out_features'"),
    ],
)
def test_mistakes_are_found_before_anything_is_built(target, arguments, message):
    with pytest.raises(ValidationError, match=message):
        ImportedConfig(target=target, arguments=arguments)


def test_something_that_is_no_module_is_refused():
    with pytest.raises(UserError, match=r"their_models:a_number returned a int, not a torch\.nn\.Module"):
        ImportedConfig(target="their_models:a_number").build(TokenTask(11, 5))
