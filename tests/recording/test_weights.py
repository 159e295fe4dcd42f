"""A run's result begins another run, whatever ties its weights, and nothing else does."""

import pytest
import torch
from torch import nn

from disttrain.component import UserError
from disttrain.recording.folder import RunFolder
from disttrain.recording.weights import export_weights, load_weights


class Tied(nn.Module):
    def __init__(self, width=4, deeper=False):
        super().__init__()
        self.embedding, self.norm = nn.Embedding(7, width), nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 7, bias=False)
        self.head.weight = self.embedding.weight
        if deeper:
            self.more = nn.Linear(width, width)


def test_what_is_exported_is_loaded_tied_weights_and_buffers_too(tmp_path):
    first, second = Tied(), Tied()
    first.norm.running_mean += 3
    export_weights(first, RunFolder(tmp_path).weights)
    load_weights(second, tmp_path)
    assert all(torch.equal(second.state_dict()[name], tensor) for name, tensor in first.state_dict().items())
    assert second.head.weight is second.embedding.weight


@pytest.mark.parametrize(
    ("written", "model", "said"),
    [
        (Tied(), Tied(width=5), r"another model: embedding\.weight is \[7, 4\], and \[7, 5\] here"),
        (Tied(), Tied(deeper=True), r"another model: it lacks more\.bias and 1 more"),
        (Tied(deeper=True), Tied(), r"another model: this model has no more\.bias and 1 more"),
        (None, Tied(), r"has no model\.safetensors \(a run writes it when it ends\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_change_nothing(tmp_path, written, model, said):
    if written is not None:
        export_weights(written, RunFolder(tmp_path).weights)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=said):
        load_weights(model, tmp_path)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "some.safetensors"
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(UserError, match=r"some\.safetensors is unreadable"):
        load_weights(Tied(), path)
