"""Whatever is done to a config, the answer is a usable config or readable lines; never another exception."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disttrain.config import ConfigError, RunConfig, dump, load_config
from disttrain.config_yaml import leaves

CONFIGS = [
    """\
model: {name: plm, width: 128, layers: 4, heads: 4}
data: {name: python_source, sequence_length: 128}
optimizer: {name: muon, lr: 8e-3, adamw_lr: 4e-3}
schedule: {name: wsd, warmup_ratio: 0.05, decay_ratio: 0.4}
strategy: {name: ddp}
training: {steps: 1500, batch_size: 16, precision: bf16}
""",
    """\
# Everything in block style.
data:
  name: text
  paths: [corpus, "more text"]
partition: {name: source, on_small: repair, min_samples: 4}
optimizer:
  name: adamw
  betas: [0.9, 0.95]
  roles:
    "*.bias": norm
strategy:
  name: ddp_cast
  dtype: fp16
training:
  steps: 100
  batch_size: 24
  gradient_accumulation: 2
  clip_norm: null
  stop_after: 50
  resume: auto
checkpoint: {every: 10, keep: 3}
recording:
  log_every: 1
  wandb:
    project: mine
run:
  name: try-1
  directory: runs/try
launch:
  backend: gloo
  interface: eth0
  threads: 2
  timeout: 50s
""",
    """\
model: {name: import, target: "torch.nn:Linear", arguments: {in_features: 3, out_features: 2, bias: true}}
optimizer: &settings {name: import, target: "torch.optim:Adagrad", arguments: {eps: 1e-8}}
imports: []
""",
]
DEFAULTS = {".".join(path): value for path, value in leaves(RunConfig().model_dump(mode="json"))}
KEYS = sorted(DEFAULTS.keys() | RunConfig.model_fields.keys())
SCALARS = [
    "-1",
    "0",
    "1.5",
    "1e6",
    "1e999",
    "true",
    "null",
    "on",
    "text",
    "''",
    "5 min",
    "[",
    "{}",
    "[1, 2]",
    "{name: sgd}",
]
SCALARS += ["{a: {b: [c]}}", "*settings", "!!python/name:os.abort", "<<", "\ud800", "\0", "9" * 500]

trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
yaml_values = st.sampled_from(SCALARS) | trees.map(json.dumps)
harmless_overrides = st.sampled_from(sorted(DEFAULTS)).map(lambda key: f"{key}={json.dumps(DEFAULTS[key])}")
other_overrides = st.builds("{}={}".format, st.sampled_from(KEYS) | st.text("ab.=_ ", max_size=6), yaml_values)
overrides = st.just([]) | st.lists(harmless_overrides | other_overrides | st.text(max_size=10), max_size=3)


def typo(text, draw):
    """Swap, drop or double a letter somewhere."""
    at = draw(st.integers(0, max(0, len(text) - 2)))
    first, second = text[at : at + 1], text[at + 1 : at + 2]
    return text[:at] + draw(st.sampled_from([second + first, first, first * 2 + second])) + text[at + 2 :]


def other_value(text, draw):
    """Replace what stands behind a colon."""
    colons = [match.end() for match in re.finditer(": ", text)] or [0]
    start = draw(st.sampled_from(colons))
    end = re.compile(r"[,}\n]|$").search(text, start).start()
    return text[:start] + draw(yaml_values) + text[end:]


def other_lines(text, draw):
    """Delete, double or move a line, or indent it otherwise."""
    lines = text.splitlines() or [""]
    line = lines.pop(draw(st.integers(0, len(lines) - 1)))
    new = draw(st.sampled_from([[], [line, line], [line], ["  " + line], [line.strip()], ["\t" + line]]))
    at = draw(st.integers(0, len(lines)))
    return "\n".join([*lines[:at], *new, *lines[at:]])


def other_section(text, draw):
    """Add a section of arbitrary content, or a line that belongs to nothing."""
    return f"{text}\n{draw(st.sampled_from(KEYS) | st.text(max_size=5))}: {draw(yaml_values)}\n"


def other_bytes(text, draw):
    """Put arbitrary bytes somewhere."""
    at = draw(st.integers(0, len(text)))
    return text[:at] + draw(st.binary(max_size=4)).decode(errors="surrogateescape") + text[at + draw(st.integers(0, 3)) :]


@st.composite
def mutated_configs(draw):
    text = draw(st.sampled_from(CONFIGS))
    for mutate in draw(st.lists(st.sampled_from([typo, other_value, other_lines, other_section, other_bytes]), max_size=3)):
        text = mutate(text, draw)
    return text.encode(errors="surrogateescape" if "\ud800" not in text else "surrogatepass")


@pytest.mark.parametrize("text", CONFIGS)
def test_what_is_mutated_is_valid(tmp_path, text):
    (tmp_path / "run.yaml").write_text(text)
    load_config(tmp_path / "run.yaml")


@settings(max_examples=500)
@given(mutated_configs(), overrides)
def test_a_mutated_config_is_usable_or_refused_in_readable_lines(tmp_path_factory, content, overrides):
    file = tmp_path_factory.getbasetemp() / "mutated.yaml"
    file.write_bytes(content)
    config, lines = outcome(file, overrides)
    if config is None:
        assert lines
        assert all(line.isprintable() and line.startswith((str(file), "command line: ")) for line in lines)
    else:
        file.write_text(dump(config), encoding="utf-8")
        assert load_config(file).config == config


def outcome(file, overrides):
    """The config, or None and the mistakes."""
    try:
        return load_config(file, overrides).config, ()
    except ConfigError as error:
        return None, error.lines
