"""Emulated compute takes its time, fills DDP's buckets as backward goes, and never looks like a trained model."""

import json
import time

import pytest
import torch
from torch import nn

from disttrain.component import UserError
from disttrain.training import emulated_compute
from disttrain.training.emulated_compute import FORWARD_SHARE, GRADIENT_RATIO, emulate_compute
from tests.training.small_run import train, write_config

EMULATED = ("launch.emulated_step_time=20ms", "recording.log_every=1")


def module():
    return nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 30, bias=False), nn.Linear(1, 1))


class Clock:
    """In place of the module `time`: a sleep takes as long as asked for, and `late` more."""

    def __init__(self, late=0.0):
        self.now, self._late = 0.0, late

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds + self._late


def test_forward_takes_a_third_and_backward_two_thirds(monkeypatch):
    emulated, clock = module(), Clock()
    monkeypatch.setattr(emulated_compute, "time", clock)
    emulate_compute(emulated, 0.3)
    loss = emulated(None)
    assert clock.now == pytest.approx(FORWARD_SHARE * 0.3)
    loss.backward()
    assert clock.now == pytest.approx(0.3)


def test_many_sleeps_that_are_late_do_not_add_up(monkeypatch):
    emulated, clock = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(1000))), Clock(late=0.001)
    monkeypatch.setattr(emulated_compute, "time", clock)
    emulate_compute(emulated, 0.2)
    emulated(None).backward()
    assert 0.2 <= clock.now < 0.2 + 0.003


def test_gradients_come_from_the_last_parameter_to_the_first_each_when_its_share_is_done(monkeypatch):
    emulated, clock, arrived = module(), Clock(), []
    monkeypatch.setattr(emulated_compute, "time", clock)
    for name, parameter in emulated.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: arrived.append((name, clock.now)))
    emulate_compute(emulated, 0.3)
    emulated(None).backward()
    assert [name for name, _ in arrived] == ["2.bias", "2.weight", "1.weight", "0.bias", "0.weight"]
    numels = [1, 2, 302, 312, 412]  # from the end, summed up
    assert [seconds for _, seconds in arrived] == pytest.approx([0.1 + 0.2 * numel / 412 for numel in numels])


def test_it_takes_real_time():
    emulated, start = module(), time.perf_counter()
    emulate_compute(emulated, 0.05)
    emulated(None).backward()
    assert time.perf_counter() - start >= 0.05


def test_a_gradient_is_a_small_share_of_its_parameter_and_the_loss_is_none():
    emulated = module()
    emulate_compute(emulated, 1e-3)
    loss = emulated(None)
    (loss / 2).backward()
    assert loss.isnan()
    for parameter in emulated.parameters():
        torch.testing.assert_close(parameter.grad, parameter.detach() * GRADIENT_RATIO / 2)


def test_frozen_parameters_get_none_and_a_module_without_others_is_refused():
    emulated = module()
    emulated[0].requires_grad_(False)
    emulate_compute(emulated, 1e-3)
    emulated(None).backward()
    assert emulated[0].weight.grad is None
    assert emulated[1].weight.grad is not None
    with pytest.raises(ValueError, match="no trainable parameter"):
        emulate_compute(module().requires_grad_(False), 1e-3)


@pytest.mark.parametrize("passes", [1, 2])
def test_an_emulated_run_takes_its_time_exchanges_the_same_bytes_and_claims_no_result(launched, tmp_path, passes):
    config = write_config(tmp_path)
    options = ("training.steps=10", f"training.gradient_accumulation={passes}")
    launched(2, train, config, tmp_path / "real", *options)
    launched(2, train, config, tmp_path / "emulated", *options, *EMULATED)
    real, emulated = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("real", "emulated"))
    assert (real["compute"], emulated["compute"]) == ("real", "emulated")
    assert emulated["payload_bytes"] == pytest.approx(real["payload_bytes"], rel=0.01)  # agreements apart
    assert [emulated[key] for key in ("final_loss", "validation_loss", "weights_sha256")] == [None] * 3
    assert not (tmp_path / "emulated" / "model.safetensors").exists()
    records = [json.loads(line) for line in (tmp_path / "emulated" / "metrics.jsonl").read_text().splitlines()]
    assert {(each["loss"], each["compute"]) for each in records} == {(None, "emulated")}
    assert (records[-1]["seconds"] - records[0]["seconds"]) / 9 >= 0.02


def test_an_emulated_checkpoint_is_not_continued_as_a_real_run(launched, tmp_path):
    config = write_config(tmp_path)
    launched(2, train, config, tmp_path / "run", *EMULATED, "training.stop_after=5")
    launched(2, _refused, config, tmp_path / "run")


def _refused(config, directory):
    with pytest.raises(UserError, match=r"launch\.emulated_step_time: 20ms there, None here"):
        train(config, directory, "training.resume=auto")
