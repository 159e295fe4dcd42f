"""Random tokens: a sequence is a pure function of the seed and its index."""

import pytest
import torch

from disttrain.data import RandomTokensConfig

CONFIG = RandomTokensConfig(vocabulary_size=50, sequence_length=6, sequences=100, validation_sequences=20)


def test_a_sequence_does_not_depend_on_its_batch():
    train = CONFIG.build(seed=1).train
    together, _ = train.batch(torch.arange(100))
    alone, _ = train.batch(torch.tensor([7]))
    assert torch.equal(together[7], alone[0])


def test_targets_follow_inputs():
    inputs, targets = CONFIG.build(seed=1).train.batch(torch.arange(100))
    assert inputs.shape == targets.shape == (100, 6)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])


def test_tokens_fill_the_vocabulary_evenly():
    inputs, _ = (
        RandomTokensConfig(vocabulary_size=10, sequences=1000, sequence_length=100).build(seed=0).train.batch(torch.arange(1000))
    )
    counts = inputs.flatten().bincount()
    assert len(counts) == 10
    assert (counts - 10_000).abs().max() < 600  # six standard deviations


def test_seeds_splits_and_sequences_differ():
    one, two = CONFIG.build(seed=1), CONFIG.build(seed=2)
    first = [dataset.batch(torch.arange(20))[0] for dataset in (one.train, one.validation, two.train)]
    rows = torch.cat(first)
    assert len(rows.unique(dim=0)) == len(rows)


def test_the_fingerprint_names_the_seed_and_the_settings():
    assert CONFIG.build(seed=1).fingerprint == CONFIG.build(seed=1).fingerprint
    longer = CONFIG.model_copy(update={"sequence_length": 7})
    assert len({CONFIG.build(1).fingerprint, CONFIG.build(2).fingerprint, longer.build(1).fingerprint}) == 3


def test_the_corpus_describes_itself():
    corpus = CONFIG.build(seed=0)
    assert (len(corpus.train), len(corpus.validation), corpus.task.vocabulary_size) == (100, 20, 50)
    assert "ln(50) = 3.9120 nats" in corpus.description


def test_an_index_of_no_sequence_is_refused():
    with pytest.raises(IndexError, match=r"0 to 99, got \[100\]"):
        CONFIG.build(seed=0).train.batch(torch.tensor([100]))
