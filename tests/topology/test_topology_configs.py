"""Topologies by name: what a config builds, and what it refuses before anybody trains."""

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from disttrain import topology as kinds
from disttrain.topology import topologies

PATH = [[0, 1], [1, 2]]


def config(name, **settings):
    return TypeAdapter(topologies.union()).validate_python({"name": name, **settings})


@pytest.mark.parametrize("name", topologies.names())
def test_a_name_builds_what_the_function_of_that_name_makes(name):
    if name == "edges":
        built, made, size = config(name, edges=PATH), kinds.from_edges(3, PATH), 3
    else:
        size = 4
        built, made = config(name), getattr(kinds, name)(size)
    built.check_world(size)
    assert built.build(size).name == made.name == name
    assert all(np.array_equal(built.build(size).matrix(t), made.matrix(t)) for t in range(5))


def test_all_kinds_have_a_name():
    assert set(topologies.names()) == {
        *("ring", "torus", "hypercube", "exponential", "one_peer_exponential", "one_peer_hypercube"),
        *("random_matching", "random_push", "base_graph", "star", "complete", "edges"),
    }


def test_settings_reach_the_topology():
    assert config("base_graph", k=3).build(16).period == 2
    assert config("torus", rows=2).build(12).degree == 3


def test_matchings_are_drawn_from_the_runs_seed():
    drawn = config("random_matching").build(16, seed=5)
    assert np.array_equal(drawn.matrix(2), kinds.random_matching(16, seed=5).matrix(2))


def test_the_default_is_exact_for_every_number_of_workers():
    default = config(topologies.default)
    assert all(default.build(n).is_finite_time() for n in range(1, 65))


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("hypercube", 6, "hypercube needs a power of two of workers, got 6: take base_graph.*or 4 or 8 workers"),
        ("one_peer_hypercube", 12, "one_peer_hypercube needs a power of two of workers, got 12: .*or 8 or 16 workers"),
        ("torus", 7, "7 workers have none: take a ring, or base_graph"),
        ("ring", 0, "ring needs at least one worker, got 0"),
    ],
)
def test_so_many_workers_are_refused_with_what_is_allowed(name, size, message):
    with pytest.raises(ValueError, match=message):
        config(name).check_world(size)


def test_a_graph_in_pieces_is_refused_with_two_workers_that_never_meet():
    with pytest.raises(ValueError, match="leave worker 3 without any path to worker 0: 5 workers in 2 groups"):
        config("edges", edges=[*PATH, [3, 4]]).check_world(5)


@pytest.mark.parametrize(("name", "settings"), [("base_graph", {"k": 0}), ("torus", {"rows": 1}), ("edges", {})])
def test_settings_that_make_no_sense_are_refused(name, settings):
    with pytest.raises(ValidationError):
        config(name, **settings)
