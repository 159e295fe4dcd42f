"""Token windows: targets follow inputs, each token is predicted once, and a memory map serves as well as memory."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from disttrain.data.base import TokenDataset, fingerprint

DTYPES = [np.uint8, np.uint16, np.uint32]


def windows(dataset):
    """All sequences of ``dataset``, inputs and targets."""
    return dataset.batch(torch.arange(len(dataset)))


@given(st.integers(1, 9), st.integers(0, 60), st.sampled_from(DTYPES))
def test_every_token_but_the_first_is_a_target_once(length, extra, dtype):
    tokens = np.arange(length + 1 + extra, dtype=dtype)
    inputs, targets = windows(TokenDataset(tokens, length))
    whole = (length + extra) // length * length
    assert targets.flatten().tolist() == list(range(1, whole + 1))
    assert torch.equal(inputs, targets - 1)
    assert inputs.dtype == targets.dtype == torch.int64


def test_a_batch_keeps_the_order_and_the_repeats_of_its_indices():
    dataset = TokenDataset(np.arange(13, dtype=np.uint8), 3)
    inputs, targets = dataset.batch(torch.tensor([3, 0, 3]))
    assert inputs.tolist() == [[9, 10, 11], [0, 1, 2], [9, 10, 11]]
    assert targets.tolist() == [[10, 11, 12], [1, 2, 3], [10, 11, 12]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_token_survives(dtype):
    largest = np.iinfo(dtype).max
    _, targets = windows(TokenDataset(np.array([0, largest], dtype=dtype), 1))
    assert targets.tolist() == [[largest]]


def test_inputs_and_targets_own_their_memory():
    tokens = np.arange(9, dtype=np.uint8)
    inputs, targets = windows(TokenDataset(tokens, 4))
    inputs.zero_()
    assert targets.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert tokens.tolist() == list(range(9))


def test_a_memory_map_gives_the_same_batches(tmp_path):
    tokens = np.arange(1000, dtype=np.uint16)
    tokens.tofile(tmp_path / "tokens.bin")
    mapped = TokenDataset(np.memmap(tmp_path / "tokens.bin", dtype=np.uint16, mode="r"), 16)
    indices = torch.tensor([5, 61, 0])
    for ours, theirs in zip(mapped.batch(indices), TokenDataset(tokens, 16).batch(indices), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("index", [-1, 3])
def test_an_index_of_no_sequence_is_refused(index):
    with pytest.raises(IndexError, match=rf"0 to 2, got \[{index}\]"):
        TokenDataset(np.zeros(13, np.uint8), 4).batch(torch.tensor([0, index]))


def test_too_few_tokens_are_refused_with_what_is_needed():
    with pytest.raises(ValueError, match=r"the test: 8 tokens, but data.sequence_length=8 needs 9"):
        TokenDataset(np.zeros(8, np.uint8), 8, "the test")


@pytest.mark.parametrize("tokens", [np.zeros(9, np.int64), np.zeros((3, 3), np.uint8)])
def test_other_types_and_shapes_are_refused(tokens):
    with pytest.raises(TypeError, match=str(tokens.dtype)):
        TokenDataset(tokens, 2)


def test_a_fingerprint_tells_contents_types_and_boundaries_apart():
    def of(*arrays, dtype=np.uint8):
        return fingerprint(*(np.array(array, dtype=dtype) for array in arrays))

    assert of([1, 2], [3]) == of([1, 2], [3])
    variants = [of([1, 2], [3]), of([1], [2, 3]), of([1, 2, 3]), of([1, 2], [4]), of([1, 2], [3], dtype=np.uint16)]
    assert len(set(variants)) == len(variants)
