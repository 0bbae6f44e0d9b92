"""Continual multilingual learning: deltas of their own, and parts of a change, in a tiny model."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from experiments.continual_multilingual.arms import LAFT, OWN, arm_named
from experiments.continual_multilingual.corpora import made_up_corpus
from experiments.continual_multilingual.network import network_of
from experiments.continual_multilingual.rows import encoded
from experiments.continual_multilingual.sizes import QUICK_SIZE, TAGGING, quick_family
from experiments.continual_multilingual.trainer import Plan, batches, start, train
from experiments.continual_multilingual.updates import Session, weakened

FAMILY = dataclasses.replace(quick_family(TAGGING), per_language=8, test=8)
SIZE = dataclasses.replace(QUICK_SIZE, new_rows=16, dev=4)
UPDATED = [1, 4]


@pytest.fixture(scope="module")
def session():
    """Of a model with random weights."""
    corpus = made_up_corpus(FAMILY, SIZE)
    found = Session(FAMILY, SIZE, corpus, encoded(FAMILY, SIZE, corpus))
    found.base = nnx.split(network_of(FAMILY, SIZE, found.data.vocab_size, found.data.outputs, 0))[1]
    return found


@pytest.fixture(scope="module")
def trained(session):
    """Deltas of two languages, after some steps."""
    rows = session.data.new.of(UPDATED)
    plan = Plan(rows, batches(len(rows), SIZE.batch_size, 0), 4, 0.1, 0, 1, lambda weights: 0.0)
    gates = session.gates(arm_named(OWN), UPDATED, 0)
    return train(session.programs, start(session.programs, "bottleneck", session.base, 0, gates), plan).weights


def logits(session, weights):
    """Of all test rows, compiled, each row with its language's gates."""
    rows, structure = session.data.test, session.programs.trainable(weights.kind)
    gates = None if weights.gates is None else weights.gates[rows.language]
    read = jax.jit(lambda *numbers: structure.model(*numbers, gates)(rows.tokens))
    return np.asarray(read(weights.trained, weights.base, weights.buffers))


def test_own_deltas_leave_what_others_compute_exactly_as_it_was(session, trained):
    before = logits(session, start(session.programs, "full", session.base, 0))
    after, language = logits(session, trained), session.data.test.language
    for number in range(len(FAMILY.languages)):
        own = language == number
        if number in UPDATED:
            assert np.abs(after[own] - before[own]).max() > 1e-2
        else:
            np.testing.assert_array_equal(after[own], before[own])


def test_sharing_by_distance_changes_relatives_more_and_no_part_changes_nothing(session, trained):
    before = logits(session, start(session.programs, "full", session.base, 0))
    gates = session.gates(arm_named(LAFT), UPDATED, 0)
    shared, language = dataclasses.replace(trained, gates=gates), session.data.test.language
    change = np.abs(logits(session, shared) - before).reshape(len(language), -1).mean(1)
    aa, ba = (change[language == FAMILY.languages.index(name)].mean() for name in ("aa", "ba"))
    assert aa > ba > 0
    np.testing.assert_array_equal(logits(session, weakened(shared, 0.0)), before)
