"""Schedules: bounded, rising and then falling, without jumps, the same curve for any number of updates."""

import math
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from disttrain.optim import ConstantConfig, CosineConfig, WSDCConfig, WSDConfig, schedules

SHAPES = ("1-sqrt", "linear", "cosine", "exponential")
RATIOS = {"warmup_ratio", "decay_ratio", "constant_ratio"}
totals = st.integers(1, 400)


@st.composite
def configs(draw, names=("constant", "cosine", "wsd", "wsdc"), least=0.0):
    """Any valid schedule whose phases each take at least the share ``least``."""
    parts = [draw(st.floats(least, 1)) for _ in range(4)]
    assume(sum(parts) > 0)
    warmup, _, decay, constant = (max(least, part / sum(parts)) for part in parts)
    assume(warmup + decay + constant <= 1 - least)
    minimum = draw(st.floats(0.01, 1))
    shape = draw(st.sampled_from(SHAPES))
    phases = {"warmup_ratio": warmup, "decay_ratio": decay, "minimum_lr_ratio": minimum, "decay_shape": shape}
    made = {
        "constant": lambda: ConstantConfig(warmup_ratio=warmup),
        "cosine": lambda: CosineConfig(warmup_ratio=warmup, minimum_lr_ratio=minimum),
        "wsd": lambda: WSDConfig(**phases),
        "wsdc": lambda: WSDCConfig(**phases, constant_ratio=constant),
    }
    return made[draw(st.sampled_from(names))]()


def curve(config, total):
    return [config.multiplier(update, total) for update in range(total)]


def warmup_updates(config, total):
    return round(config.warmup_ratio * total)


@given(configs(), totals)
def test_stays_between_the_minimum_and_one_once_warm(config, total):
    values = curve(config, total)
    minimum = getattr(config, "minimum_lr_ratio", 1.0)
    assert all(0 < value <= 1 for value in values)
    assert all(value >= minimum - 1e-12 for value in values[warmup_updates(config, total) :])


@given(configs(), totals)
def test_rises_and_then_never_again(config, total):
    values = curve(config, total)
    top = values.index(max(values))
    assert values[: top + 1] == sorted(values[: top + 1])
    assert values[top:] == sorted(values[top:], reverse=True)


@given(st.floats(0, 1), totals)
def test_warm_up_is_linear_and_starts_above_zero(warmup, total):
    config = ConstantConfig(warmup_ratio=warmup)
    warm = max(1, warmup_updates(config, total))
    assert curve(config, total) == [min(1.0, (update + 1) / warm) for update in range(total)]


@given(configs(least=0.05))
def test_has_no_jumps(config):
    values = curve(config, 4000)
    steepest = math.sqrt(1 / 190)  # the first update of a 1-sqrt decay of 5 % of 4000 updates, the rounding allowed for
    assert all(abs(later - earlier) <= steepest for earlier, later in pairwise(values))


@given(configs(), st.integers(1, 50), st.integers(2, 5))
def test_more_updates_stretch_the_same_curve(config, hundreds, factor):
    total = 100 * hundreds
    config = type(config)(**{**config.model_dump(), **rounded(config)})
    start = warmup_updates(config, total)
    assert [config.multiplier(factor * update, factor * total) for update in range(start, total)] == pytest.approx(
        curve(config, total)[start:], abs=1e-9
    )


def rounded(config):
    """The config's shares of the run in whole hundredths, so that phases start at whole updates."""
    return {key: math.floor(value * 100) / 100 for key, value in config.model_dump().items() if key in RATIOS}


@given(configs(names=("wsd",)), totals)
def test_wsd_is_wsdc_without_the_constant_phase(config, total):
    settings = config.model_dump(exclude={"name"})
    assert curve(WSDCConfig(**settings, constant_ratio=0.0), total) == curve(config, total)


@given(st.floats(0, 0.9), st.floats(0, 1), totals)
def test_cosine_is_wsd_without_a_plateau(warmup, minimum, total):
    cosine = CosineConfig(warmup_ratio=warmup, minimum_lr_ratio=minimum)
    phases = WSDConfig(warmup_ratio=warmup, decay_ratio=1 - warmup, decay_shape="cosine", minimum_lr_ratio=minimum)
    assume(round(warmup * total) == round((1 - (1 - warmup)) * total))  # a half may round either way
    assert curve(phases, total) == pytest.approx(curve(cosine, total))


@pytest.mark.parametrize("shape", SHAPES)
def test_wsdc_has_its_four_phases_where_they_are_said_to_be(shape):
    config = WSDCConfig(warmup_ratio=0.1, decay_ratio=0.4, constant_ratio=0.2, minimum_lr_ratio=0.1, decay_shape=shape)
    values = curve(config, 100)
    assert values[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert values[9:41] == [1.0] * 32
    assert 0.1 < values[79] < values[42] < values[41] < 1.0
    assert values[80:] == [0.1] * 20


@pytest.mark.parametrize(
    ("shape", "quarter", "half"),
    [
        ("1-sqrt", 0.5, 1 - math.sqrt(0.5)),
        ("linear", 0.75, 0.5),
        ("cosine", 0.5 + math.sqrt(0.125), 0.5),
    ],
)
def test_decay_shapes_are_their_formulas(shape, quarter, half):
    config = WSDConfig(warmup_ratio=0.0, decay_ratio=0.8, decay_shape=shape, minimum_lr_ratio=0.2)
    assert config.multiplier(40, 100) == pytest.approx(0.2 + 0.8 * quarter)
    assert config.multiplier(60, 100) == pytest.approx(0.2 + 0.8 * half)


def test_exponential_decay_falls_by_equal_factors():
    config = WSDConfig(warmup_ratio=0.0, decay_ratio=1.0, decay_shape="exponential", minimum_lr_ratio=0.01)
    assert [config.multiplier(update, 4) for update in range(5)] == pytest.approx([1, 10**-0.5, 0.1, 10**-1.5, 0.01])


@given(configs(), totals, st.integers(0, 10))
def test_after_the_end_the_last_phase_goes_on(config, total, beyond):
    end = 1.0 if isinstance(config, ConstantConfig) else config.minimum_lr_ratio
    assume(warmup_updates(config, total) < total)
    assert config.multiplier(total + beyond, total) == end


def test_no_update_is_wasted_at_either_end():
    config = WSDConfig(warmup_ratio=0.5, decay_ratio=0.5, decay_shape="linear", minimum_lr_ratio=0.0)
    assert curve(config, 8) == [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25]


def test_warm_up_is_over_when_the_decay_begins_however_the_shares_round():
    config = WSDCConfig(warmup_ratio=0.5, decay_ratio=0.16, constant_ratio=0.34)
    assert curve(config, 3) == [1.0, 1.0, 0.1]  # alone, half of 3 updates would round to 2


def test_the_default_is_no_schedule():
    assert schedules.names() == ["constant", "cosine", "wsd", "wsdc"]
    assert set(curve(schedules[schedules.default](), 50)) == {1.0}


@pytest.mark.parametrize(
    ("config", "settings", "reason"),
    [
        (WSDConfig, {"warmup_ratio": 0.5, "decay_ratio": 0.6}, r"warmup_ratio=0\.5 \+ decay_ratio=0\.6 exceeds 1"),
        (WSDCConfig, {"decay_ratio": 0.8, "constant_ratio": 0.2}, r"constant_ratio=0\.2 exceeds 1"),
        (WSDConfig, {"decay_shape": "exponential"}, "never reaches minimum_lr_ratio=0"),
        (WSDCConfig, {"minimum_lr_ratio": 0.0}, r"trains nothing; raise it, or use schedule\.name=wsd"),
        (WSDConfig, {"decay_shape": "sqrt"}, "1-sqrt"),
        (CosineConfig, {"minimum_lr_ratio": 1.1}, "less than or equal to 1"),
        (ConstantConfig, {"warmup_ratio": -0.1}, "greater than or equal to 0"),
        (ConstantConfig, {"minimum_lr_ratio": 0.1}, "not permitted"),
    ],
)
def test_impossible_settings_are_refused_with_the_reason(config, settings, reason):
    with pytest.raises(ValueError, match=reason):
        config(**settings)


def test_shares_that_fill_the_run_exactly_are_accepted():
    assert WSDCConfig(warmup_ratio=0.1, decay_ratio=0.7, constant_ratio=0.2).multiplier(0, 10) == 1.0
