"""How compiled TPU programs grow with T: trips, temporary memory, declared cost; and the global and decode kernels."""

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.attention_kernels.schedules import OURS, SPLASH, case, declared_flops, growth, is_forward
from experiments.attention_kernels.subjects import GEMMA2_2B, SHAPES, SOFT_CAP, UNGROUPED, WINDOW
from zoo.ahead_of_time.tpu import TARGETS
from zoo.ahead_of_time.tpu_schedule import Case, Measured, measure
from zoo.kernels.decode_attention.tpu import STEP_BYTES

LENGTHS = (8192, 32_768, 131_072)
_SUBJECTS = "experiments.attention_kernels.subjects"


@dataclass(frozen=True)
class Growth:
    """Forward and backward pass of one layer at `LENGTHS`."""

    subject: str
    """Who."""
    target: str
    """Chip."""
    shape: str
    """Heads, a key of `SHAPES`."""
    temporary_bytes: tuple[int, ...]
    """Memory besides arguments and gradients, per length."""
    argument_bytes: tuple[int, ...]
    """Bytes of query, key and value, per length."""
    trips: tuple[tuple[int, ...], ...]
    """Trips of each kernel's grid loop, per kernel and length."""
    declared: tuple[float, ...]
    """FLOPs that the program declares, per length."""
    visited: tuple[int, ...]
    """FLOPs of the tiles of the band, per length."""

    @property
    def trip_growth(self) -> tuple[float, ...]:
        """Per kernel: trips at the greatest over trips at the smallest length."""
        return tuple(growth(trips) for trips in self.trips)

    @property
    def memory_growth(self) -> float:
        """Temporary memory at 128k over that at 32k: at 8k a part of it still fits into the chip's own memory."""
        return self.temporary_bytes[-1] / self.temporary_bytes[-2]


@dataclass(frozen=True)
class Memory:
    """Temporary memory of forward and backward pass on v5p at T = 32k; bytes."""

    shape: str
    """Heads, a key of `SHAPES`."""
    heads_first: bool
    """Arrays [B, N, T, H], which need no transposition; otherwise [B, T, N, H], as the models have them."""
    ours: int
    """Of our kernel."""
    splash: int
    """Of splash with the same arrays."""


@dataclass(frozen=True)
class Decode:
    """The decode kernel against one cache."""

    target: str
    """Chip."""
    shape: str
    """Heads, a key of `SHAPES`."""
    cache: str
    """Ring (slots = window) or full."""
    step_bundles: int
    """Bundles of one step of the grid."""
    copy_bundles: float
    """Bundles that the core could issue while the step's keys and values arrive at its share of the HBM's bandwidth."""
    spill_stores: int
    """Vector registers spilled per step."""
    declared_bytes: float
    """Bytes that the kernel says it moves."""
    cache_bytes: int
    """Bytes of the cache."""
    temporary_bytes: int
    """Memory of the program besides arguments and result: no copy of the cache is among it."""


def growths(targets: Sequence[str], shape: str = "9B") -> list[Growth]:
    """Both contestants; splash as in `zoo.kernels.global_attention`: its own masks take minutes to build."""
    wanted = {
        (subject, target): [
            case(OURS, target, shape, length, SOFT_CAP, True)
            if subject == OURS
            else Case(f"{_SUBJECTS}:global_layer", target, _arguments(shape, length, WINDOW))
            for length in LENGTHS
        ]
        for target in targets
        for subject in (OURS, SPLASH)
    }
    return _growths(wanted, shape)


def global_growths(targets: Sequence[str], shape: str = "9B") -> list[Growth]:
    """The kernel of our layers without a window; its trips grow with T * T."""
    wanted = {
        ("global layer", target): [
            Case(f"{_SUBJECTS}:global_layer", target, _arguments(shape, length, None)) for length in LENGTHS
        ]
        for target in targets
    }
    return _growths(wanted, shape)


def memories() -> list[Memory]:
    """Eight heads with and without groups, in both layouts."""
    wanted = [(shape.name, heads_first) for shape in (UNGROUPED, GEMMA2_2B) for heads_first in (True, False)]
    cases = [
        Case(f"{_SUBJECTS}:{builder}", "v5p", {**_arguments(shape, 32_768, WINDOW), "heads_first": heads_first})
        for shape, heads_first in wanted
        for builder in ("local", "global_layer")
    ]
    measured = measure(cases)
    for compiled, program in zip(cases, measured):
        _require(compiled.builder, compiled.target, program)
    sizes = [program.temporary_bytes for program in measured]
    return [Memory(*setting, *sizes[2 * i : 2 * i + 2]) for i, setting in enumerate(wanted)]


def _arguments(shape: str, length: int, window: int | None) -> dict:
    return {
        "shape": shape,
        "length": length,
        "sliding_window": window,
        "logits_soft_cap": SOFT_CAP,
        "backward": True,
    }


def _growths(wanted: dict[tuple[str, str], list[Case]], shape: str) -> list[Growth]:
    measured = iter(measure([one for cases in wanted.values() for one in cases]))
    found = []
    for subject, target in wanted:
        programs = [next(measured) for _ in LENGTHS]
        for program in programs:
            _require(subject, target, program)
        heads = SHAPES[shape]
        row = 2 * heads.head_dim * (heads.heads + 2 * heads.kv_heads)
        # The order in which kernels are compiled may differ from length to length.
        ordered = [sorted(program.kernels, key=lambda k: (not is_forward(k.name), k.name)) for program in programs]
        found.append(
            Growth(
                subject=subject,
                target=target,
                shape=shape,
                temporary_bytes=tuple(program.temporary_bytes for program in programs),
                argument_bytes=tuple(row * length for length in LENGTHS),
                trips=tuple(tuple(kernel.trips or 0 for kernel in kernels) for kernels in zip(*ordered)),
                declared=tuple(program.cost.get("flops", 0.0) for program in programs),
                visited=tuple(declared_flops(shape, length, True) for length in LENGTHS),
            )
        )
    return found


def decodes(targets: Sequence[str], shape: str = "9B", batch: int = 8) -> list[Decode]:
    """Against the ring of a local layer and a full cache of 8,192 slots."""
    caches = {"ring": (WINDOW, WINDOW), "full": (2 * WINDOW, None)}
    wanted = [
        (
            cache,
            Case(
                f"{_SUBJECTS}:decode",
                target,
                dict(shape=shape, batch=batch, slots=slots, sliding_window=window, logits_soft_cap=SOFT_CAP),
            ),
        )
        for target in targets
        for cache, (slots, window) in caches.items()
    ]
    found = []
    for (cache, compiled), program in zip(wanted, measure([one for _, one in wanted])):
        _require(f"decode, {cache}", compiled.target, program)
        (kernel,) = program.kernels
        target, heads = TARGETS[compiled.target], SHAPES[shape]
        seconds = STEP_BYTES / (target.hbm_bytes_per_second / target.cores)
        found.append(
            Decode(
                target=target.name,
                shape=shape,
                cache=cache,
                step_bundles=kernel.interior_step.bundles,
                copy_bundles=seconds * target.bundles_per_second,
                spill_stores=kernel.interior_step.spill_stores,
                declared_bytes=program.cost.get("bytes accessed", 0.0),
                cache_bytes=4 * batch * heads.kv_heads * heads.head_dim * caches[cache][0],
                temporary_bytes=program.temporary_bytes,
            )
        )
    return found


def _require(subject: str, target: str, program: Measured) -> None:
    if program.error:
        raise RuntimeError(f"{subject}, {target}: {program.error}")
