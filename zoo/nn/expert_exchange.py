"""Rows of tokens to the devices that hold their experts, and back: all-to-all over the mesh axis of the experts.

Every device has rows sorted by expert, those of all E experts; the experts lie one share after the other on P devices.
Behind the exchange a device has the rows of its own experts from everywhere, again sorted by expert.
"""

import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from zoo.kernels.platform import target_platform
from zoo.nn.expert_dispatch import Dispatch, take_rows


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["counts"],
    meta_fields=["axes", "most", "ragged"],
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
    ragged: bool
    """Whether the back end sends parts of unequal size; otherwise all are padded to `most`."""

    @property
    def own_sizes(self) -> Int32[Array, "E/P"]:
        """Rows of this device's experts behind the exchange."""
        return jnp.sum(self.own_counts, axis=0)

    @property
    def own_counts(self) -> Int32[Array, "P E/P"]:
        """Rows that each device has for this device's experts."""
        devices, experts = self.counts.shape
        share = experts // devices
        first = jax.lax.axis_index(self.axes) * share
        return jax.lax.dynamic_slice_in_dim(self.counts, first, share, axis=1)

    @property
    def sent_counts(self) -> Int32[Array, "E"]:
        """Rows that this device has for each expert."""
        return jax.lax.dynamic_index_in_dim(self.counts, jax.lax.axis_index(self.axes), keepdims=False)


def plan_exchange(dispatch: Dispatch, axes: tuple[str, ...]) -> Exchange:
    """The exchange of a device's rows over the mesh axes that divide the experts."""
    assert dispatch.group_sizes is not None
    devices = math.prod(jax.lax.axis_size(axis) for axis in axes)
    tokens, experts_per_token = dispatch.place.shape
    # A token has no two rows for one expert.
    most = tokens * min(experts_per_token, dispatch.num_experts // devices)
    return Exchange(jax.lax.all_gather(dispatch.group_sizes, axes), axes, most, target_platform() != "cpu")


def send(rows: Float[Array, "R d"], exchange: Exchange) -> Float[Array, "P*most d"]:
    """To the experts; what is behind the last row of the last of them is zero. Backward, `send_back`."""
    return _send(rows, exchange.counts, exchange.axes, exchange.most, exchange.ragged)


def send_back(rows: Float[Array, "P*most d"], exchange: Exchange, length: int) -> Float[Array, "R d"]:
    """From the experts: the R = `length` rows that `send` was given, zero behind the last. Backward, `send`."""
    return _send_back(rows, exchange.counts, exchange.axes, exchange.most, exchange.ragged, length)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _send(rows, counts, axes, most, ragged):
    exchange = Exchange(counts, axes, most, ragged)
    if ragged:
        empty = jnp.zeros((len(counts) * most, rows.shape[1]), rows.dtype)
        there, _ = _ragged_offsets(exchange)
        own = exchange.own_counts.reshape(-1)
        return jax.lax.ragged_all_to_all(rows, empty, there[0], exchange.sent_counts, there[1], own, axis_name=axes)
    padded, merged = _padded(exchange), _merged(exchange)
    return take_rows(_swap(take_rows(rows, _or_none(padded.there, len(rows)), False), axes), merged.there, False)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _send_back(rows, counts, axes, most, ragged, length):
    exchange = Exchange(counts, axes, most, ragged)
    if ragged:
        empty = jnp.zeros((length, rows.shape[1]), rows.dtype)
        _, back = _ragged_offsets(exchange)
        own = exchange.own_counts.reshape(-1)
        return jax.lax.ragged_all_to_all(rows, empty, back[0], own, back[1], exchange.sent_counts, axis_name=axes)
    padded, merged = _padded(exchange), _merged(exchange)
    received = _swap(take_rows(rows, merged.back, False), axes)
    return take_rows(received, padded.back(length), False)


def _send_forward(rows, counts, axes, most, ragged):
    return _send(rows, counts, axes, most, ragged), (counts, jnp.zeros((len(rows), 0)))


def _send_backward(axes, most, ragged, saved, gradient):
    counts, rows = saved
    gradient = _send_back(gradient, counts, axes, most, ragged, len(rows))
    return gradient, np.zeros(counts.shape, jax.dtypes.float0)


def _send_back_forward(rows, counts, axes, most, ragged, length):
    return _send_back(rows, counts, axes, most, ragged, length), counts


def _send_back_backward(axes, most, ragged, length, counts, gradient):
    return _send(gradient, counts, axes, most, ragged), np.zeros(counts.shape, jax.dtypes.float0)


_send.defvjp(_send_forward, _send_backward)
_send_back.defvjp(_send_back_forward, _send_back_backward)


def _swap(rows: Float[Array, "P*most d"], axes: tuple[str, ...]) -> Float[Array, "P*most d"]:
    return jax.lax.all_to_all(rows, axes, split_axis=0, concat_axis=0, tiled=True)


def _or_none(index: Int32[Array, "R"], length: int) -> Int32[Array, "R"]:
    return jnp.where(index < 0, length, index)


def _exclusive_sum(x: Int32[Array, "..."], axis: int) -> Int32[Array, "..."]:
    return jnp.cumsum(x, axis=axis, dtype=x.dtype) - x


def _ragged_offsets(exchange: Exchange) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """((input, output) offsets to the experts, (input, output) offsets back), one per part: for each device that it is
    sent to, one for each of the experts there (then: here)."""
    counts, own = exchange.counts, exchange.own_counts
    devices, experts = counts.shape
    me = jax.lax.axis_index(exchange.axes)
    in_rows = _exclusive_sum(counts, axis=1)  # where a device's rows for an expert begin
    # Where they begin among those of the expert's device: behind its earlier experts, and other devices' rows.
    share = jnp.sum(counts, axis=0).reshape(devices, -1)
    behind = _exclusive_sum(share, axis=1).reshape(-1) + _exclusive_sum(counts, axis=0)
    first = me * (experts // devices)
    there = (
        jax.lax.dynamic_index_in_dim(in_rows, me, keepdims=False),
        jax.lax.dynamic_index_in_dim(behind, me, keepdims=False),
    )
    back = (
        jax.lax.dynamic_slice_in_dim(behind, first, own.shape[1], axis=1).reshape(-1),
        jax.lax.dynamic_slice_in_dim(in_rows, first, own.shape[1], axis=1).reshape(-1),
    )
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
    sizes = jnp.sum(exchange.sent_counts.reshape(devices, -1), axis=1)
    starts = _exclusive_sum(sizes, axis=0)
    within = jnp.arange(exchange.most, dtype=jnp.int32)
    there = jnp.where(within < sizes[:, None], starts[:, None] + within, -1).reshape(-1)
    return _Padded(there, starts, sizes, exchange.most)


@dataclass(frozen=True)
class _Merged:
    """Between the parts that a device receives, and their rows sorted by expert."""

    there: Int32[Array, "P*most"]
    """Place in the parts of every row."""
    back: Int32[Array, "P*most"]
    """Row of every place in the parts."""


def _merged(exchange: Exchange) -> _Merged:
    own, most = exchange.own_counts, exchange.most
    devices, share = own.shape
    total = devices * most
    in_part = _exclusive_sum(own, axis=1)
    pieces = own.T.reshape(-1)  # by expert, then by device
    ends = jnp.cumsum(pieces, dtype=jnp.int32)
    starts = (ends - pieces).reshape(share, devices).T
    row = jnp.arange(total, dtype=jnp.int32)
    piece = jnp.minimum(jnp.searchsorted(ends, row, side="right"), len(ends) - 1).astype(jnp.int32)
    expert, device = jnp.divmod(piece, devices)
    place = device * most + in_part[device, expert] + row - starts[device, expert]
    there = jnp.where(row < ends[-1], place, total)

    part, within = jnp.divmod(row, most)
    part_ends = jnp.cumsum(own, axis=1, dtype=jnp.int32)
    of = jnp.sum(within[:, None] >= part_ends[part], axis=1, dtype=jnp.int32)
    held = of < share
    of = jnp.minimum(of, share - 1)
    back = jnp.where(held, starts[part, of] + within - in_part[part, of], total)
    return _Merged(there, back)
