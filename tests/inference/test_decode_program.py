import re

import numpy as np
import pytest

from zoo.inference import Sampling, generation
from zoo.inference.model import take_apart
from zoo.inference.prompts import positions_of, row_keys


@pytest.mark.parametrize("batch", [1, 3])
def test_a_decode_step_neither_copies_nor_transposes_the_cache(model, batch):
    structure, arrays = take_apart(model)
    programs = generation._programs(structure, Sampling(), 0)
    prompts = np.random.default_rng(0).integers(3, 96, (batch, 5)).astype(np.int32)
    ones, stops = np.ones_like(prompts), np.zeros(0, np.int32)
    keys = row_keys(0, prompts, ones)
    cache, last = programs.prefill(arrays, prompts, positions_of(ones), None, keys, stops, cache_length=53)
    program = programs.decode.lower(arrays, cache, last, keys, stops, 3).compile().as_text()
    assert re.findall(r"= \w+\[[0-9,]*\b(?:53,16|16,53)\b[0-9,]*\]\S* (?:copy|transpose)\(", program) == []
