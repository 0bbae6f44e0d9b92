"""Do all implementations compute one function? Errors against the dense reference in float64, cell by cell.

python -m experiments.attention_kernels.parity     # writes docs/benchmarks/attention-parity.md; some minutes
"""

import datetime
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from zoo.kernels import dot_product_attention
from zoo.kernels.attention.visibility import EMPTY_POSITION
from zoo.kernels.decode_attention import decode_attention
from zoo.nn import empty_cache

LENGTH, WINDOW, SOFT_CAP, SCALE = 600, 200, 50.0, 0.3
"""More than one block of every kernel, and a window that is no multiple of one; the scores come near to the cap."""

BATCH, HEADS, KV_HEADS, HEAD_DIM = 2, 4, 2, 64

LAYERS = ("local", "global", "ring cache")
"""With a window, without one, and one token against a ring of WINDOW slots."""

IMPLEMENTATIONS = ("xla", "pallas_tpu", "pallas_gpu")
"""What is compared with "reference"; "pallas_tpu" serves global layers by splash, which takes no float64."""

DTYPES = ("float64", "float32", "bfloat16")


@dataclass(frozen=True)
class Case:
    """One cell of the matrix."""

    implementation: str
    """Name for `dot_product_attention` or `decode_attention`."""
    layer: str
    """One of LAYERS."""
    packed: bool
    """Rows of several documents with padding at the end; with a ring cache, prompts padded on the left."""
    capped: bool
    """With a soft-cap of 50."""
    dtype: str
    """Of query, key and value; the reference always gets the same numbers as float64."""

    @property
    def exists(self) -> bool:
        """Whether the implementation computes in this dtype at all."""
        return (self.implementation, self.layer, self.dtype) != ("pallas_tpu", "global", "float64")


@dataclass(frozen=True)
class Errors:
    """Largest difference from the reference, divided by its largest value."""

    forward: float
    """Of the outputs."""
    backward: float | None
    """Of the gradients of query, key and value, the worst of the three; None where there is no backward pass."""


def cases() -> list[Case]:
    """The whole matrix."""
    return [
        case
        for layer in LAYERS
        for implementation in IMPLEMENTATIONS
        for packed in (False, True)
        for capped in (True, False)
        for dtype in DTYPES
        if (case := Case(implementation, layer, packed, capped, dtype)).exists
    ]


def limits(case: Case) -> Errors:
    """What the errors of a case may be: rounding of its dtype; in bfloat16 twice those of "xla" on the same numbers."""
    if case.dtype == "bfloat16":
        xla = measure(Case("xla", case.layer, case.packed, case.capped, case.dtype))
        return Errors(2 * xla.forward, None if xla.backward is None else 2 * xla.backward)
    return {"float64": Errors(1e-12, 1e-12), "float32": Errors(2e-6, 1e-5)}[case.dtype]


@functools.cache
def measure(case: Case) -> Errors:
    """Runs a case, once, and the reference; off their hardware the kernels are interpreted."""
    with jax.enable_x64(True):
        return (_ring_cache if case.layer == "ring cache" else _layer)(case)


def table() -> str:
    """The matrix as Markdown: a row for each layer and option, a column for each dtype and direction."""
    lines = [
        "| layer | implementation | rows | soft-cap | "
        + " | ".join(f"{x} forward | {x} backward" for x in DTYPES)
        + " |",
        "|---" * (4 + 2 * len(DTYPES)) + "|",
    ]
    rows: dict[tuple[str, ...], list[str]] = {}
    for case in cases():
        errors, allowed = measure(case), limits(case)
        where = case.layer, case.implementation, "packed" if case.packed else "plain", "50" if case.capped else "-"
        cells = rows.setdefault(where, ["-"] * 2 * len(DTYPES))
        pairs = (errors.forward, allowed.forward), (errors.backward, allowed.backward)
        for column, (error, limit) in enumerate(pairs, 2 * DTYPES.index(case.dtype)):
            if error is not None and limit is not None:
                cells[column] = f"{error:.1e}" + ("" if error <= limit else " MISSED")
    lines += ["| " + " | ".join((*where, *cells)) + " |" for where, cells in rows.items()]
    return "\n".join(lines)


def _layer(case: Case) -> Errors:
    out, *gradients = _run(case)
    expected, *expected_gradients = _reference(case.layer, case.packed, case.capped)
    return Errors(_error(out, expected), max(_error(x, y) for x, y in zip(gradients, expected_gradients, strict=True)))


@functools.cache
def _reference(layer: str, packed: bool, capped: bool) -> tuple[Array, ...]:
    return _run(Case("reference", layer, packed, capped, "float64"))


def _run(case: Case) -> tuple[Array, ...]:
    """Output and the gradients of query, key and value."""
    rng = np.random.default_rng(7)
    qkv, positions, segments = _arrays(rng, case.dtype), None, None
    if case.packed:
        positions, segments = pack(rng, BATCH, LENGTH)
    weight = jnp.asarray(rng.normal(size=qkv[0].shape))

    def loss(*qkv):
        out = dot_product_attention(
            *qkv,
            scale=SCALE,
            sliding_window=WINDOW if case.layer == "local" else None,
            logits_soft_cap=SOFT_CAP if case.capped else None,
            query_positions=positions,
            key_positions=positions,
            query_segment_ids=segments,
            key_segment_ids=segments,
            ordered_positions=True,
            implementation=case.implementation,
        )
        return (out.astype(jnp.float64) * weight).sum(), out

    gradients, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*qkv)
    return out, *gradients


def _ring_cache(case: Case) -> Errors:
    rng = np.random.default_rng(8)
    query, key, value = _arrays(rng, case.dtype)
    positions = np.tile(np.arange(LENGTH, dtype=np.int32), (BATCH, 1))
    if case.packed:
        # The second prompt is so short that its padding is still in the ring.
        padding = LENGTH - WINDOW // 2
        positions[1] = np.where(positions[1] < padding, EMPTY_POSITION, positions[1] - padding)
    cache = empty_cache(BATCH, WINDOW, KV_HEADS, HEAD_DIM, key.dtype)
    cache = cache.write(key[:, :-1], value[:, :-1], jnp.asarray(positions[:, :-1]))
    options: dict[str, Any] = dict(scale=SCALE, sliding_window=WINDOW)
    options["logits_soft_cap"] = SOFT_CAP if case.capped else None
    out = decode_attention(
        query[:, -1],
        (cache.key, cache.value, cache.positions),
        (key[:, -1], value[:, -1], jnp.asarray(positions[:, -1:])),
        jnp.asarray(positions[:, -1:]),
        implementation=case.implementation,
        **options,
    )
    expected = dot_product_attention(
        *(x.astype("float64") for x in (query[:, -1:], key, value)),
        query_positions=jnp.asarray(positions[:, -1:]),
        key_positions=jnp.asarray(positions),
        implementation="reference",
        **options,
    )[:, 0]
    return Errors(_error(out, expected), None)


def pack(rng: np.random.Generator, batch: int, length: int) -> tuple[Int[Array, "b t"], Int[Array, "b t"]]:
    """Positions and segment ids of rows with three documents of random lengths and padding (segment 0) at the end."""
    positions, segments = np.zeros((2, batch, length), np.int32)
    for row in range(batch):
        cuts = sorted(rng.choice(np.arange(1, length), 3, replace=False))
        for index, (start, stop) in enumerate(zip([0, *cuts], [*cuts, length], strict=True)):
            positions[row, start:stop] = np.arange(stop - start)
            segments[row, start:stop] = (index + 1) % 4
    return jnp.asarray(positions), jnp.asarray(segments)


def _arrays(rng, dtype) -> list[Float[Array, "b t n h"]]:
    """Query, key and value: numbers that every dtype can hold, so that rounding the inputs is no part of an error."""
    heads = (HEADS, KV_HEADS, KV_HEADS)
    return [jnp.asarray(rng.normal(size=(BATCH, LENGTH, n, HEAD_DIM)), jnp.bfloat16).astype(dtype) for n in heads]


def _error(x: Array, expected: Array) -> float:
    return float(jnp.abs(x.astype(jnp.float64) - expected).max() / jnp.abs(expected).max())


def main() -> None:
    """Writes the table."""
    page = Path(__file__).parents[2] / "docs" / "benchmarks" / "attention-parity.md"
    page.write_text(
        f"# Attention: the parity matrix, {datetime.date.today()}\n\n"
        "`python -m experiments.attention_kernels.parity`; the same cells are the test "
        "`tests/kernels/test_parity_matrix.py`. Greatest difference from the dense reference in float64 over its "
        "greatest value, of the outputs and of the worst of the gradients of query, key and value. Limits: 1e-12 in "
        "float64, 2e-6 and 1e-5 in float32, in bfloat16 twice the error of `xla`; a cell beyond its limit says MISSED. "
        f"B = {BATCH}, T = {LENGTH}, W = {WINDOW}, {HEADS}/{KV_HEADS} heads of {HEAD_DIM}; packed: three documents and "
        "padding, in the ring cache a prompt padded on the left. Kernels are interpreted; `pallas_tpu` serves global "
        f"layers by splash, which has no float64. jax {jax.__version__}, CPU.\n\n{table()}\n",
        "utf-8",
    )
    print(page)


if __name__ == "__main__":
    main()
