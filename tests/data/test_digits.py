"""The digits are scikit-learn's, scaled, each on one side only; and a labelled data set hands out copies."""

from collections import Counter

import pytest
import torch
from sklearn.datasets import load_digits

from disttrain.data import DigitsConfig, LabelledDataset
from disttrain.task import ClassificationTask


def everything(dataset):
    return dataset.batch(torch.arange(len(dataset)))


def test_both_sides_together_are_scikit_learns_images_and_labels():
    corpus = DigitsConfig().build(seed=0)
    ours = Counter()
    for side in (corpus.train, corpus.validation):
        inputs, labels = everything(side)
        assert (inputs.dtype, inputs.shape[1:], labels.dtype) == (torch.float32, (1, 8, 8), torch.int64)
        assert torch.equal(side.labels, labels)
        ours.update(
            (tuple(image.flatten().mul(16).tolist()), label) for image, label in zip(inputs, labels.tolist(), strict=True)
        )
    theirs = load_digits()
    assert ours == Counter((tuple(row), label) for row, label in zip(theirs.data.tolist(), theirs.target.tolist(), strict=True))


def test_a_fifth_of_every_class_is_kept_for_validation():
    corpus = DigitsConfig().build(seed=0)
    assert 0.17 < len(corpus.validation) / 1797 < 0.23
    counts = corpus.validation.labels.bincount(minlength=10)
    assert counts.shape == (10,)
    assert counts.min() > 20


def test_the_corpus_describes_itself():
    corpus = DigitsConfig().build(seed=0)
    assert corpus.task == ClassificationTask((1, 8, 8), 10)
    assert corpus.unit == "sample"
    assert f"{len(corpus.train):,} images to train on" in corpus.description
    assert everything(corpus.train)[0].max() == 1.0


def test_the_split_is_the_same_for_every_seed_and_told_by_the_fingerprint():
    assert DigitsConfig().build(seed=1).fingerprint == DigitsConfig().build(seed=2).fingerprint
    assert DigitsConfig(validation_ratio=0.3).build(seed=1).fingerprint != DigitsConfig().build(seed=1).fingerprint


@pytest.mark.parametrize(("ratio", "sizes"), [(1e-9, (1796, 1)), (1 - 1e-9, (1, 1796))])
def test_no_side_is_ever_empty(ratio, sizes):
    corpus = DigitsConfig(validation_ratio=ratio).build(seed=0)
    assert (len(corpus.train), len(corpus.validation)) == sizes


def test_writing_to_a_batch_leaves_the_data_alone():
    dataset = LabelledDataset(torch.ones(3, 2), torch.arange(3))
    for part in dataset.batch(torch.arange(3)):
        part.zero_()
    assert dataset.inputs.sum() == 6
    assert dataset.labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize("index", [-1, 3])
def test_an_index_of_no_sample_is_refused(index):
    with pytest.raises(IndexError, match=rf"0 to 2, got \[{index}\]"):
        LabelledDataset(torch.ones(3, 2), torch.arange(3)).batch(torch.tensor([0, index]))


@pytest.mark.parametrize(
    ("inputs", "labels"),
    [
        (torch.ones(3, 2), torch.arange(4)),
        (torch.ones(3, 2), torch.ones(3)),
        (torch.ones(3, 2).double(), torch.arange(3)),
        (torch.ones(3, 2), torch.arange(3)[:, None]),
    ],
)
def test_other_types_and_numbers_are_refused(inputs, labels):
    with pytest.raises(TypeError, match=r"inputs float32 \[n, ...\] and labels int64 \[n\], got torch.float"):
        LabelledDataset(inputs, labels)
