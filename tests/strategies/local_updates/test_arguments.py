"""What a method of local updates cannot do is refused, with the value and what is allowed."""

import re

import pytest

from disttrain.config import ConfigError, load_config
from disttrain.strategies import CO2Config, DiLoCo, LocalSGDConfig, OneBehind, OverlapLocalSGD, PredictedMean, strategies
from disttrain.strategies.local_updates import Clip, LocalUpdates, LocalUpdatesConfig, OuterStep, Penalty

NAMES = ["local_sgd", "slowmo", "diloco", "streaming_diloco", "co2", "eager_diloco", "cocod_sgd", "overlap_local_sgd"]
NAMES += ["predicted_mean"]
OUTER = OuterStep()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DiLoCo(0, OUTER), "period must be at least 1, got 0"),
        (lambda: OneBehind(0, OUTER), "period must be at least 1, got 0"),
        (lambda: OverlapLocalSGD(-3, OUTER), "period must be at least 1, got -3"),
        (lambda: DiLoCo(4, OUTER, delay=-1), "delay must be from 0 to period=4, .*, got -1"),
        (lambda: DiLoCo(4, OUTER, delay=4), "delay must be less than period=4, got 4: .* take co2 or cocod_sgd"),
        (lambda: DiLoCo(4, OUTER, delay=5), "delay must be from 0 to period=4, .*, got 5"),
        (lambda: DiLoCo(4, OUTER, mix=1.5), "mix must be from 0 to 1, got 1.5"),
        (lambda: DiLoCo(4, OUTER, mix=-0.1), "mix must be from 0 to 1, got -0.1"),
        (lambda: DiLoCo(4, OUTER, mix=float("nan")), "mix must be from 0 to 1, got nan"),
        (lambda: DiLoCo(4, OUTER, warmup_steps=-1), "warmup_steps must be at least 0 .*, got -1 and 1"),
        (lambda: DiLoCo(4, OUTER, fragments=0), "fragments at least 1, got 0 and 0"),
        (lambda: OneBehind(4, OUTER, "drop"), "fresh must be one of wait, share, keep, got 'drop'"),
        (lambda: OneBehind(4, OUTER, warmup_rounds=-1), "warmup_rounds must not be negative, got -1"),
        (lambda: OneBehind(4, OUTER, warmup_steps=-2), "warmup_steps must be at least 0 .*, got -2 and 1"),
        (lambda: OverlapLocalSGD(4, OUTER, pull=0.0), "pull must be more than 0 and less than 1, got 0.0"),
        (lambda: OverlapLocalSGD(4, OUTER, pull=1.0), "pull must be more than 0 and less than 1, got 1.0"),
        (lambda: PredictedMean(4, pull=0.0), r"pull must be in \(0, 1\] and smoothing in \[0, 1\), got 0.0 and 0.7"),
        (lambda: PredictedMean(4, smoothing=1.0), "got 0.65 and 1.0"),
        (lambda: PredictedMean(4, warmup_rounds=-1), "warmup_rounds must not be negative, got -1"),
        (lambda: OuterStep(lr=0.0), "outer_lr must be positive, got 0.0"),
        (lambda: OuterStep(lr=float("nan")), "outer_lr must be positive, got nan"),
        (lambda: OuterStep(momentum=1.0), "outer_momentum must be at least 0 and less than 1, got 1.0"),
        (lambda: OuterStep(momentum=-0.1), "outer_momentum must be at least 0 and less than 1, got -0.1"),
        (lambda: Clip(0.0), "the clip threshold must be positive, got 0.0"),
        (lambda: Clip(-1.0), "the clip threshold must be positive, got -1.0"),
        (lambda: Clip(1.0, "both"), "the clip mode must be one of value, norm, got 'both'"),
        (lambda: Penalty("gaps"), "penalty must be one of none, constant, gap, stable, got 'gaps'"),
        (lambda: Penalty("constant", 0.5), "penalty_value must be at least 1, got 0.5"),
        (lambda: Penalty("constant", float("nan")), "penalty_value must be at least 1, got nan"),
    ],
)
def test_an_argument_out_of_bounds(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def mistakes(folder, *settings):
    """What loading a config with these settings of the strategy says, line by line."""
    file = folder / "run.yaml"
    file.write_text(
        "model: {name: plm, width: 16, layers: 1, heads: 1}\ndata: {name: random_tokens, sequence_length: 8}\n"
        "optimizer: {name: sgd, lr: 0.1}\ntraining: {steps: 500, batch_size: 4}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_config(file, [f"strategy.{each}" for each in settings])
    return str(caught.value)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("period=0", "strategy.period: must be at least 1 (got 0)"),
        ("period=2.5", "strategy.period: must be a whole number (got 2.5)"),
        ("warmup_steps=-1", "strategy.warmup_steps: must be at least 0 (got -1)"),
        ("perid=4", 'strategy.perid: unknown key; did you mean "period"?'),
    ],
)
def test_a_setting_that_no_method_allows(tmp_path, name, setting, message):
    assert message in mistakes(tmp_path, f"name={name}", setting)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["name=co2", "penalty=gaps"], r"strategy\.penalty: .*none.*constant.*gap.*stable"),
        (["name=co2", "penalty_value=0.5"], r"strategy\.penalty_value: must be at least 1 \(got 0\.5\)"),
        (
            ["name=co2", "find_unused_parameters=true"],
            "find_unused_parameters=true is for gradients that DDP averages, .*warmup_steps",
        ),
        (["name=co2", "penalty_value=2.0"], "penalty_value and penalty=constant go together, got penalty=gap and 2"),
        (["name=co2", "clip_mode=norm"], "clip_mode=norm does nothing without clip"),
        (
            ["name=co2", "period=10", "warmup_rounds=100"],
            "is all warm-up: strategy.warmup_rounds=100 of strategy.period=10 end at step",
        ),
        (["name=co2", "clip=-1"], r"strategy\.clip: must be greater than 0.* \(got -1\)"),
        (["name=co2", "clip_mode=both"], r"strategy\.clip_mode: .*value.*norm"),
        (["name=co2", "warmup_rounds=-1"], r"strategy\.warmup_rounds: must be at least 0 \(got -1\)"),
        (["name=co2", "outer_momentum=1"], r"strategy\.outer_momentum: must be less than 1 \(got 1\)"),
        (["name=co2", "outer_lr=0"], r"strategy\.outer_lr: must be greater than 0 \(got 0\)"),
        (["name=slowmo", "outer_momentum=-0.1"], r"strategy\.outer_momentum: must be at least 0 \(got -0\.1\)"),
        (["name=slowmo", "outer_momentum=1"], r"strategy\.outer_momentum: must be less than 1 \(got 1\)"),
        (["name=diloco", "outer_lr=-1"], r"strategy\.outer_lr: must be greater than 0 \(got -1\)"),
        (["name=eager_diloco", "outer_momentum=1"], r"strategy\.outer_momentum: must be less than 1 \(got 1\)"),
        (["name=overlap_local_sgd", "pull=0"], r"strategy\.pull: must be greater than 0 \(got 0\)"),
        (["name=overlap_local_sgd", "pull=1"], r"strategy\.pull: must be less than 1 \(got 1\)"),
        (["name=overlap_local_sgd", "outer_momentum=1"], r"strategy\.outer_momentum: must be less than 1 \(got 1\)"),
        (["name=predicted_mean", "pull=1.1"], r"strategy\.pull: must be at most 1 \(got 1\.1\)"),
        (["name=predicted_mean", "smoothing=1"], r"strategy\.smoothing: must be less than 1 \(got 1\)"),
        (
            ["name=predicted_mean", "period=10", "warmup_rounds=50"],
            r"end at step 500; take fewer, or strategy\.name=local_sgd, which always waits",
        ),
        (["name=streaming_diloco", "mix=1.5"], r"strategy\.mix: must be at most 1 \(got 1\.5\)"),
        (["name=streaming_diloco", "delay=-1"], r"strategy\.delay: must be at least 0 \(got -1\)"),
        (["name=streaming_diloco", "period=4", "delay=4"], r"strategy\.delay: delay=4 must be less than period=4; .*co2"),
        (["name=streaming_diloco", "fragments=0"], r"strategy\.fragments: must be at least 1 \(got 0\)"),
        (["name=streaming_diloco", "period=4", "fragments=5"], r"strategy\.fragments: fragments=5 must be at most period=4"),
        (["name=local_sgd", "period=501"], r"steps=500 is less than a round: .*strategy\.period=501.*strategy\.name=local"),
        (["name=co2", "period=300", "warmup_steps=201"], r"steps=500 is less than a round.*after strategy\.warmup_steps=201"),
        (["name=co3"], r'unknown strategy "co3"; did you mean "co2"\?'),
    ],
)
def test_a_setting_out_of_bounds(tmp_path, settings, message):
    assert re.search(message, mistakes(tmp_path, *settings))


def test_a_round_that_just_fits_is_taken():
    LocalSGDConfig(period=300, warmup_steps=200).check_steps(500)
    with pytest.raises(ValueError, match="less than a round"):
        LocalSGDConfig(period=300, warmup_steps=201).check_steps(500)


@pytest.mark.parametrize("name", NAMES)
def test_every_method_builds_from_its_defaults(name):
    config = strategies[name]()
    assert isinstance(config, LocalUpdatesConfig)
    assert isinstance(config.build(), LocalUpdates)
    assert config.name == name


def test_a_config_reaches_the_strategy():
    built = CO2Config(period=7, warmup_steps=3, outer_lr=0.8, outer_momentum=0.4, penalty="constant", penalty_value=1.7, clip=0.3,
                      clip_mode="norm", warmup_rounds=2).build()  # fmt: skip
    assert (built.period, built.warmup_steps, built.delay, built.warmup_rounds, built.fresh) == (7, 3, 7, 2, "wait")
    assert built.outer == OuterStep(0.8, 0.4, clip=Clip(0.3, "norm"))
    assert built.penalty == Penalty("constant", 1.7)
