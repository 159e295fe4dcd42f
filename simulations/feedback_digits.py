"""Digits in error_feedback.py: a classifier by momentum SGD over ten workers that have one to four classes each."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from compare_optimizers import beyond_edge
from feedback_trainings import Result, Task, Training, is_kept, train

DIGITS = Task(
    "digits",
    "digits.yaml",
    10,
    "vmap",
    # Twelve samples a worker and step; three batches are 360 of the 377 images held out.
    ("partition.name=shards", "training.batch_size=120", "training.validation_batches=3", "training.clip_norm=null",
     "schedule.name=cosine", "recording.log_every=50"),
)  # fmt: skip
SEEDS = (0, 1, 2)
STEPS = 1500
GRIDS = {  # learning rates
    "dense": (0.05, 0.1, 0.2),
    "ef14": (0.025, 0.05, 0.1),
    "ef14 two_phase": (0.025, 0.05, 0.1),
    "ef21_sgdm": (0.25, 0.5, 1.0),  # without the optimizer's momentum of 0.9, which would make it tenfold
    "econtrol": (0.025, 0.05, 0.1),
    "none": (0.025, 0.05, 0.1),
}
OWN = {"ef21_sgdm": ("optimizer.momentum=0.0", "strategy.feedback.eta=0.1")}
WARMUP = {"ef21_sgdm": 1, "econtrol": 1}
"""Dense steps, from which estimates begin."""


def training_of(method: str, lr: float, steps: int, seed: int = 0) -> Training:
    """With top-k of 1 %; a method's name may be followed by a reducer's."""
    feedback, reducer = method.split() if " " in method else (method, "gather")
    settings = OWN.get(feedback, ())
    return Training(DIGITS, feedback, lr, steps, seed, warmup_steps=WARMUP.get(feedback, 0), reducer=reducer, settings=settings)


def train_digits(folder: Path, deadline: float, steps: int = STEPS) -> tuple[dict[str, list[Result]], list[Result], list[str]]:
    """Each method's grid on seed 0, the best learning rate's results for all seeds, and what was left out for lack of time."""
    grids: dict[str, list[Result]] = {}
    finals, left_out = [], []
    for method in GRIDS:
        if time.monotonic() > deadline and not is_kept(training_of(method, GRIDS[method][0], steps), folder):
            left_out.append(f"Left out for lack of time: {method} on digits.")
            continue
        grids[method] = tune(method, steps, folder)
        best = min(grids[method], key=lambda result: result.loss)
        finals.append(best)
        for seed in SEEDS[1:]:
            training = replace(best.training, seed=seed)
            if time.monotonic() > deadline and not is_kept(training, folder):
                left_out.append(f"Left out for lack of time: {training.name}.")
            else:
                finals.append(train(training, folder))
    return grids, finals, left_out


def tune(method: str, steps: int, folder: Path) -> list[Result]:
    """All learning rates of the grid, and those beyond an edge while the best is there."""
    results: list[Result] = []
    wanted: list[float] = list(GRIDS[method])
    while wanted:
        results += [train(training_of(method, lr, steps), folder) for lr in wanted]
        following = beyond_edge({result.training.lr: result.loss for result in results})
        wanted = [] if following is None else [following]
    return sorted(results, key=lambda result: result.training.lr)
