"""Rows of tokens to the devices that hold their experts, and back: all-to-all over the mesh axis of the experts.

Every device has rows sorted by expert, those of all E experts; the experts lie one share after the other on P devices.
Behind the exchange a device has the rows of its own experts from everywhere, again sorted by expert.

Shapes are fixed before the load is known: a device has room for all rows of all devices, P times its own, unless
`exchange_capacity_factor` bounds it. What has no room is not sent, and comes back as zero.
"""

import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32

from zoo.kernels.platform import target_platform
from zoo.nn.expert_dispatch import Dispatch, take_rows

ROOM_MULTIPLE = 16
"""A bounded room is so many rows or a multiple: whole tiles of bfloat16 on a TPU."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["counts"],
    meta_fields=["axes", "most", "room", "ragged"],
)
@dataclass(frozen=True)
class Exchange:
    """Who sends how much to whom."""

    counts: Int32[Array, "P E"]
    """Rows that each device has for each expert."""
    axes: tuple[str, ...]
    """Mesh axes that divide the experts."""
    most: int
    """Most rows that one device can have for the experts of another."""
    room: int
    """Most rows that a device takes in."""
    ragged: bool
    """Whether the back end sends parts of unequal size; otherwise all are padded to `most`."""

    @property
    def kept(self) -> Int32[Array, "P E"]:
        """Of `counts`, those that are sent. A device that would get more than it has room for takes the same part of
        everybody's rows for each of its experts, the first of them."""
        devices, experts = self.counts.shape
        if self.room == devices * self.most:
            return self.counts
        total = jnp.sum(self.counts.reshape(devices, devices, -1), axis=(0, 2))
        # A little less than the part, so that rounding never gives more rows than there is room for.
        part = self.room * (1 - 1e-6) / jnp.maximum(total, 1)
        part = jnp.repeat(jnp.where(total <= self.room, 1.0, part), experts // devices)
        return jnp.floor(self.counts * part).astype(jnp.int32)

    @property
    def dropped(self) -> Float32[Array, ""]:
        """Rows of this device that are not sent."""
        return jnp.sum(self.sent(self.counts) - self.sent(self.kept)).astype(jnp.float32)

    @property
    def own_sizes(self) -> Int32[Array, "E/P"]:
        """Rows of this device's experts behind the exchange."""
        return jnp.sum(self.own(self.kept), axis=0)

    def own(self, counts: Int32[Array, "P E"]) -> Int32[Array, "P E/P"]:
        """Of all counts, what each device has for this device's experts."""
        devices, experts = counts.shape
        share = experts // devices
        return jax.lax.dynamic_slice_in_dim(counts, jax.lax.axis_index(self.axes) * share, share, axis=1)

    def sent(self, counts: Int32[Array, "P E"]) -> Int32[Array, "E"]:
        """Of all counts, what this device has for each expert."""
        return jax.lax.dynamic_index_in_dim(counts, jax.lax.axis_index(self.axes), keepdims=False)


def plan_exchange(dispatch: Dispatch, axes: tuple[str, ...], capacity_factor: float | None = None) -> Exchange:
    """The exchange of a device's rows over the mesh axes that divide the experts.

    capacity_factor: bound of what a device takes in, a multiple of what a balanced load gives; None = no bound.
    """
    assert dispatch.group_sizes is not None
    devices = math.prod(jax.lax.axis_size(axis) for axis in axes)
    tokens, experts_per_token = dispatch.place.shape
    # A token has no two rows for one expert.
    most = tokens * min(experts_per_token, dispatch.num_experts // devices)
    room = devices * most
    if capacity_factor is not None:
        balanced = capacity_factor * tokens * experts_per_token
        room = min(room, math.ceil(balanced / ROOM_MULTIPLE) * ROOM_MULTIPLE)
    return Exchange(jax.lax.all_gather(dispatch.group_sizes, axes), axes, most, room, target_platform() != "cpu")


def send(rows: Float[Array, "R d"], exchange: Exchange) -> Float[Array, "room d"]:
    """To the experts; what is behind the last row of the last of them is zero. Backward, `send_back`."""
    return _send(rows, exchange.counts, exchange.axes, exchange.most, exchange.room, exchange.ragged)


def send_back(rows: Float[Array, "room d"], exchange: Exchange, length: int) -> Float[Array, "R d"]:
    """From the experts: the R = `length` rows that `send` was given, zero behind the last and for what had no room.
    Backward, `send`."""
    return _send_back(rows, exchange.counts, exchange.axes, exchange.most, exchange.room, exchange.ragged, length)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _send(rows, counts, axes, most, room, ragged):
    exchange = Exchange(counts, axes, most, room, ragged)
    if ragged:
        empty = jnp.zeros((room, rows.shape[1]), rows.dtype)
        (begin, to), _ = _ragged_offsets(exchange)
        kept = exchange.kept
        sizes = exchange.sent(kept), exchange.own(kept).reshape(-1)
        return _ragged(rows, empty, begin, sizes[0], to, sizes[1], axes)
    padded, merged = _padded(exchange), _merged(exchange)
    return take_rows(_swap(take_rows(rows, _or_none(padded.there, len(rows)), False), axes), merged.there, False)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5, 6))
def _send_back(rows, counts, axes, most, room, ragged, length):
    exchange = Exchange(counts, axes, most, room, ragged)
    if ragged:
        empty = jnp.zeros((length, rows.shape[1]), rows.dtype)
        _, (begin, to) = _ragged_offsets(exchange)
        kept = exchange.kept
        sizes = exchange.own(kept).reshape(-1), exchange.sent(kept)
        return _ragged(rows, empty, begin, sizes[0], to, sizes[1], axes)
    padded, merged = _padded(exchange), _merged(exchange)
    received = _swap(take_rows(rows, merged.back, False), axes)
    return take_rows(received, padded.back(length), False)


def _send_forward(rows, counts, *static):
    return _send(rows, counts, *static), (counts, jnp.zeros((len(rows), 0)))


def _send_backward(axes, most, room, ragged, saved, gradient):
    counts, rows = saved
    gradient = _send_back(gradient, counts, axes, most, room, ragged, len(rows))
    return gradient, np.zeros(counts.shape, jax.dtypes.float0)


def _send_back_forward(rows, counts, *static):
    return _send_back(rows, counts, *static), counts


def _send_back_backward(axes, most, room, ragged, length, counts, gradient):
    return _send(gradient, counts, axes, most, room, ragged), np.zeros(counts.shape, jax.dtypes.float0)


_send.defvjp(_send_forward, _send_backward)
_send_back.defvjp(_send_back_forward, _send_back_backward)


def _ragged(rows, out, begin, sent, to, received, axes: tuple[str, ...]) -> Float[Array, "R d"]:
    shape = out.shape
    if shape[1] % (8 * 128) == 0:
        # A row as a tile of a TPU: libtpu would make it two lines of one, which are slow to fill (v4: 2.3 for 0.7 ms).
        rows, out = (x.reshape(len(x), 8, -1) for x in (rows, out))
    return jax.lax.ragged_all_to_all(rows, out, begin, sent, to, received, axis_name=axes).reshape(shape)


def _swap(rows: Float[Array, "P*most d"], axes: tuple[str, ...]) -> Float[Array, "P*most d"]:
    return jax.lax.all_to_all(rows, axes, split_axis=0, concat_axis=0, tiled=True)


def _or_none(index: Int32[Array, "R"], length: int) -> Int32[Array, "R"]:
    return jnp.where(index < 0, length, index)


def _exclusive_sum(x: Int32[Array, "..."], axis: int) -> Int32[Array, "..."]:
    return jnp.cumsum(x, axis=axis, dtype=x.dtype) - x


def _ragged_offsets(exchange: Exchange) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """((input, output) offsets to the experts, (input, output) offsets back), one per part: for each device that it is
    sent to, one for each of the experts there (then: here)."""
    kept, devices = exchange.kept, len(exchange.counts)
    in_rows = _exclusive_sum(exchange.counts, axis=1)  # where a device's rows for an expert begin
    # Where they begin among those of the expert's device: behind its earlier experts, and other devices' rows.
    share = jnp.sum(kept, axis=0).reshape(devices, -1)
    behind = _exclusive_sum(share, axis=1).reshape(-1) + _exclusive_sum(kept, axis=0)
    there = exchange.sent(in_rows), exchange.sent(behind)
    back = exchange.own(behind).reshape(-1), exchange.own(in_rows).reshape(-1)
    return there, back


@dataclass(frozen=True)
class _Padded:
    """Between a device's rows, and the same in parts of `most` rows, one part for each device."""

    there: Int32[Array, "P*most"]
    """Row of every place in the parts, -1 = none."""
    starts: Int32[Array, "P"]
    sizes: Int32[Array, "P"]
    most: int

    def back(self, length: int) -> Int32[Array, "R"]:
        """Place in the parts of every row; none for those behind the last."""
        row = jnp.arange(length, dtype=jnp.int32)
        ends = self.starts + self.sizes
        part = jnp.minimum(jnp.searchsorted(ends, row, side="right"), len(ends) - 1).astype(jnp.int32)
        return jnp.where(row < ends[-1], part * self.most + row - self.starts[part], len(ends) * self.most)


def _padded(exchange: Exchange) -> _Padded:
    devices = len(exchange.counts)
    sizes = jnp.sum(exchange.sent(exchange.counts).reshape(devices, -1), axis=1)
    starts = _exclusive_sum(sizes, axis=0)
    within = jnp.arange(exchange.most, dtype=jnp.int32)
    there = jnp.where(within < sizes[:, None], starts[:, None] + within, -1).reshape(-1)
    return _Padded(there, starts, sizes, exchange.most)


@dataclass(frozen=True)
class _Merged:
    """Between the parts that a device receives, and their rows sorted by expert."""

    there: Int32[Array, "room"]
    """Place in the parts of every row; P * most = none."""
    back: Int32[Array, "P*most"]
    """Row of every place in the parts; room = none."""


def _merged(exchange: Exchange) -> _Merged:
    own, kept, most, room = exchange.own(exchange.counts), exchange.own(exchange.kept), exchange.most, exchange.room
    devices, share = own.shape
    total = devices * most
    in_part = _exclusive_sum(own, axis=1)
    pieces = kept.T.reshape(-1)  # by expert, then by device
    ends = jnp.cumsum(pieces, dtype=jnp.int32)
    starts = (ends - pieces).reshape(share, devices).T
    row = jnp.arange(room, dtype=jnp.int32)
    piece = jnp.minimum(jnp.searchsorted(ends, row, side="right"), len(ends) - 1).astype(jnp.int32)
    expert, device = jnp.divmod(piece, devices)
    place = device * most + in_part[device, expert] + row - starts[device, expert]
    there = jnp.where(row < ends[-1], place, total)

    part, within = jnp.divmod(jnp.arange(total, dtype=jnp.int32), most)
    part_ends = jnp.cumsum(own, axis=1, dtype=jnp.int32)
    of = jnp.sum(within[:, None] >= part_ends[part], axis=1, dtype=jnp.int32)
    expert = jnp.minimum(of, share - 1)
    within = within - in_part[part, expert]
    held = (of < share) & (within < kept[part, expert])
    back = jnp.where(held, starts[part, expert] + within, room)
    return _Merged(there, back)
