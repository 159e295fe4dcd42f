"""The quickstart's PLM in error_feedback.py: AdamW and Muon on compressed gradients, at equal steps."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from feedback_trainings import Result, Task, Training, is_kept, train

PLM = Task("plm", "quickstart.yaml", 2, "loop", ("training.validation_batches=10", "recording.log_every=10"))
ADAMW = ("optimizer.name=adamw",)
MUON = ("optimizer.name=muon",)  # what it leaves to AdamW has the quickstart's rate
# EF21-SGDM has the momentum in the workers, where the gradients are not sparse yet: the optimizer's own would be a second one.
ADAMW_BARE = (*ADAMW, "optimizer.betas=[0.0,0.95]")
UNCLIPPED = (*ADAMW, "training.clip_norm=null")
MUON_BARE = ("optimizer.name=muon", "optimizer.momentum=0.0", "optimizer.nesterov=false", "optimizer.adamw_betas=[0.0,0.95]")
LRS = {"adamw": 4e-3, "muon": 8e-3}


def trainings(steps: int) -> list[Training]:
    """In the order of their importance: the budget may end before they do."""
    warmup = max(1, steps // 20)

    def one(method: str, settings: tuple[str, ...], times: float = 1.0, **own: Any) -> Training:
        lr = LRS["adamw" if ADAMW[0] in settings else "muon"] * times
        return Training(PLM, method, lr, steps, settings=settings, **own)

    return [
        *(one("dense", own) for own in (ADAMW, MUON)),
        *(one("ef14", own, ratio=ratio) for ratio in (0.01, 0.03) for own in (ADAMW, MUON)),
        *(one("ef14", ADAMW, times) for times in (4.0, 0.25)),
        *(one("ef14", own, compressor="sign") for own in (ADAMW, MUON)),
        one("econtrol", MUON, warmup_steps=warmup),
        one("ef21_sgdm", MUON_BARE, warmup_steps=warmup),
        one("ef14", MUON, warmup_steps=warmup),
        *(one("ef14", own, compressor="int8") for own in (ADAMW, MUON)),
        one("ef14", MUON, ratio=0.1),
        one("econtrol", ADAMW, warmup_steps=warmup),
        one("ef21_sgdm", ADAMW_BARE, warmup_steps=warmup),
        one("ef14", ADAMW, warmup_steps=warmup),
        one("ef14", UNCLIPPED),
        one("none", MUON),
    ]


def train_plm(steps: int, folder: Path, deadline: float) -> tuple[list[Result], list[str]]:
    """As many of the trainings as the time allows, and what was left out."""
    results: list[Result] = []
    left_out = []
    for training in trainings(steps):
        longest = max((result.seconds for result in results), default=0.0)
        if not is_kept(training, folder) and time.monotonic() + longest > deadline:
            left_out.append(f"Left out for lack of time: {training.name}.")
        else:
            results.append(train(training, folder))
    return results, left_out
