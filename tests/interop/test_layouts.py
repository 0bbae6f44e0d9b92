import numpy as np
import pytest

from zoo.interop.gemma2_names import HUGGINGFACE, deepmind_places
from zoo.interop.layouts import Layout
from zoo.interop.places import Place, read_parameter, read_stored, stored_sources
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
def test_every_place_read_backwards_gives_the_stored_tensor(places):
    stored = {
        place.name: np.random.default_rng(0).normal(size=place.stored_shape(SIZES)).astype(np.float32)
        for place in places.values()
    }
    ours = {name: read_parameter(place, SIZES, stored.__getitem__) for name, place in places.items()}
    sources = stored_sources(places, SIZES)
    assert sorted(sources) == sorted(stored)
    for name, source in sources.items():
        np.testing.assert_array_equal(read_stored(source, SIZES, lambda ours_, _: ours[ours_]), stored[name])


def test_tensors_of_single_experts_become_one_stack_and_single_tensors_again():
    sizes = {**SIZES, "E": 3}
    places = {"gate": Place("experts.{expert}.w1", Layout("F D -> D F"))}
    stored = {f"experts.{e}.w1": np.full((5, 6), e) + np.arange(30).reshape(5, 6) for e in range(3)}
    gate = read_parameter(places["gate"], sizes, stored.__getitem__)
    assert gate.shape == (3, 6, 5)
    assert gate[2, 5, 1] == stored["experts.2.w1"][1, 5]
    for name, source in stored_sources(places, sizes).items():
        np.testing.assert_array_equal(read_stored(source, sizes, lambda _, e: gate[e]), stored[name])


def test_interleaved_columns_of_one_tensor_become_two_parameters():
    sizes = {**SIZES, "E": 2}
    layout = Layout("E D (F P) -> P E D F")
    places = {name: Place("gate_up", layout, slot=i, parts=2) for i, name in enumerate(("gate", "up"))}
    stored = np.arange(2 * 6 * 10).reshape(2, 6, 10)
    ours = {name: read_parameter(place, sizes, lambda _: stored) for name, place in places.items()}
    np.testing.assert_array_equal(ours["gate"], stored[..., ::2])
    np.testing.assert_array_equal(ours["up"], stored[..., 1::2])
    (source,) = stored_sources(places, sizes).values()
    np.testing.assert_array_equal(read_stored(source, sizes, lambda name, _: ours[name]), stored)


def test_a_stored_axis_of_one_is_dropped_and_comes_back():
    layout = Layout("D 1 S -> S D")
    stored = np.arange(12).reshape(6, 1, 2)
    ours = layout.to_ours(stored, {"D": 6, "S": 2})
    np.testing.assert_array_equal(ours, stored[:, 0].T)
    np.testing.assert_array_equal(layout.to_stored(ours, {"D": 6, "S": 2}), stored)


def test_an_equation_with_unequal_sides_is_a_mistake():
    with pytest.raises(ValueError, match="same axes"):
        Layout("N D -> D K").to_ours(np.zeros((4, 6)), SIZES)
