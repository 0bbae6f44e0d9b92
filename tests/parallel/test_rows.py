"""Every device gets its part of the global batch, from all rows or from those that its process holds."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from zoo.data import Batch
from zoo.parallel import Rows, rows_by_process, rows_only, to_devices

BATCH = {"tokens": np.arange(8 * 6).reshape(8, 6), "media": np.arange(8 * 6 * 2.0).reshape(8, 6, 2)}


def sharding(spec, shape=(4, 2)):
    return NamedSharding(Mesh(np.array(jax.devices()[:8]).reshape(shape), ("data", "context")), spec)


@pytest.mark.parametrize("spec", [P("data"), P("data", "context"), P(None, "context"), P(("data", "context"))])
def test_every_device_holds_its_part_of_a_whole_batch(spec):
    placed = to_devices(BATCH, sharding(spec))
    for name, array in placed.items():
        np.testing.assert_array_equal(np.asarray(array), BATCH[name])
        assert array.sharding.is_equivalent_to(sharding(spec), array.ndim)


def test_rows_are_found_by_their_numbers():
    mine = NamedSharding(Mesh(np.array(jax.devices()[:2]), ("data",)), P("data"))
    placed = to_devices(Rows(BATCH, tuple(range(8)), 8), mine)
    np.testing.assert_array_equal(np.asarray(placed["tokens"]), BATCH["tokens"])


@pytest.mark.parametrize("rows", [True, False])
def test_media_of_a_batch_are_divided_by_rows_only(rows):
    arrays = BATCH["tokens"].astype(np.int32)
    batch = Batch(arrays, arrays, arrays, arrays, arrays, media={"mel": np.arange(8 * 5 * 3.0).reshape(8, 5, 3)})
    placed = to_devices(Rows(batch, tuple(range(8)), 8) if rows else batch, sharding(P("data", "context")))
    assert placed.tokens.sharding.is_equivalent_to(sharding(P("data", "context")), 2)
    assert placed.media["mel"].sharding.is_equivalent_to(sharding(P("data")), 3)
    assert rows_only(sharding(P("data", "context"))).is_equivalent_to(sharding(P("data")), 3)
    np.testing.assert_array_equal(np.asarray(placed.media["mel"]), batch.media["mel"])


class Device:
    def __init__(self, process):
        self.process_index = process


class Sharding:
    """The sharding of arrays on devices of several processes, which one process cannot make."""

    def __init__(self, parts):
        self._parts = parts

    def devices_indices_map(self, _shape):
        return {Device(process): (rows, slice(None)) for process, rows in self._parts}


def test_the_rows_of_a_process_are_those_on_its_devices_whatever_its_number():
    parts = [(1, slice(0, 2)), (1, slice(4, 6)), (0, slice(2, 4)), (0, slice(2, 4)), (2, slice(6, 8))]
    assert rows_by_process(Sharding(parts), 8, 6) == {0: (2, 3), 1: (0, 1, 4, 5), 2: (6, 7)}


def test_an_axis_that_does_not_divide_the_batch_gives_every_process_all_rows():
    assert rows_by_process(Sharding([(0, slice(None)), (1, slice(None))]), 3, 6) == {0: (0, 1, 2), 1: (0, 1, 2)}
