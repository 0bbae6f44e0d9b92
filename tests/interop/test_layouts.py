import numpy as np
import pytest

from zoo.interop.gemma2_names import HUGGINGFACE, deepmind_places
from zoo.interop.layouts import Layout
from zoo.models import preset

SIZES = {"V": 11, "D": 6, "N": 4, "K": 2, "H": 3, "F": 5}


def test_a_torch_query_projection_becomes_embed_heads_head_dim():
    stored = np.arange(12 * 6, dtype=np.float32).reshape(12, 6)  # [heads * head_dim, embed]
    ours = Layout("(N H) D -> D N H").to_ours(stored, SIZES)
    assert ours.shape == (6, 4, 3)
    assert ours[5, 2, 1] == stored[2 * 3 + 1, 5]


def test_a_torch_output_projection_becomes_heads_head_dim_embed():
    stored = np.arange(6 * 12, dtype=np.float32).reshape(6, 12)  # [embed, heads * head_dim]
    ours = Layout("D (N H) -> N H D").to_ours(stored, SIZES)
    assert ours.shape == (4, 3, 6)
    assert ours[2, 1, 5] == stored[5, 2 * 3 + 1]


DEEPMIND = [deepmind_places(preset(name), transpose_gating=flag) for name in ("gemma2-2b",) for flag in (False, True)]


@pytest.mark.parametrize("places", [HUGGINGFACE, *DEEPMIND], ids=["huggingface", "deepmind", "deepmind-transposed"])
def test_every_layout_read_backwards_gives_the_stored_tensor(places):
    for entry in places.values():
        stored = np.random.default_rng(0).normal(size=entry.layout.stored_shape(SIZES)).astype(np.float32)
        ours = entry.layout.to_ours(stored, SIZES)
        np.testing.assert_array_equal(entry.layout.to_stored(ours, SIZES), stored)


def test_an_equation_with_unequal_sides_is_a_mistake():
    with pytest.raises(ValueError, match="same axes"):
        Layout("N D -> D K").to_ours(np.zeros((4, 6)), SIZES)
