"""How long a worker has trained, and on how much, over all starts of its run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from disttrain.training.aside import SecondsAside
from disttrain.worlds.traffic import Traffic


class Clock:
    """Stands still until :meth:`start`, and goes on from what an earlier start of the run had counted.

    Args:
        traffic: of the worker, which counts what it waits for others.

    Attributes:
        tokens: that all workers together have trained on.
        aside: seconds that are not the steps'.
    """

    def __init__(self, traffic: Traffic) -> None:
        self._traffic, self.tokens, self.aside = traffic, 0, SecondsAside()
        self._seconds_before, self._exposed_before = 0.0, 0.0
        self._started = self._logged_at = time.perf_counter()
        self._logged_step, self._logged_tokens = 0, 0

    def start(self, step: int) -> None:
        """Training begins now, after ``step``: waiting for others to start is none."""
        self._traffic.exposed_seconds = self._exposed_before
        self._started = self._logged_at = time.perf_counter()
        self._logged_step, self._logged_tokens = step, self.tokens

    @property
    def seconds(self) -> float:
        """Of training, validation and checkpoints included."""
        return self._seconds_before + time.perf_counter() - self._started

    def lap(self, step: int) -> tuple[float, float]:
        """Tokens per second and seconds per step since the last call, of which validation is no part."""
        now = time.perf_counter()
        seconds, tokens, steps = now - self._logged_at, self.tokens - self._logged_tokens, step - self._logged_step
        self._logged_at, self._logged_step, self._logged_tokens = now, step, self.tokens
        return tokens / seconds, seconds / max(1, steps)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The time inside it is validation's."""
        start = time.perf_counter()
        with self.aside.spent_on("evaluation", self._traffic):
            yield
        self._logged_at += time.perf_counter() - start

    @contextmanager
    def saving(self) -> Iterator[None]:
        """The time inside it is a checkpoint's."""
        with self.aside.spent_on("checkpoint", self._traffic):
            yield

    @property
    def shared_facts(self) -> dict[str, Any]:
        """For a checkpoint, the same on all workers."""
        return {"tokens": self.tokens, "seconds": self.seconds}

    @property
    def local_facts(self) -> dict[str, Any]:
        """For a checkpoint, this worker's own."""
        return {"traffic": self._traffic.state(), "aside": asdict(self.aside)}

    def go_on_from(self, shared_facts: dict[str, Any]) -> None:
        """Count on from what all had."""
        self.tokens, self._seconds_before = shared_facts["tokens"], shared_facts["seconds"]

    def restore(self, shared_facts: dict[str, Any], local_facts: dict[str, Any]) -> None:
        """Count on from what this worker had, too."""
        self.go_on_from(shared_facts)
        self._traffic.restore(local_facts["traffic"])
        self._exposed_before = local_facts["traffic"]["exposed_seconds"]
        self.aside = SecondsAside(**local_facts.get("aside", {}))
