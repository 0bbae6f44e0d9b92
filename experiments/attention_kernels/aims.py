"""The goals, and whether they are reached."""

from experiments.aim import Aim
from experiments.attention_kernels.gpu_kernels import GpuKernel
from experiments.attention_kernels.hardware import ZOO_KERNELS, Time
from experiments.attention_kernels.lengths import Growth, Memory
from experiments.attention_kernels.schedules import OURS, SPLASH, Pass
from experiments.attention_kernels.subjects import GEMMA2_9B, SOFT_CAP, WINDOW

FORWARD_BARS = {"v6e": 0.75, "v5p": 0.95}
"""Most bundles per tile, as part of splash's, 9B heads with the soft-cap."""
BACKWARD_BAR = 1.0
MEMORY_BAR = 0.45e9
"""Most bytes of temporary memory of forward and backward pass, T = 32k, eight heads of 256 on v5p."""
MEMORY_GROWTH = 4.0
"""128k over 32k tokens."""
TRIP_GROWTH = 16.0
"""128k over 8k tokens."""


def ratio(passes: list[Pass], ours: Pass) -> float:
    """Bundles per tile of ours over those of splash, the same pass."""
    return ours.mean / rival(passes, ours).mean


def rival(passes: list[Pass], ours: Pass) -> Pass:
    """Splash in the same setting."""
    key = (ours.target, ours.shape, ours.logits_soft_cap, ours.backward)
    return next(p for p in passes if p.subject == SPLASH and (p.target, p.shape, p.logits_soft_cap, p.backward) == key)


def schedule_aims(passes: list[Pass]) -> list[Aim]:
    """Bundles, spills and trips."""
    found = []
    ours = [p for p in passes if p.subject == OURS]
    for p in ours:
        bar = BACKWARD_BAR if p.backward else FORWARD_BARS.get(p.target)
        if bar is not None and p.shape == "9B" and p.logits_soft_cap is not None:
            direction = "backward" if p.backward else "forward"
            found.append(_at_most(f"{p.target}, {direction}: bundles per tile / splash", bar, ratio(passes, p)))
    for cap, some in _by_cap(ours):
        worst = max(some, key=lambda p: p.spill_stores / max(rival(passes, p).spill_stores, 1))
        most = rival(passes, worst).spill_stores
        words = f"{cap}: spills per tile (worst: {describe(worst)})"
        found.append(_at_most(words, most, worst.spill_stores, "splash's {:.0f}", "{:.0f}"))
        worst = max(some, key=lambda p: ratio(passes, p))
        words = f"{cap}: bundles per tile / splash (worst: {describe(worst)})"
        found.append(_at_most(words, 1.0, ratio(passes, worst)))
    wrong = [describe(p) for p in ours if p.trips != p.expected_trips]
    found.append(Aim("trips", "the band formula", f"{len(ours) - len(wrong)} of {len(ours)} equal", not wrong))
    return found


def growth_aims(growths: list[Growth]) -> list[Aim]:
    """Trips, memory and declared cost against T."""
    found = []
    for g in growths:
        if g.subject != OURS:
            continue
        trips = max(g.trip_growth, key=lambda x: abs(x - TRIP_GROWTH))
        found.append(Aim(f"{g.target}: trips 128k / 8k", "16.0", f"{trips:.2f}", abs(trips - TRIP_GROWTH) < 0.16))
        found.append(_at_most(f"{g.target}: temporary memory 128k / 32k", 1.1 * MEMORY_GROWTH, g.memory_growth))
        worst = max(abs(a / b - 1) for a, b in zip(g.declared, g.visited))
        found.append(
            Aim(f"{g.target}: declared FLOPs against visited tiles", "within 1 %", f"{worst:.2%}", worst < 0.01)
        )
    return found


def memory_aims(memories: list[Memory]) -> list[Aim]:
    """Temporary memory at T = 32k with eight heads."""
    return [
        Aim(
            f"v5p, T = 32k, {m.shape}{' heads' if m.shape == '2B' else ''}, {layout(m)}: temporary memory",
            f"at most {MEMORY_BAR / 1e6:.0f} MB",
            f"{m.ours / 1e6:.0f} MB",
            m.ours <= MEMORY_BAR,
        )
        for m in memories
    ]


def layout(memory: Memory) -> str:
    """The layout of the arrays."""
    return "[B, N, T, H]" if memory.heads_first else "[B, T, N, H]"


def gpu_aims(kernels: list[GpuKernel]) -> list[Aim]:
    """Spills of the GPU kernels."""
    compiled = [k for k in kernels if k.kernel]
    if not compiled:
        return []
    spilling = [k for k in compiled if k.spill_stores]
    failed = [k for k in kernels if k.failure and not k.failure.startswith("compiles")]
    words = f"{len(compiled) - len(spilling)} of {len(compiled)} kernels, {len(failed)} that do not compile"
    return [Aim("GPU targets: no spills", "all", words, not spilling and not failed)]


def hardware_aims(times: list[Time]) -> list[Aim]:
    """On an H100 or H200: rates at D = 256, T = 32k, and growth with T."""
    best: dict[tuple, float] = {}
    for t in times:
        if t.implementation in ZOO_KERNELS and t.teraflops is not None:
            key = (t.shape, t.length, t.logits_soft_cap, t.backward)
            best[key] = max(best.get(key, 0.0), t.teraflops)
    found = []
    for backward, least in ((False, 540), (True, 300)):
        direction = "backward" if backward else "forward"
        short, middle, long = (best.get((GEMMA2_9B.name, n, SOFT_CAP, backward)) for n in (8192, 32_768, 131_072))
        if middle is not None:
            what = f"{direction}, D = 256, T = 32k, capped"
            found.append(Aim(what, f"at least {least} TFLOP/s", f"{middle:.0f}", middle >= least))
        if short is not None and long is not None:
            pairs = [WINDOW * n - WINDOW * (WINDOW - 1) / 2 for n in (8192, 131_072)]
            found.append(_at_most(f"{direction}: t(128k) / t(8k)", 17, pairs[1] / long / (pairs[0] / short)))
    return found


def describe(p: Pass) -> str:
    """A pass in a few words."""
    cap = "capped" if p.logits_soft_cap is not None else "no cap"
    return f"{p.target} {p.shape} {cap} {'backward' if p.backward else 'forward'}"


def _by_cap(passes: list[Pass]) -> list[tuple[str, list[Pass]]]:
    parts = {
        "soft-cap": [p for p in passes if p.logits_soft_cap is not None],
        "no soft-cap": [p for p in passes if p.logits_soft_cap is None],
    }
    return [(name, part) for name, part in parts.items() if part]


def _at_most(what: str, bar: float, value: float, words: str = "at most {:.2f}", figure: str = "{:.2f}") -> Aim:
    return Aim(what, words.format(bar), figure.format(value), value <= bar)
