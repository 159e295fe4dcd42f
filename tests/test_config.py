"""A config loads whole or every mistake in it is told; it knows where its values come from and reads back as itself."""

import copy
import json
import pickle
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import disttrain
from disttrain.compression import compressors
from disttrain.compression.sign import SignConfig
from disttrain.compression.sparse import BlockTopKConfig
from disttrain.config import REGISTRIES, ConfigError, RunConfig, difference, dump, load_config, show
from disttrain.models import PlmConfig
from disttrain.objectives import NextTokenConfig, objectives
from disttrain.optim import AdamWConfig, MuonConfig, SGDConfig, optimizers

QUICKSTART = """\
model: {name: plm, width: 128, layers: 4, heads: 4}
data: {name: python_source, sequence_length: 128}
optimizer: {name: muon, lr: 8e-3, adamw_lr: 4e-3}
schedule: {name: wsd, warmup_ratio: 0.05, decay_ratio: 0.4}
strategy: {name: ddp}
training: {steps: 1500, batch_size: 16, precision: bf16}
"""
PLUG_IN = """\
from typing import Literal
from pydantic import Field
from disttrain.objectives import NextToken, ObjectiveConfig, objectives
from disttrain.optim import OptimizerConfig, optimizers

@optimizers.register
class LionConfig(OptimizerConfig):
    name: Literal["lion"] = "lion"
    lr: float = Field(1e-4, gt=0)
    beta: float = Field(0.9, ge=0, lt=1)

@objectives.register
class SmoothedConfig(ObjectiveConfig):
    name: Literal["smoothed"] = "smoothed"
    amount: float = 0.1
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The working directory; what a test registers, imports or puts on the search path is gone after it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    for registry in REGISTRIES.values():
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    return tmp_path


@pytest.fixture
def load(folder):
    """``load(text, *overrides)``: the text as ``run.yaml``, loaded."""

    def load_text(text, *overrides):
        (folder / "run.yaml").write_text(text)
        return load_config("run.yaml", overrides)

    return load_text


@pytest.fixture
def mistakes(load):
    """``mistakes(text, *overrides)``: the lines of the ConfigError."""

    def lines(text, *overrides):
        with pytest.raises(ConfigError) as caught:
            load(text, *overrides)
        return list(caught.value.lines)

    return lines


# --- loading --------------------------------------------------------------------------------------------------------


def test_a_file_is_loaded(load):
    config = load(QUICKSTART).config
    assert type(config) is RunConfig
    assert config.model == PlmConfig(width=128, layers=4, heads=4)
    assert config.optimizer == MuonConfig(lr=8e-3, adamw_lr=4e-3)
    assert config.objective == NextTokenConfig()
    assert (config.training.steps, config.training.precision, config.training.seed) == (1500, "bf16", 0)


def values(config):
    return config.model_dump(mode="json")


def test_every_default_is_usable(load):
    assert load("{}").config == load("{}", "run.name=run").config
    assert difference(values(RunConfig()), values(load("{}").config)) == [("run.name", None, "run")]


def test_a_section_whose_keys_are_all_commented_out_is_empty(load):
    assert load("training:\n  # steps: 3\noptimizer:\n").config == load("{}").config


def test_a_section_without_a_name_is_of_the_default_class(load):
    assert load("optimizer: {betas: [0.8, 0.9]}").config.optimizer == AdamWConfig(betas=(0.8, 0.9))


def test_a_config_can_be_made_in_code():
    config = RunConfig(optimizer=SGDConfig(lr=0.5))
    assert config.model_copy(update={"optimizer": AdamWConfig()}) == RunConfig()
    assert pickle.loads(pickle.dumps(config)) == config


def test_the_public_name():
    assert disttrain.load_config is load_config


def test_overrides_win(load):
    config = load(QUICKSTART, "training.steps=2e3", "optimizer.lr=1", "launch.timeout=2min").config
    assert (config.training.steps, config.optimizer.lr, config.launch.timeout) == (2000, 1.0, 120.0)


@pytest.mark.parametrize(
    ("file", "name"), [("quick start!.yaml", "quick-start"), ("a.b.yml", "a.b"), (".x", "x"), ("ä.yaml", "run")]
)
def test_the_run_is_named_after_the_file(folder, file, name):
    (folder / file).write_text("{}")
    assert load_config(folder / file).config.run.name == name


# --- swapping -------------------------------------------------------------------------------------------------------


def test_a_swapped_class_takes_its_own_defaults(load):
    loaded = load(QUICKSTART, "optimizer.name=sgd")
    assert loaded.config.optimizer == SGDConfig()
    assert loaded.notices == ("optimizer.name=sgd replaces muon, so its settings no longer apply: lr, adamw_lr (run.yaml:3)",)


def test_overrides_of_the_swapped_section_apply_in_any_order(load):
    loaded = load(QUICKSTART, "optimizer.lr=0.3", "optimizer.name=sgd")
    assert loaded.config.optimizer == SGDConfig(lr=0.3)
    assert loaded.notices[0].endswith("no longer apply: adamw_lr (run.yaml:3)"), "what is given anew is not lost"
    assert load(QUICKSTART, "optimizer.name=sgd", "optimizer.lr=0.3").config.optimizer == SGDConfig(lr=0.3)


def test_naming_the_same_class_keeps_its_settings(load):
    loaded = load(QUICKSTART, "optimizer.name=muon")
    assert loaded.config == load(QUICKSTART).config
    assert loaded.notices == ()


# --- origins and text -----------------------------------------------------------------------------------------------


def test_every_value_knows_where_it_comes_from(load):
    loaded = load(QUICKSTART, "training.seed=3", "optimizer.name=sgd")
    assert {key: loaded.origins[key] for key in ("model.width", "training.seed", "training.clip_norm", "optimizer.lr")} == {
        "model.width": "run.yaml:1",
        "training.seed": "command line",
        "training.clip_norm": "default",
        "optimizer.lr": "default",
    }
    assert (loaded.origins["optimizer.name"], loaded.origins["run.name"]) == ("command line", "default")


def test_which_sections_are_set(load):
    loaded = load("data: {sequence_length: 3}\nmodel:\n", "optimizer.lr=1")
    assert [section for section in RunConfig.model_fields if loaded.sets(section)] == ["data", "optimizer"]
    assert loaded.sets("data.sequence_length")
    assert not loaded.sets("data.name")


def test_show_prints_each_value_with_its_origin(load):
    lines = show(load(QUICKSTART, "training.seed=3")).splitlines()
    assert "  width: 128                     # run.yaml:1" in lines
    assert "  seed: 3                        # command line" in lines
    assert "  timeout: 300s                  # default" in lines
    assert len({line.index("#") for line in lines if "#" in line}) == 1


def test_what_is_shown_or_dumped_loads_as_the_same_config(load):
    loaded = load(QUICKSTART, "recording.wandb={project: 'a: b'}", "optimizer.roles={'*.x': matrix}", "run.directory=ü ✓")
    assert load(dump(loaded.config)).config == loaded.config
    assert load(show(loaded)).config == loaded.config
    assert [type(value) for value in load(dump(loaded.config)).config.training.__dict__.values()] == [
        type(value) for value in loaded.config.training.__dict__.values()
    ]


settings_of_any_kind = st.fixed_dictionaries(
    {},
    optional={
        "training": st.fixed_dictionaries(
            {"clip_norm": st.none() | st.floats(min_value=0, exclude_min=True, allow_infinity=False)}
        ),
        "run": st.fixed_dictionaries({"directory": st.text(st.characters(codec="utf-8"), min_size=1)}),
        "launch": st.fixed_dictionaries({"timeout": st.floats(1e-9, 1e9), "threads": st.none() | st.integers(1, 2**40)}),
        "optimizer": st.sampled_from([{"name": "sgd"}, {"name": "adamw", "betas": [0, 0.5]}, {"name": "muon", "lr": 1}]),
        "model": st.fixed_dictionaries(
            {
                "name": st.just("import"),
                "target": st.just("torch.nn:Identity"),
                "arguments": st.dictionaries(
                    st.text(st.characters(codec="utf-8"), min_size=1, max_size=9),
                    st.none()
                    | st.booleans()
                    | st.integers()
                    | st.floats(allow_nan=False, allow_infinity=False)
                    | st.text("ab:# '"),
                ),
            }
        ),
    },
)


@settings(max_examples=50)
@given(settings_of_any_kind)
def test_any_config_survives_being_dumped(tmp_path_factory, tree):
    folder = tmp_path_factory.getbasetemp()
    (folder / "run.yaml").write_text(json.dumps(tree))
    loaded = load_config(folder / "run.yaml")
    for text in (dump(loaded.config), show(loaded)):
        (folder / "again.yaml").write_text(text, encoding="utf-8")
        assert load_config(folder / "again.yaml").config == loaded.config


def test_a_config_may_be_json(load):
    assert load(json.dumps({"run": {"directory": "\U00010000/ü"}})).config.run.directory == "\U00010000/ü"


def test_difference_names_what_changed(load):
    old, new = load(QUICKSTART).config, load(QUICKSTART, "training.steps=9", "strategy.name=ddp_cast").config
    assert difference(values(old), values(old)) == []
    assert difference(values(old), values(new)) == [
        ("strategy.name", "ddp", "ddp_cast"),
        ("training.steps", 1500, 9),
        ("strategy.dtype", None, "bf16"),
    ]


# --- mistakes -------------------------------------------------------------------------------------------------------


def test_all_mistakes_come_in_one_report_in_the_order_of_the_lines(mistakes):
    text = QUICKSTART.replace("lr: 8e-3", "lr: -1, beta: 1").replace("steps: 1500", "steps: 1.5") + "model: {}\n"
    assert mistakes(text, "optimiser.lr=1", "launch.threads=many", "training.seed") == [
        "run.yaml:3: optimizer.lr: must be greater than 0 (got -1)",
        "run.yaml:3: optimizer.beta: unknown key; allowed: adamw_betas, adamw_decay, adamw_eps, adamw_lr, "
        "adamw_weight_decay, adjust, coefficients, compile, conv, experts, lr, momentum, name, nesterov, ns_dtype, roles, "
        "sharding, split, weight_decay",
        "run.yaml:6: training.steps: must be a whole number (got 1.5)",
        "run.yaml:7: model: given twice, first at run.yaml:1",
        "command line: training.seed: not an override; write section.key=value",
        'command line: launch.threads: must be a whole number (got "many")',
        'command line: optimiser: unknown key; did you mean "optimizer"? allowed: checkpoint, data, federated, imports, launch, '
        "model, objective, optimizer, partition, recording, run, schedule, strategy, training",
    ]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("optimizer.name=adamww", 'optimizer.name: unknown optimizer "adamww"; did you mean "adamw"? '
                                  "registered: adamw, cosmos, import, muon, sgd, soap"),
        ("objective.name=next-token", 'objective.name: unknown objective "next-token"; did you mean "next_token"? '
                                      "registered: classification, next_token"),
        ("lr=1", "lr: unknown key; did you mean optimizer.lr? allowed: checkpoint, data, federated, imports, launch, model, "
                 "objective, optimizer, partition, recording, run, schedule, strategy, training"),
        ("checkpoint.keep=1", "checkpoint.keep: must be at least 2: a damaged newest checkpoint must leave one to fall "
                              "back to (got 1)"),
        ("checkpoint.seed=1", "checkpoint.seed: unknown key; did you mean training.seed? allowed: every, keep"),
        ("recording.wandb=true", "recording.wandb: must be a section of keys and values (got true)"),
        ("recording.wandb.mode=online", "recording.wandb.project: required, but not given"),
        ("run.name=a/b", 'run.name: must be 1 to 100 letters, digits, dots, underscores and dashes, the first not a '
                         'dot or dash (got "a/b")'),
        ("run.name=2024", "run.name: must be text (got 2024, which needs quotes to be text)"),
        ("launch.timeout=1 week", "launch.timeout: must be a duration such as 50ms, 300s, 5min or a number of "
                                  'seconds; known units: s, ms, us, min, h (got "1 week")'),
        ("launch.timeout=0s", "launch.timeout: must be greater than 0 (got 0.0)"),
        ("training.steps=true", "training.steps: must be a whole number (got true)"),
        ("training.seed=1e19", "training.seed: must be a whole number (got 1e+19)"),
        ("training.clip_norm=0", "training.clip_norm: must be greater than 0 (got 0)"),
        ("training.stop_after=1001", "training: stop_after=1001 must be at most training.steps=1000; the run would "
                                     "end before and ignore it"),
        ("training.gradient_accumulation=3", "training.gradient_accumulation: must divide training.batch_size=16, so "
                                             "that all passes are of one size (got 3)"),
        ("launch={backend: nccl, device: cpu}", "launch.device: must not be cpu with launch.backend=nccl, which "
                                                'connects GPUs only; use gloo or auto (got "cpu")'),
    ],
)  # fmt: skip
def test_a_mistake_on_the_command_line(mistakes, override, line):
    assert mistakes("{}", override) == [f"command line: {line}"]


def test_resuming_needs_a_folder(load, mistakes):
    assert mistakes("training: {resume: auto}") == [
        "run.yaml: run: directory is needed for training.resume=auto; without one, every run gets a new folder"
    ]
    assert load("training: {resume: auto}\nrun: {directory: runs/x}").config.training.resume == "auto"


def test_what_is_required_and_missing_is_told_where_it_belongs(mistakes):
    assert mistakes("\ndata:\n  name: text\n") == ["run.yaml:2: data.paths: required, but not given"]
    assert mistakes("{}", "data.name=text") == ["command line: data.paths: required, but not given"]


def test_a_file_that_cannot_be_read_is_one_mistake(mistakes):
    assert mistakes("a: [") == ["run.yaml:1: not valid YAML: while parsing a flow node, expected the node content, "
                                "but found '<stream end>'"]  # fmt: skip
    with pytest.raises(ConfigError, match=r"^none\.yaml: cannot be read: no such file or directory$"):
        load_config("none.yaml", ["data.name=text"])


def test_the_batch_must_fit_the_workers(load):
    config = load("training: {batch_size: 24, gradient_accumulation: 2}").config
    config.check_world(3)
    for world_size, message in (
        (5, "multiple of 10 (5 workers × training.gradient_accumulation=2), such as 20 or 30"),
        (16, "32 ("),
    ):
        with pytest.raises(ConfigError) as caught:
            config.check_world(world_size)
        assert message in str(caught.value)
        assert str(caught.value).endswith("(got 24)")


# --- third parties --------------------------------------------------------------------------------------------------


def test_what_an_imported_module_registers_can_be_used(load, folder):
    (folder / "plug_in.py").write_text(PLUG_IN)
    loaded = load("imports: [plug_in]\noptimizer: {name: lion, beta: 0.5}", "objective.name=smoothed")
    assert (loaded.config.optimizer.beta, loaded.config.optimizer.lr) == (0.5, 1e-4)
    assert loaded.config.objective.amount == 0.1
    assert load(dump(loaded.config)).config == loaded.config


COMPRESSOR = """\
from typing import Literal
from disttrain.compression import CompressorConfig, Identity, compressors

@compressors.register
class HalfConfig(CompressorConfig):
    name: Literal["half"] = "half"
    share: float = 0.5
    def build(self):
        return Identity()
"""


def test_an_imported_compressor_can_be_used_inside_a_strategy(load, folder, monkeypatch):
    for attribute in ("_classes", "_holders"):
        monkeypatch.setattr(compressors, attribute, copy.copy(getattr(compressors, attribute)))
    (folder / "plug_in.py").write_text(COMPRESSOR)
    loaded = load("imports: [plug_in]\nstrategy: {name: compressed, compressor: {name: half, share: 0.25}}")
    assert loaded.config.strategy.compressor.share == 0.25
    assert load(dump(loaded.config)).config == loaded.config


def test_components_inside_a_component_take_defaults_and_are_swapped_like_others(load):
    loaded = load("strategy: {name: compressed, compressor: {ratio: 0.05}}")
    assert loaded.config.strategy.compressor == BlockTopKConfig(ratio=0.05)
    assert loaded.origins["strategy.compressor.ratio"] == "run.yaml:1"
    loaded = load("strategy: {name: compressed, compressor: {ratio: 0.05}}", "strategy.compressor.name=sign")
    assert loaded.config.strategy.compressor == SignConfig()
    assert "strategy.compressor.name=sign replaces block_top_k, so its settings no longer apply: ratio" in loaded.notices[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("feedback: {name: econtrol, eta: 0.5}", "feedback: eta=0.5 feeds back more than the compressor can send, and diverges"),
        ("feedback: {name: econtrol, eta: 0.5}", "so take eta ≤ 2δ = 0.02"),
        ("compressor: {name: qsgd}", "feedback: error feedback needs a contraction, which QSGD is not"),
        ("compressor: {name: rand_k, unbiased: true}", "take feedback none, or unbiased=false"),
        ("reducer: all_reduce", "reducer: reducer all_reduce sums payloads, and those of BlockTopK cannot be summed"),
        (
            "{compressor: {name: power_sgd}, reducer: gather}",
            "not for PowerSGD, whose factors are averaged by all-reduce: take auto",
        ),
        ("compressor: {ratio: 0.001}", "ratio=0.001 of block=100 is less than half an entry: take block ≥ 1000"),
        ("compressor: {name: top_kk}", 'unknown compressor "top_kk"; did you mean "top_k"?'),
        ("feedback: {name: ef15}", 'unknown feedback "ef15"; did you mean'),
        ("feedback: {name: ef14, eta: 1}", "strategy.feedback.eta: unknown key"),
    ],
)
def test_what_does_not_work_together_is_refused_with_the_reason_and_the_alternative(mistakes, settings, message):
    inner = settings.removeprefix("{").removesuffix("}") if settings.startswith("{") else settings
    (line,) = mistakes(f"strategy: {{name: compressed, {inner}}}")
    assert message in line
    assert 'got "name=' not in line


def test_modules_beside_the_file_are_found(folder):
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere/plug_in.py").write_text(PLUG_IN)
    (folder / "elsewhere/run.yaml").write_text("{imports: [plug_in], optimizer: {name: lion}}")
    assert load_config("elsewhere/run.yaml").config.optimizer.name == "lion"


def test_names_are_checked_against_what_is_registered_now(load, mistakes, folder):
    assert "registered: classification, next_token" in mistakes("objective: {name: smoothed}")[0]
    (folder / "plug_in.py").write_text(PLUG_IN)
    assert load("objective: {name: smoothed}", "imports=[plug_in]").config.objective.name == "smoothed"
    (line,) = mistakes("objective: {name: smooth}\nimports: [plug_in]")
    assert line.endswith('unknown objective "smooth"; did you mean "smoothed"? registered: classification, next_token, smoothed')


@pytest.mark.parametrize(
    ("body", "reason"),
    [("1 / 0", "ZeroDivisionError: division by zero"), ("raise SystemExit('no\\nway')", "SystemExit: no way")],
)
def test_a_module_that_fails_is_one_clear_mistake(mistakes, folder, body, reason):
    (folder / "broken.py").write_text(body)
    assert mistakes("optimizer: {name: lion}\nimports: [broken]") == [
        f"run.yaml:2: imports[0]: broken cannot be imported: {reason}"
    ]


@pytest.mark.parametrize("name", ["no_such_module", ".relative", "''", "a b", "5", "[x]"])
def test_what_is_no_module_is_a_mistake(mistakes, name):
    assert mistakes(f"imports: [{name}]")[0].startswith("run.yaml:1: imports[0]: ")


def test_registries_have_their_section_and_default():
    assert {section: registry.default for section, registry in REGISTRIES.items()} == {
        "model": "plm", "data": "python_source", "partition": "none", "objective": "next_token",
        "optimizer": "adamw", "schedule": "constant", "strategy": "ddp",
    }  # fmt: skip
    assert all(registry.default in registry for registry in REGISTRIES.values())


def test_tests_leave_the_registries_as_they_were():
    assert "lion" not in optimizers
    assert "smoothed" not in objectives
