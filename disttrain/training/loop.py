"""The training loop: batches in, a session's steps out. It issues no collective of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from disttrain.component import UserError
from disttrain.data import Corpus, Dataset, EpochOrder, Order, PartitionedOrder, make_order, microbatches, share
from disttrain.objectives import Objective
from disttrain.optim import GroupRow, table
from disttrain.quantities import format_duration
from disttrain.recording.progress import PEAK_FLOPS
from disttrain.training.buffers import choice_of
from disttrain.training.emulated_compute import EmulatedObjective, emulate_compute
from disttrain.training.meeting import exchange_facts
from disttrain.training.session import Session


def fit(session: Session) -> dict[str, Any]:
    """Train the config's model on the config's data, from wherever the run stands; returns the summary (worker 0's).

    Raises:
        UserError: if model, data and number of workers do not fit together.
    """
    corpus = _load(session)
    objective = _objective(session, corpus)
    order = _order(session, corpus)
    session.prepare(_build_model(session, corpus))
    _announce(session, corpus, order)
    session.resume()
    try:
        for _ in steps(session, corpus, objective, order):
            pass
    finally:
        session.display.close()
    session.merge(_training_inputs(session, corpus.train, order))
    final = validate(session, corpus.validation, objective) if session.completed and not session.emulated else {}
    return session.close(**final)


def steps(session: Session, corpus: Corpus, objective: Objective, order: Order) -> Iterator[int]:
    """Make the run's steps one after another, yielding the number of each when it is over."""
    training = session.config.training
    validate_every = 0 if session.emulated else training.validate_every
    tokens = training.batch_size * corpus.task.units_per_sample
    while not session.should_stop:
        session.look_after_others()
        loss = _forward_backward(session, objective, corpus.train, order)
        session.optimizer.step()
        session.optimizer.zero_grad()
        # The last step's validation comes after the merge.
        due = validate_every and session.step % validate_every == 0 and not session.completed
        metrics = validate(session, corpus.validation, objective) if due else {}
        session.record(loss, tokens, log=bool(due), **metrics)
        yield session.step


def validate(session: Session, dataset: Dataset, objective: Objective) -> dict[str, float]:
    """The mean over the first validation batches, of what the strategy would export now: ``validation_loss``, and so on.

    What is measured is the objective's to say, by its ``evaluate``. Where all workers hold the same model, each takes its
    share of every batch; else each evaluates its own on all of it.
    """
    training, world = session.config.training, session.world
    batch_size = min(training.batch_size, len(dataset) - len(dataset) % world.size)
    if batch_size == 0:
        return {"validation_loss": float("nan")}
    batches = min(training.validation_batches, len(dataset) // batch_size)
    order = EpochOrder(len(dataset), training.seed, shuffle=False)
    totals: dict[str, float] = {}
    with session.evaluating() as module:
        for step in range(batches):
            indices = order.batch_indices(step, batch_size)
            if session.strategy.replicated or session.strategy.one_result:
                indices = share(indices, world.rank, world.size)
            inputs, targets = _to(session.device, dataset.batch(indices))
            with _autocast(session):
                measured = objective.evaluate(module, inputs, targets)
            totals = {name: totals.get(name, 0.0) + float(value) for name, value in measured.items()}
    row = torch.tensor([[total / batches for total in totals.values()]], dtype=torch.float64, device=session.device)
    means = session.strategy.agree(row)[0].tolist()
    return {f"validation_{name}": mean for name, mean in zip(totals, means, strict=True)}


def _load(session: Session) -> Corpus:
    """The corpus; every worker must have the same."""
    try:
        corpus = session.config.data.build(session.config.training.seed)
    except ValueError as error:
        raise UserError(str(error)) from error
    if (rank := _differs(session, corpus.fingerprint)) is not None:
        raise UserError(f"worker {rank} has other data than worker {session.world.rank}: compare their files")
    return corpus


def _order(session: Session, corpus: Corpus) -> Order:
    """Who trains on what, and when; every worker must divide the data alike."""
    config = session.config
    order = make_order(config.partition, corpus.train, session.world.size, config.training.seed)
    if isinstance(order, PartitionedOrder) and (rank := _differs(session, order.fingerprint)) is not None:
        raise UserError(f"worker {rank} divides the data otherwise than worker {session.world.rank}: compare numpy versions")
    return order


def _differs(session: Session, fingerprint: str) -> int | None:
    """The first worker whose fingerprint is another one."""
    everybody = exchange_facts(session.world, {"fingerprint": fingerprint}, session.device)
    return next((rank for rank, facts in enumerate(everybody) if facts["fingerprint"] != fingerprint), None)


def _objective(session: Session, corpus: Corpus) -> Objective:
    """The config's, which must fit the data even if compute is emulated and nothing is minimised."""
    objective = session.config.objective.build()
    objective.check(corpus.task)
    return EmulatedObjective() if session.emulated else objective


def _build_model(session: Session, corpus: Corpus) -> nn.Module:
    """The config's; its parameters are real, its forward pass too unless compute is emulated."""
    config = session.config
    try:
        module = config.model.build(corpus.task)
        if config.launch.emulated_step_time is not None:
            emulate_compute(module, config.launch.emulated_step_time / config.training.gradient_accumulation)
    except ValueError as error:
        raise UserError(str(error)) from error
    return module


def _announce(session: Session, corpus: Corpus, order: Order) -> None:
    """Say once what was decided."""
    config, display, module = session.config, session.display, session.model.module
    session.unit = display.unit = corpus.unit
    numel = sum(p.numel() for p in module.parameters())
    display.say(f"data      {corpus.description}")
    if order.report:
        display.say(f"partition {order.report}")
    display.say(f"model     {config.model.name}, {numel:,} parameters")
    workers = "1 worker" if session.world.size == 1 else f"{session.world.size} workers"
    display.say(f"strategy  {config.strategy.name}, {workers} on {session.device.type}")
    if session.strategy.description:
        display.say(f"exchange  {session.strategy.description}")
    if buffers := choice_of(config.strategy.buffers, module):
        display.say(f"buffers   {buffers}")
    if config.launch.emulated_step_time is not None:
        seconds = format_duration(config.launch.emulated_step_time)
        display.say(f"compute   emulated, {seconds} per step: nothing is learned, no loss is recorded, no weights are exported")
    rows = [tuple(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row) for row in table(session.optimizer.inner)]
    display.table(GroupRow._fields, rows)
    if not session.emulated:
        session.flops_per_token = config.model.flops_per_token(module, corpus.task)
    session.peak_flops = PEAK_FLOPS.get(torch.cuda.get_device_name()) if session.device.type == "cuda" else None


def _own_indices(session: Session, order: Order, step: int) -> Tensor:
    return order.batch(step, session.config.training.batch_size, session.world.ids)[0]


def _forward_backward(session: Session, objective: Objective, dataset: Dataset, order: Order) -> Tensor:
    """This worker's part of a step, in microbatches; only the last one's backward exchanges. Returns the mean loss."""
    passes = session.config.training.gradient_accumulation
    parts = microbatches(_own_indices(session, order, session.step), passes)
    total = torch.zeros((), device=session.device)
    during = session.world.traffic.during
    for number, indices in enumerate(parts, 1):
        with during("compute", "data"):
            inputs, targets = _to(session.device, dataset.batch(indices))
        with nullcontext() if number == passes else session.model.no_sync():
            with during("compute", "forward"), _autocast(session):
                loss = objective(session.model, inputs, targets) / passes
            with during("compute", "backward"):
                loss.backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    return total


def _autocast(session: Session) -> AbstractContextManager[Any]:
    if session.config.training.precision == "fp32":
        return nullcontext()
    return torch.autocast(session.device.type, torch.bfloat16)


def _to(device: torch.device, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch[0].to(device, non_blocking=True), batch[1].to(device, non_blocking=True)


def _training_inputs(session: Session, dataset: Dataset, order: Order) -> Iterator[Tensor]:
    for step in count():
        yield _to(session.device, dataset.batch(_own_indices(session, order, step)))[0]
