"""Every mistake has its place, what was expected, what was given, and the nearest thing that exists; no jargon."""

import json
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError, field_validator, model_validator

from disttrain.component import Config, UserError
from disttrain.config_errors import ConfigError, Origin, Problem, explain


class Group(Config):
    pattern: str
    lr: float = Field(1.0, gt=0)


class Fancy(Config):
    name: Literal["fancy"] = "fancy"
    lr: float = Field(1e-3, gt=0, le=1)
    betas: tuple[float, float] = (0.9, 0.99)
    groups: list[Group] = Field(default_factory=list, max_length=2)
    fused: bool = False
    cap: int | Literal["auto"] | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    text: str = "x"

    @field_validator("text")
    @classmethod
    def _no_z(cls, value):
        if "z" in value:
            raise ValueError("must not hold z")
        return value


class Plain(Config):
    name: Literal["plain"] = "plain"
    lr: float = 0.1
    decay: int = Field(0, ge=0, lt=10, multiple_of=2)

    @model_validator(mode="after")
    def _not_both(self):
        if self.lr > 1 and self.decay:
            raise ValueError("decay needs lr of at most 1")
        return self


class Loop(Config):
    steps: int = Field(gt=0)
    tail: int = 0

    @field_validator("tail")
    @classmethod
    def _fits(cls, value, info):
        if value > info.data.get("steps", 100) - 5:
            raise ValueError("must leave five steps")
        return value


class Everything(Config):
    optimizer: Annotated[Fancy | Plain, Field(discriminator="name")]
    only: Plain = Plain()
    loop: Loop = Loop(steps=10)


def lines(**tree):
    tree = {"optimizer": {"name": "fancy"}} | tree
    with pytest.raises(ValidationError) as caught:
        Everything.model_validate_json(json.dumps(tree))
    return [str(Problem(Origin("f"), *found)) for found in explain(caught.value.errors(), tree, Everything)]


def fancy(**settings):
    (line,) = lines(optimizer={"name": "fancy"} | settings)
    assert line.startswith("f: optimizer")
    return line.removeprefix("f: optimizer")


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"lr": -1}, ".lr: must be greater than 0 (got -1)"),
        ({"lr": 2}, ".lr: must be at most 1 (got 2)"),
        ({"lr": "3e-4"}, '.lr: must be a number (got "3e-4")'),
        ({"lr": True}, ".lr: must be a number (got true)"),
        ({"lr": None}, ".lr: must be a number (got null)"),
        ({"lr": float("inf")}, ".lr: must be a finite number (got Infinity)"),
        ({"fused": "yes"}, '.fused: must be true or false (got "yes")'),
        ({"fused": 1}, ".fused: must be true or false (got 1)"),
        ({"text": 5}, ".text: must be text (got 5, which needs quotes to be text)"),
        ({"text": "zoo"}, '.text: must not hold z (got "zoo")'),
        ({"betas": 1}, ".betas: must be a list (got 1)"),
        ({"betas": [1]}, ".betas[1]: required, but not given"),
        ({"betas": [1, 2, 3]}, ".betas: must have at most 2 entries (got [1, 2, 3])"),
        ({"betas": [1, "x"]}, '.betas[1]: must be a number (got "x")'),
        ({"cap": 1.5}, '.cap: must be a whole number or must be "auto" (got 1.5)'),
        ({"cap": {}}, '.cap: must be a whole number or must be "auto" (got {})'),
        ({"options": 3}, ".options: must be a section of keys and values (got 3)"),
        ({"options": "x"}, '.options: must be a section of keys and values (got "x")'),
        ({"groups": [{"pattern": "a", "lr": 0}]}, ".groups[0].lr: must be greater than 0 (got 0)"),
        ({"groups": [{"patern": "a", "pattern": "b"}]}, '.groups[0].patern: unknown key; did you mean "pattern"? '
                                                        "allowed: lr, pattern"),
        ({"groups": [{}]}, ".groups[0].pattern: required, but not given"),
        ({"beta": [1, 1]}, '.beta: unknown key; did you mean "betas"? '
                           "allowed: betas, cap, fused, groups, lr, name, options, text"),
        ({"fancy": {"lr": 1}}, ".fancy: unknown key; allowed: betas, cap, fused, groups, lr, name, options, text"),
        ({"tail": 3}, ".tail: unknown key; did you mean loop.tail? "
                      "allowed: betas, cap, fused, groups, lr, name, options, text"),
        ({"name": "fanzy"}, '.name: unknown optimizer "fanzy"; did you mean "fancy"? registered: fancy, plain'),
        ({"name": 5}, '.name: unknown optimizer "5"; registered: fancy, plain'),
    ],
)  # fmt: skip
def test_a_mistake_in_a_component(settings, line):
    assert fancy(**settings) == line


@pytest.mark.parametrize(
    ("tree", "line"),
    [
        ({"optimizer": "x"}, 'f: optimizer: must be a section of keys and values, such as {name: x} (got "x")'),
        ({"optimizer": {}}, "f: optimizer.name: its name is required, but not given"),
        ({"optimizer": {"nam": "sgd"}}, 'f: optimizer.name: its name is required, but not given; did you mean it by "nam"?'),
        ({"only": {"name": "pain"}}, 'f: only.name: unknown only "pain"; did you mean "plain"? registered: plain'),
        ({"only": {"decay": 3}}, "f: only.decay: must be a multiple of 2 (got 3)"),
        ({"only": {"decay": 10}}, "f: only.decay: must be less than 10 (got 10)"),
        ({"only": {"decay": -2}}, "f: only.decay: must be at least 0 (got -2)"),
        ({"only": {"decay": 2, "lr": 2}}, "f: only: decay needs lr of at most 1"),
        ({"loop": {}}, "f: loop.steps: required, but not given"),
        ({"loop": {"steps": 2}}, "f: loop.tail: must leave five steps (got 0)"),
        ({"loop": [1]}, "f: loop: must be a section of keys and values (got [1])"),
        ({"steps": 5}, "f: steps: unknown key; did you mean loop.steps? allowed: loop, only, optimizer"),
        ({"lop": {}}, 'f: lop: unknown key; did you mean "loop"? allowed: loop, only, optimizer'),
        ({"loop.steps": 5}, "f: loop.steps: keys with dots are for the command line; in a file, nest them"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_section(tree, line):
    assert lines(**tree) == [line]


def test_mistakes_are_reported_together():
    found = lines(optimizer={"name": "fancy", "lr": -1, "lrr": 1}, only={"decay": -2}, loop={"steps": 0.5})
    assert [line.split(": ")[1] for line in found] == ["optimizer.lr", "optimizer.lrr", "only.decay", "loop.steps"]


def test_a_key_at_home_in_several_sections_gets_no_hint():
    assert lines(lr=1) == ["f: lr: unknown key; allowed: loop, only, optimizer"]


def test_a_long_value_is_cut():
    line = fancy(lr="x" * 1000)
    assert line.endswith("x…)")
    assert len(line) < 110


def test_a_problem_is_one_printable_line():
    problem = Problem(Origin("a\nb.yaml", 3), ("x", "\ud800", 0), "is\tbad")
    assert str(problem) == r"a\nb.yaml:3: x.\ud800[0]: is\tbad"


def test_an_error_is_the_users_and_carries_its_lines():
    error = ConfigError(["a", "b"])
    assert isinstance(error, UserError)
    assert error.lines == ("a", "b")
    assert str(error) == "a\nb"
