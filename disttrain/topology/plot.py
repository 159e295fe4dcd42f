"""A picture of a topology: its rounds side by side, workers as numbered dots and links as lines between them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from disttrain.topology.base import Topology

if TYPE_CHECKING:
    import networkx as nx

COLUMNS = 4
READABLE = 64
"""Workers that can be told apart by number in a panel."""


def plot_topology(
    topology: Topology, picture: Path | str, rounds: int = 8, layout: Literal["circular", "spring"] = "circular"
) -> None:
    """Draw a topology's rounds into a PNG, PDF or SVG, by the file's name.

    A line is the thicker, the more weight its ends give each other; an arrow is a link that carries one way, to the receiver.

    Args:
        topology: any; up to some hundred workers can be seen.
        picture: the file.
        rounds: panels, at most; a period of fewer rounds has fewer.
        layout: where the workers are, in all panels: in a circle, or pulled together where there are links.

    Raises:
        ValueError: if there are no panels, or the layout is another.
    """
    from matplotlib.figure import Figure  # slow to import, as networkx is

    if rounds < 1:
        raise ValueError(f"a picture needs at least one round, got rounds={rounds}")
    graphs = [_graph(topology, t) for t in range(min(rounds, topology.period or rounds))]
    places = _places(graphs, layout)
    columns = min(len(graphs), COLUMNS)
    lines = math.ceil(len(graphs) / columns)
    figure = Figure(figsize=(max(3 * columns, 5), 3 * lines + 0.5), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for t, (axes, graph) in enumerate(zip(panels, graphs, strict=False)):
        _draw(axes, graph, places, topology.symmetric)
        axes.set_title(f"round {t}" if topology.period != 1 else "every round")
    for axes in panels:
        axes.set_axis_off()
        axes.set_aspect("equal")
    figure.suptitle(_title(topology), fontsize=11)
    figure.savefig(picture, dpi=120)


def _title(topology: Topology) -> str:
    period = "drawn anew in each round" if topology.period is None else f"period {topology.period}"
    return f"{topology.name}: {topology.size} workers, degree {topology.degree}, {period}"


def _graph(topology: Topology, t: int) -> nx.DiGraph:
    import networkx as nx

    graph = nx.DiGraph()
    graph.add_nodes_from(range(topology.size))
    receivers, senders, weights = topology.round(t).links
    graph.add_weighted_edges_from(zip(senders.tolist(), receivers.tolist(), weights.tolist(), strict=True))
    return graph


def _places(graphs: list[nx.DiGraph], layout: str) -> Any:
    import networkx as nx

    everything = nx.compose_all(graphs)
    if layout == "circular":
        return nx.circular_layout(everything)
    if layout == "spring":
        return nx.spring_layout(everything.to_undirected(), seed=0)
    raise ValueError(f"layout must be circular or spring, got {layout!r}")


def _draw(axes: Any, graph: nx.DiGraph, places: Any, symmetric: bool) -> None:
    import networkx as nx

    readable = graph.number_of_nodes() <= READABLE
    size = 160 if readable else 8
    drawn = graph.to_undirected() if symmetric else graph
    widths = [0.5 + 3 * weight for _, _, weight in drawn.edges(data="weight")]
    arrows = {} if symmetric else {"node_size": size, "arrowsize": 7}  # an arrow's head ends at the border of the dot
    nx.draw_networkx_nodes(graph, places, ax=axes, node_size=size, node_color="#cfe3f5", edgecolors="#336699", linewidths=0.6)
    nx.draw_networkx_edges(drawn, places, ax=axes, width=widths, edge_color="#336699", **arrows)
    if readable:
        nx.draw_networkx_labels(graph, places, ax=axes, font_size=7)
