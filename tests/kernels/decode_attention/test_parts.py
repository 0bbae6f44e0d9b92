"""Decode attention to parts of the slots, merged, equals decode attention to all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.kernels.decode_attention.cases import CASES
from tests.marks import slow
from zoo.kernels.attention.block import NO_KEY
from zoo.kernels.attention.visibility import EMPTY_POSITION
from zoo.kernels.decode_attention import decode_attention, decode_attention_part, merge_decoded


def in_parts(case, implementation: str, soft_cap: float | None, parts: int):
    """(merged, whole); the own token belongs to the last part."""
    query, (key, value, positions), (own_key, own_value, own_position), query_positions = case.arguments(jnp.float32)
    options = case.options(soft_cap)
    size = -(-case.slots // parts)
    found = []
    for part in range(parts):
        slots = slice(part * size, (part + 1) * size)
        here = own_position if part == parts - 1 else jnp.full_like(own_position, EMPTY_POSITION)
        found.append(
            decode_attention_part(
                query,
                (key[..., slots], value[:, :, slots], positions[:, slots]),
                (own_key, own_value, here),
                query_positions,
                implementation=implementation,
                **options,
            )
        )
    out, lse = (jnp.stack(x) for x in zip(*found, strict=True))
    merged = jax.vmap(lambda out, lse: merge_decoded(out, lse, ("part",)), axis_name="part")(out, lse)
    whole = decode_attention(
        query,
        (key, value, positions),
        (own_key, own_value, own_position),
        query_positions,
        implementation="reference",
        **options,
    )
    return merged, whole, lse


@pytest.mark.parametrize(
    ("implementation", "soft_cap"),
    [
        ("xla", 50.0),
        ("pallas_tpu", None),
        ("pallas_gpu", None),
        *slow(("reference", None), ("xla", None), ("pallas_tpu", 50.0), ("pallas_gpu", 50.0)),
    ],
)
def test_merged_parts_are_the_attention_to_all_slots(implementation, soft_cap):
    merged, whole, lse = in_parts(CASES[0], implementation, soft_cap, 3)
    for one in merged:
        np.testing.assert_allclose(one, whole, atol=2e-5, rtol=2e-5)
    # Row 2 is padding: nothing is visible in any part.
    assert (np.asarray(lse)[:, 2] == np.float32(NO_KEY)).all()
    assert (np.asarray(lse)[:, 0] > -100).all()
