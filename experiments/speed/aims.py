"""The goals that this experiment was set, each beside what was measured."""

import statistics

from experiments.aim import Aim
from experiments.speed.contest import Contest
from experiments.speed.local_attention import LengthResult
from experiments.speed.peers import PEERS, ZOO

MAX_TIME_GROWTH = 9.0
"""A local layer at T = 16,384 may take this many times as long as at T = 2,048 (8 = linear)."""


def peers_of(mode: str, contest: Contest) -> list[str]:
    """The implementations of one mode ("eager" or "compiled") that took part."""
    return [peer.name for peer in PEERS if peer.mode == mode and peer.name in contest.peak_bytes]


def fastest(key: str, names: list[str], contest: Contest) -> str:
    """Of these implementations the one with the fastest median."""
    return min(names, key=lambda name: statistics.median(contest.measurements[key].seconds[name]))


def contest_aims(contest: Contest) -> list[Aim]:
    """Against the best of OpenMP's policies, for each goal; empty where transformers did not take part."""
    eager, compiled = peers_of("eager", contest), peers_of("compiled", contest)
    if not eager or not compiled:
        return []
    goals = [
        ("training step", "train", compiled, "torch.compile", 1.5),
        ("training step", "train", eager, "eager", 2.0),
        ("forward pass", "forward", eager, "eager", 2.5),
        ("decoding, batch 1", "decode-1", eager + compiled, "the best of torch", 1.3),
        ("decoding, batch 8", "decode-8", eager + compiled, "the best of torch", 1.5),
    ]
    aims = []
    for what, key, names, against, goal in goals:
        if key in contest.measurements:
            speedups = contest.measurements[key].speedups(fastest(key, names, contest))
            middle = statistics.median(speedups)
            measured = f"{middle:.2f}x ({min(speedups):.2f} .. {max(speedups):.2f})"
            aims.append(Aim(f"{what} against {against}", f"{goal:.1f}x", measured, middle >= goal))
    least = min(contest.peak_bytes[name] for name in eager + compiled)
    ours = contest.peak_bytes[ZOO]
    aims.append(Aim("peak memory of training", f"<= {least / 1e6:.0f} MB", f"{ours / 1e6:.0f} MB", ours <= least))
    return aims


def local_aims(results: list[LengthResult]) -> list[Aim]:
    """Growth of time and memory of the local layer, from the shortest length to the longest."""
    first, last = results[0], results[-1]
    factor = last.length / first.length
    time_goal = factor * MAX_TIME_GROWTH / 8
    time_growth, memory_growth = last.seconds / first.seconds, last.temporary_bytes / first.temporary_bytes
    lengths = f"T = {last.length:,} against {first.length:,}"
    square = last.length**2
    return [
        Aim(f"local layer, time at {lengths}", f"<= {time_goal:.3g}x", f"{time_growth:.2f}x", time_growth <= time_goal),
        Aim(
            f"local layer, memory at {lengths}",
            f"<= {1.02 * factor:.3g}x",
            f"{memory_growth:.2f}x",
            memory_growth <= 1.02 * factor,
        ),
        Aim(
            f"local layer, largest array at T = {last.length:,}",
            f"< T x T = {square / 1e6:.0f}M elements",
            f"{last.largest_buffer_elements / 1e6:.1f}M elements",
            last.largest_buffer_elements < square,
        ),
    ]
