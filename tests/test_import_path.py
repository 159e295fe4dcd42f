"""An import path finds what ``import`` would, and says what is wrong and what is nearest where it does not."""

import sys

import pytest
from torch import nn

from disttrain.import_path import resolve


def test_finds_attributes_of_modules_and_of_classes():
    assert resolve("torch.nn:Linear") is nn.Linear
    assert resolve("torch.nn:Linear.forward") is nn.Linear.forward


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("torch.nn:Linaer", r"torch\.nn has no 'Linaer'; did you mean Linear"),
        ("torch.nn:Linear.forwrd", r"torch\.nn:Linear has no 'forwrd'; did you mean forward"),
        ("torch.nn:Linear.__qqq", r"torch\.nn:Linear has no '__qqq'; it has .*…"),
        ("no_such_package:Model", "no_such_package cannot be imported .ModuleNotFoundError"),
        ("torch.nn.Linear", r"write 'package\.module:attribute', here probably 'torch\.nn:Linear'"),
        ("torch.nn:", r"write 'package\.module:attribute'$"),
        (":Linear", r"write 'package\.module:attribute'$"),
        ("../models.py:Linear", r"write 'package\.module:attribute'$"),
        ("", r"write 'package\.module:attribute'$"),
    ],
)
def test_says_what_is_wrong(path, message):
    with pytest.raises(ValueError, match=message):
        resolve(path)


def test_a_module_that_fails_while_imported_is_named_with_its_error(tmp_path, monkeypatch):
    (tmp_path / "broken_module.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"cannot be imported \(ZeroDivisionError: division by zero\)") as caught:
        resolve("broken_module:Model")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert "broken_module" not in sys.modules
