import dataclasses
import math
from collections import Counter

import numpy as np
import pytest

from zoo.data import baselines, batch_bytes, validation_dataset


def test_the_baselines_are_the_cross_entropies_of_add_one_frequencies(corpus, tokenizer, config):
    validation = validation_dataset(corpus, tokenizer, config)
    found = baselines(corpus, tokenizer, validation)

    tokens, characters = Counter(), Counter()
    for text in corpus.train_texts():
        tokens.update([*tokenizer.encode(text), tokenizer.eos_id])
        characters.update(text.encode())
    targets = [id for batch in validation for id in batch.targets[batch.loss_weights > 0].tolist()]
    text = b"".join(tokenizer.token_strings()[id] for id in targets)
    nats = [-math.log((tokens[id] + 1) / (tokens.total() + tokenizer.vocab_size)) for id in targets]
    bits = [-math.log2((characters[byte] + 1) / (characters.total() + 256)) for byte in text]
    assert found.unigram_nats_per_token == pytest.approx(np.mean(nats))
    assert found.unigram_bits_per_byte == pytest.approx(sum(nats) / math.log(2) / len(text))
    assert found.byte_unigram_bits_per_byte == pytest.approx(sum(bits) / len(text))
    assert 0 < found.unigram_bits_per_byte < found.byte_unigram_bits_per_byte < 8


def test_the_bytes_of_a_validation_are_those_of_the_held_out_texts(corpus, tokenizer, config):
    validation = validation_dataset(corpus, tokenizer, dataclasses.replace(config, validation_batches=1000))
    texts = [corpus.sources[0].validation[i] for i in range(corpus.num_validation_documents)]
    assert sum(batch_bytes(batch, tokenizer) for batch in validation) == sum(len(text.encode()) for text in texts)


def test_a_validation_that_predicts_nothing_has_no_baseline(corpus, tokenizer):
    with pytest.raises(ValueError, match="predicts no token"):
        baselines(corpus, tokenizer, [])
