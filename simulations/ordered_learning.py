"""Whether it helps federated averaging to see easy samples, or easy clients, first.

    python simulations/ordered_learning.py [--budget 60] [--seeds 3] [--cells iid ...]

"When Do Curricula Work in Federated Learning?" (arXiv 2212.12712) says that curricula make up for clients whose data differ, the
more so the more they differ, and that choosing clients in order adds to it. Where curricula help at all without clients, "When Do
Curricula Work?" (arXiv 2012.03107) says, is with labels that are partly wrong, or little time. So there are three ways to divide
handwritten digits (evenly, two shards a client, one class a client), with all labels right, and with three in ten of the clients'
wrong; the digits held out for the accuracy have theirs right.

100 clients, ten in a round, ten local steps of five samples, 300 rounds of FedAvg of the 4,810-parameter MLP; linear pacing from
0.2 of the samples to all at 0.8 of the run. The expert is the same MLP, trained on 200 digits of its own with right labels.
Learning rates are chosen on seed 0 by the accuracy of the last 20 rounds, and the best are run on all seeds. "Early" is the mean
accuracy of the first 100 rounds. Results are kept in runs/ordered_learning, so that a second call goes on where the first has
stopped; prints tables and what reproduces, and writes docs/ordered_learning.json and .png.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from flower_app import build
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import cross_entropy

from disttrain import random
from disttrain.data import LabelledDataset
from disttrain.federated import (
    Availability,
    BatchedEngine,
    FedAvg,
    Federation,
    Order,
    Ordered,
    PacingConfig,
    Plan,
)
from disttrain.federated.participation import CurriculumConfig, UniformConfig
from disttrain.objectives import ClassificationConfig
from disttrain.simulation.federated.problem import ModelProblem

DOCS = Path(__file__).parents[1] / "docs"
KEPT = Path("runs") / "ordered_learning"
CLIENTS, COHORT, STEPS, BATCH, ROUNDS, EARLY, LAST = 100, 10, 10, 5, 300, 100, 20
HELD_OUT, TAUGHT, CLASSES = 397, 200, 10
LRS = (0.03, 0.1, 0.3, 1.0)
PACING = PacingConfig()
SHARDS = {"iid": 0, "two shards": 2, "one class": 1}
CELLS = {f"{division}{noise}": (each, wrong) for noise, wrong in (("", 0.0), (", 30 % wrong", 0.3))
         for division, each in SHARDS.items()}  # fmt: skip
ORDERS = ("none", "random", "curriculum", "by an expert", "by the client", "anti", "easy clients", "both")


@dataclass(frozen=True)
class Result:
    """One run: the accuracies of its last rounds and of its first, on right labels."""

    cell: str
    order: str
    lr: float
    seed: int
    accuracy: float
    early: float


class Digits:
    """The data of a cell.

    Attributes:
        problem: the clients'.
        expert: ``[d]``, a model trained elsewhere.
    """

    def __init__(self, shards: int, wrong: float, seed: int) -> None:
        from sklearn.datasets import load_digits

        images, labels = (torch.from_numpy(each) for each in load_digits(return_X_y=True))
        order = torch.randperm(len(labels), generator=random.generator(seed, random.Stream.ORDER))
        images, labels = (images[order] / 16).float(), labels[order]
        (self._images, taught, own), (self._labels, taught_labels, right) = (
            each.split([HELD_OUT, TAUGHT, len(order) - HELD_OUT - TAUGHT]) for each in (images, labels)
        )
        generator = random.generator(seed, random.Stream.PARTITION)
        parts = divide(right, shards, generator)
        mistaken = torch.rand(len(right), generator=generator) < wrong
        other = (right + torch.randint(1, CLASSES, right.shape, generator=generator)) % CLASSES
        torch.manual_seed(seed)
        module = build([64])
        dataset = LabelledDataset(own, torch.where(mistaken, other, right))
        self.problem = ModelProblem(module, ClassificationConfig().build(), dataset, parts, seed, COHORT)
        self.problem.choose(BATCH, "forward")
        self.expert = self._taught(taught, taught_labels)

    def _taught(self, images: Tensor, labels: Tensor) -> Tensor:
        """300 steps of plain gradient descent from the initial model."""
        module = self.problem.replicas.fresh_module()
        optimizer = torch.optim.SGD(module.parameters(), 0.5)
        for _ in range(300):
            optimizer.zero_grad()
            cross_entropy(module(images), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in module.parameters()])

    @torch.no_grad()
    def accuracy(self, x: Tensor) -> float:
        """Of a model ``[d]`` on digits held out."""
        predicted = self.problem.replicas.load(x[None])(self._images).argmax(-1)
        return float((predicted == self._labels).float().mean())


def divide(labels: Tensor, shards: int, generator: torch.Generator) -> list[np.ndarray]:
    """Who owns which: evenly (0), or so many shards of samples that are sorted by class."""
    if not shards:
        return list(np.array_split(torch.randperm(len(labels), generator=generator).numpy(), CLIENTS))
    pieces = np.array_split(labels.argsort(stable=True).numpy(), CLIENTS * shards)
    dealt = torch.randperm(len(pieces), generator=generator).view(CLIENTS, shards).tolist()
    return [np.concatenate([pieces[number] for number in own]) for own in dealt]


def algorithm(order: str, expert: Tensor) -> FedAvg | Ordered:
    """FedAvg, with what comes first."""
    orders = {
        "random": Order("random", PACING),
        "curriculum": Order("easy", PACING),
        "by an expert": Order("easy", PACING, "expert", expert),
        "by the client": Order("easy", PACING, "local"),
        "anti": Order("hard", PACING),
        "both": Order("easy", PACING),
    }
    reports = PACING if order in ("easy clients", "both") else None
    own = orders.get(order)
    return Ordered(FedAvg(), own, reports) if own or reports else FedAvg()


def train(cell: str, order: str, lr: float, seed: int, deadline: float) -> Result | None:
    """One run, or what is kept of it; None if there is no time left."""
    kept = KEPT / f"{cell}-{order}-{lr:g}-{seed}.json".replace(" ", "_")
    if kept.exists():
        return Result(**json.loads(kept.read_text()))
    if time.monotonic() > deadline:
        return None
    digits = data(*CELLS[cell], seed)
    what = algorithm(order, digits.expert)
    by_loss = isinstance(what, Ordered) and what.reports is not None
    who = Availability(COHORT, CurriculumConfig(pacing=PACING) if by_loss else UniformConfig())
    plan = Plan(CLIENTS, seed, STEPS, lr, BATCH, rounds=ROUNDS)
    engine = BatchedEngine(what, digits.problem, COHORT)
    federation = Federation(what, digits.problem.start, engine, plan, who, digits.problem.sizes)
    accuracies = []
    for _ in range(ROUNDS):
        federation.step()
        accuracies.append(digits.accuracy(federation.x))
    result = Result(cell, order, lr, seed, statistics.mean(accuracies[-LAST:]), statistics.mean(accuracies[:EARLY]))
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(asdict(result)))
    return result


@functools.lru_cache(maxsize=4)
def data(shards: int, wrong: float, seed: int) -> Digits:
    """The same data for all orders."""
    return Digits(shards, wrong, seed)


def tuned(cell: str, order: str, seeds: int, deadline: float) -> list[Result]:
    """The best learning rate's results, one for each seed that there was time for."""
    tried = [train(cell, order, lr, 0, deadline) for lr in LRS]
    if None in tried:
        return []
    best = max((each for each in tried if each is not None), key=lambda result: result.accuracy)
    more = (train(cell, order, best.lr, seed, deadline) for seed in range(1, seeds))
    return [best, *(each for each in more if each is not None)]


def in_percent(results: Sequence[Result], what: str) -> tuple[float, float]:
    """Mean and spread over seeds."""
    values = [100 * getattr(result, what) for result in results]
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def line(order: str, results: Sequence[Result]) -> str:
    """A row of the table."""
    (last, spread), (early, early_spread) = in_percent(results, "accuracy"), in_percent(results, "early")
    return f"{order:<14} {results[0].lr:>5g} {last:>7.1f} ± {spread:<4.1f} {early:>7.1f} ± {early_spread:<4.1f}"


def verdicts(table: Mapping[str, Mapping[str, Sequence[Result]]]) -> list[str]:
    """What each order gains over none, and over its own pacing, in points at the end and early, with seeds that agree."""
    said = []
    for cell, rows in table.items():
        for order in ("curriculum", "by an expert", "by the client", "anti", "easy clients", "both"):
            for peer in ("none", "random"):
                if order in rows and peer in rows:
                    said.append(f"{cell}: {order} against {peer}: {gain(rows[order], rows[peer], 'accuracy')} at the end, "
                                f"{gain(rows[order], rows[peer], 'early')} early")  # fmt: skip
    return said


def gain(results: Sequence[Result], peers: Sequence[Result], what: str) -> str:
    """Points more, and on how many seeds there are any."""
    differences = [100 * (getattr(a, what) - getattr(b, what)) for a, b in zip(results, peers, strict=False)]
    better = sum(each > 0 for each in differences)
    return f"{statistics.mean(differences):+.1f} ({better} of {len(differences)} seeds better)"


def draw(table: Mapping[str, Mapping[str, Sequence[Result]]], picture: Path) -> None:
    """What each order gains over none at the end, by how much clients differ; right labels left, partly wrong ones right."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, noise, title in zip(panels, ("", ", 30 % wrong"), ("labels right", "30 % of labels wrong"), strict=True):
        cells = [cell for division in SHARDS if "none" in table.get(cell := division + noise, {})]
        for order in ORDERS[1:]:
            there = [cell for cell in cells if order in table[cell]]
            values = [
                in_percent(table[cell][order], "accuracy")[0] - in_percent(table[cell]["none"], "accuracy")[0] for cell in there
            ]
            panel.plot([cell.removesuffix(noise) for cell in there], values, marker="o", label=order)
        panel.axhline(0, color="black", linewidth=0.8)
        panel.set_title(title, fontsize=11)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("points of accuracy over no order")
    panels[1].legend(fontsize=8)
    figure.savefig(picture, dpi=110)


def main() -> None:
    """Tune, run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=60, help="minutes after which no further run is begun (default 60)")
    parser.add_argument("--cells", nargs="+", default=list(CELLS), choices=list(CELLS))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    deadline, table = time.monotonic() + 60 * options.budget, {}
    for cell in options.cells:
        print(f"{cell}\n{'order':<14} {'lr':>5} {'accuracy':>14} {'early':>14}")
        table[cell] = {order: results for order in ORDERS if (results := tuned(cell, order, options.seeds, deadline))}
        missing = options.seeds * len(ORDERS) - sum(map(len, table[cell].values()))
        print("\n".join(line(order, results) for order, results in table[cell].items()), flush=True)
        if missing:
            print(f"left out for lack of time: {missing} runs")
    print("\n".join(verdicts(table)))
    save([each for rows in table.values() for own in rows.values() for each in own])
    draw(table, DOCS / "ordered_learning.png")


def save(results: Sequence[Result]) -> None:
    """docs/ordered_learning.json: what was computed now in place of what stood there for the same cells; the others stay."""
    path = DOCS / "ordered_learning.json"
    before = [Result(**each) for each in json.loads(path.read_text())] if path.exists() else []
    renewed = {result.cell for result in results}
    rows = [*(result for result in before if result.cell not in renewed), *results]
    rows.sort(key=lambda row: (list(CELLS).index(row.cell), ORDERS.index(row.order), row.seed))
    path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
