"""Fragments are all of the vector, each part once; each is exchanged once in a round, in a step of its own, and lands later."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from disttrain.parameters import Unit
from disttrain.strategies import DiLoCo
from disttrain.strategies.local_updates import OuterStep
from disttrain.strategies.local_updates.fragments import fragments_of, layers_of
from disttrain.worlds import StackedWorld
from tests.strategies.local_updates.drive import begun, layout_of, local_step, recorded

LAYERS = {  # each with its parameters, as models name them
    "embedding": ["embedding.weight"],
    "blocks.0": ["blocks.0.norm.scale", "blocks.0.attention.q.weight"],
    "blocks.3": ["blocks.3.attention.q.weight", "blocks.3.experts.0.up", "blocks.3.experts.1.up"],
    "blocks.30": ["blocks.30.attention.q.weight"],
    "transformer.h.0": ["transformer.h.0.w", "transformer.h.0.b"],
    "transformer.h.1": ["transformer.h.1.w"],
    "layer1.0": ["layer1.0.conv1.weight", "layer1.0.bn1.weight"],
    "layer1.1": ["layer1.1.conv1.weight"],
    "0": ["0.weight", "0.bias"],
    "2": ["2.weight"],
    "conv1": ["conv1.weight", "conv1.bias"],
    "scale": ["scale"],
    "mix.4": ["mix.4"],
    "head": ["head.out.weight", "head.out.bias"],
}


@st.composite
def layouts(draw):
    """Some of these layers in any order, small sizes (often tied), and the padding of an alignment."""
    names = draw(st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, unique=True))
    sizes = {parameter: draw(st.integers(1, 5)) for name in names for parameter in LAYERS[name]}
    return names, layout_of(sizes, alignment=draw(st.sampled_from([1, 4, 16])))


@st.composite
def fragmented(draw):
    """A layout's layers, the layout, a period, and its fragments."""
    names, layout = draw(layouts())
    number = draw(st.integers(1, len(names)))
    period = draw(st.integers(number, 2 * number + 5))
    return names, layout, period, fragments_of(layout, number, period)


@settings(max_examples=30)
@given(layouts())
def test_a_layer_is_what_shares_a_name_up_to_its_first_number(case):
    names, layout = case
    assert [[unit.name for unit in layer] for layer in layers_of(layout).values()] == [LAYERS[name] for name in names]


@settings(max_examples=30)
@given(fragmented())
def test_fragments_partition_the_parameters_and_the_padding(case):
    _, layout, _, fragments = case
    covered = sorted(place for fragment in fragments for each in fragment.ranges for place in range(each.start, each.stop))
    assert covered == list(range(layout.d))
    assert sorted(unit.offset for fragment in fragments for unit in fragment.units) == [unit.offset for unit in layout.units]
    for fragment in fragments:
        for unit in fragment.units:
            assert any(each.start <= unit.offset and unit.offset + unit.numel <= each.stop for each in fragment.ranges)


@settings(max_examples=30)
@given(fragmented())
def test_layers_are_dealt_out_in_turn_and_never_cut(case):
    names, _, _, fragments = case
    for index, fragment in enumerate(fragments):
        expected = [parameter for name in names[index :: len(fragments)] for parameter in LAYERS[name]]
        assert [unit.name for unit in fragment.units] == expected
        assert fragment.number == index


@settings(max_examples=30)
@given(fragmented())
def test_neighbours_are_one_range(case):
    _, _, _, fragments = case
    for fragment in fragments:
        assert all(one.stop < other.start for one, other in itertools.pairwise(fragment.ranges))


@settings(max_examples=30)
@given(fragmented(), st.integers(1, 3))
def test_what_is_taken_out_can_be_put_back(case, rows):
    _, layout, _, fragments = case
    x = torch.arange(rows * layout.d, dtype=torch.float64).view(rows, layout.d)
    copy = torch.full_like(x, -1.0)
    for fragment in fragments:
        part = fragment.of(x)
        assert part.shape == (rows, fragment.layout.d)
        fragment.put(copy, part)
        assert torch.equal(fragment.of(copy), part)
    assert torch.equal(copy, x)


@settings(max_examples=30)
@given(fragmented())
def test_one_row_is_put_into_all(case):
    _, layout, _, fragments = case
    x = torch.zeros(3, layout.d)
    fragments[0].put(x, fragments[0].of(torch.ones(1, layout.d)))
    assert x.sum() == 3 * fragments[0].layout.d


@settings(max_examples=30)
@given(fragmented())
def test_a_fragments_own_layout_finds_its_parameters(case):
    _, layout, _, fragments = case
    x = torch.arange(layout.d)[None]
    for fragment in fragments:
        inside = dict(fragment.layout.named(fragment.of(x)))
        assert set(inside) == {unit.name for unit in fragment.units}
        for unit in fragment.units:
            assert torch.equal(inside[unit.name], unit.of(x))


@given(st.integers(1, 12), st.integers(0, 40))
def test_leads_are_spread_evenly_over_a_round(number, more):
    period = number + more
    leads = [each.lead for each in fragments_of(layout_of({f"{i}.w": 1 for i in range(number)}), number, period)]
    gaps = np.diff([*leads, period])
    assert leads[0] == 0
    assert min(gaps) >= 1
    assert max(gaps) - min(gaps) <= 1


def test_more_fragments_than_layers_are_refused_with_the_layers_names():
    layout = layout_of({name: 1 for layer in ("embedding", "blocks.3", "0") for name in LAYERS[layer]})
    with pytest.raises(ValueError, match=r"strategy\.fragments=4 exceeds the model's 3 layers \(embedding.*blocks\.3.*0\)"):
        begun(DiLoCo(8, OuterStep(), fragments=4), 1, np.zeros(layout.d), layout)
    begun(DiLoCo(8, OuterStep(), fragments=3), 1, np.zeros(layout.d), layout)


def test_more_fragments_than_steps_in_a_round_are_refused_with_both():
    layout = layout_of({f"{i}.w": 1 for i in range(4)})
    with pytest.raises(ValueError, match=r"strategy\.fragments=4 exceeds strategy\.period=3"):
        begun(DiLoCo(3, OuterStep(), fragments=4), 1, np.zeros(layout.d), layout)


# --- when they are exchanged, and land -------------------------------------------------------------------------------


def exchanged_and_landed(number, period, delay, steps, n=2):
    """For every step: sizes of what was averaged in it, and the sizes of the fragments whose anchor moved."""
    layout = layout_of({f"{i}.w": i + 1 for i in range(number)})  # so that a size tells a fragment
    world = StackedWorld(n, debug=True)
    strategy = begun(DiLoCo(period, OuterStep(), delay, fragments=number), n, np.zeros(layout.d), layout, world)
    gradient, sent, landed = recorded(0, n, steps, layout.d), [], []
    for step in range(1, steps + 1):
        bytes_before, collectives_before, anchor = world.traffic.payload_bytes, world.traffic.collectives, strategy.anchor.clone()
        local_step(strategy, gradient, step)
        num_bytes = world.traffic.payload_bytes - bytes_before
        assert world.traffic.collectives - collectives_before == (num_bytes > 0)  # at most one exchange in a step
        moved = torch.stack([(unit.of(strategy.anchor) != unit.of(anchor)).all() for unit in layout.units])
        sent.append(num_bytes // 8)
        landed.append([unit.numel for unit, has in zip(layout.units, moved, strict=True) if has])
    return sent, landed


@pytest.mark.parametrize(
    ("number", "period", "delay"), [(1, 1, 0), (1, 4, 2), (3, 3, 0), (3, 3, 2), (3, 7, 1), (4, 7, 6), (5, 5, 4), (2, 6, 3)]
)
def test_a_fragment_is_exchanged_once_in_a_period_and_lands_when_the_delay_is_over(number, period, delay):
    steps = 4 * period
    sent, landed = exchanged_and_landed(number, period, delay, steps)
    for size in range(1, number + 1):
        posted = [step for step, each in enumerate(sent, 1) if each == size]
        lead = (size - 1) * period // number
        assert posted == list(range(period - lead, steps + 1, period))
        assert [step for step, each in enumerate(landed, 1) if size in each] == [
            step + delay for step in posted if step + delay <= steps
        ]
    assert sum(sent) == sum(
        size * len(range(period - (size - 1) * period // number, steps + 1, period)) for size in range(1, number + 1)
    )


@pytest.mark.parametrize(("period", "delay"), [(4, 0), (4, 2), (7, 6)])
def test_a_delay_changes_no_byte(period, delay):
    assert exchanged_and_landed(3, period, delay, 30)[0] == exchanged_and_landed(3, period, 0, 30)[0]


def test_one_fragment_is_a_view_of_the_whole_vector():
    layout = layout_of({"a": 3, "b": 2}, alignment=4)
    (fragment,) = fragments_of(layout, 1, 1)
    x = torch.zeros(2, layout.d)
    assert fragment.of(x).data_ptr() == x.data_ptr()
    assert fragment.layout.units == (Unit("a", (3,), 0), Unit("b", (2,), 4))
