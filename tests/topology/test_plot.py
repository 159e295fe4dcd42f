"""A picture shows a topology's rounds side by side."""

import pytest
from matplotlib.image import imread

from disttrain import topology as kinds
from tests.topology.kinds import KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_any_topology_can_be_drawn(kind, tmp_path):
    kinds.plot_topology(KINDS[kind][0](8 if kind != "torus" else 6), tmp_path / "picture.png", rounds=2)
    assert imread(tmp_path / "picture.png").std() > 0.01  # there is something on it


def test_there_is_a_panel_for_each_round_of_a_period(tmp_path):
    def height(topology, rounds):
        kinds.plot_topology(topology, tmp_path / "picture.png", rounds, layout="spring")
        return imread(tmp_path / "picture.png").shape[0]

    assert height(kinds.ring(5), 8) == height(kinds.base_graph(5), 4) < height(kinds.base_graph(5), 5)
    assert height(kinds.random_matching(5), 9) > height(kinds.base_graph(5), 9)


def test_a_picture_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one round, got rounds=0"):
        kinds.plot_topology(kinds.ring(4), tmp_path / "picture.png", rounds=0)
    with pytest.raises(ValueError, match="circular or spring, got 'square'"):
        kinds.plot_topology(kinds.ring(4), tmp_path / "picture.png", layout="square")
