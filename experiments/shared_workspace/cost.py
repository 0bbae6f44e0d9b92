"""What one layer costs against the number of specialists: a workspace, and attention of equal width and heads."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.plotting import pyplot
from zoo.nn import Execution
from zoo.nn.encoder_block import EncoderAttention
from zoo.nn.workspace import Workspace, WorkspaceConfig

Kind = Literal["pairwise", "soft workspace", "hard workspace"]
KINDS: tuple[Kind, ...] = ("pairwise", "soft workspace", "hard workspace")
SPECIALISTS = (32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True)
class LayerSize:
    """What all layers of a comparison have in common."""

    embed_dim: int = 256
    """Width of specialists and slots."""
    num_heads: int = 4
    """Heads; each has width embed_dim / num_heads in attention, and its keys in the workspace, too."""
    num_slots: int = 8
    """Slots of the workspace."""
    top_k: int = 5
    """Specialists that write to a slot of the hard workspace."""
    batch_size: int = 1
    """Scenes at a time."""


@dataclass(frozen=True)
class Cost:
    """One layer at one number of specialists."""

    kind: Kind
    """Which layer."""
    specialists: int
    """How many."""
    seconds: float
    """Median over the rounds."""
    temporary_bytes: int
    """Largest memory of intermediate arrays, by XLA's own account of the compiled program."""


@dataclass(frozen=True)
class Costs:
    """All that was measured of one layer."""

    size: LayerSize
    """What the layers have in common."""
    forward: tuple[Cost, ...]
    """Of its result."""
    training: tuple[Cost, ...]
    """Of its gradient for parameters and input."""
    load: str
    """Processes that ran or wanted to, before."""


def read_costs(path: Path) -> Costs:
    """The inverse of `write_json(asdict(costs), path)`."""
    fields = json.loads(path.read_text())
    parts = {name: tuple(Cost(**cost) for cost in fields[name]) for name in ("forward", "training")}
    return Costs(size=LayerSize(**fields["size"]), load=fields["load"], **parts)


def compiled_layer(kind: Kind, specialists: int, size: LayerSize, *, training: bool):
    """(compiled program, its arguments): one layer's result, or the gradient of its sum for parameters and input."""
    execution, rngs = Execution(), nnx.Rngs(0)
    if kind == "pairwise":
        layer: nnx.Module = EncoderAttention(size.embed_dim, size.num_heads, execution=execution, rngs=rngs)
    else:
        config = WorkspaceConfig(
            num_slots=size.num_slots,
            num_heads=size.num_heads,
            key_dim=size.embed_dim // size.num_heads,
            top_k=size.top_k if kind == "hard workspace" else None,
        )
        layer = Workspace(size.embed_dim, config, execution=execution, rngs=rngs)
    graphdef, state = nnx.split(layer)

    def run(state, x):
        layer: Any = nnx.merge(graphdef, state)
        if isinstance(layer, EncoderAttention):
            return layer(x), None
        found = layer(x, layer.initial_memory(len(x)))
        return found.read, found.memory

    def total(state, x):
        return sum(jnp.sum(part) for part in jax.tree.leaves(run(state, x)))

    x = jax.random.normal(jax.random.key(0), (size.batch_size, specialists, size.embed_dim))
    program = jax.grad(total, argnums=(0, 1)) if training else run
    return jax.jit(program).lower(state, x).compile(), (state, x)


def measure(
    numbers: Sequence[int] = SPECIALISTS,
    kinds: Sequence[Kind] = KINDS,
    *,
    size: LayerSize | None = None,
    training: bool = False,
    rounds: int = 20,
) -> list[Cost]:
    """All kinds at all numbers of specialists. At each number the kinds take turns, so that what else the machine does
    meets all of them."""
    found = []
    for specialists in numbers:
        layers = {kind: compiled_layer(kind, specialists, size or LayerSize(), training=training) for kind in kinds}
        seconds: dict[Kind, list[float]] = {kind: [] for kind in kinds}
        for turn in range(rounds + 1):
            for kind, (program, arguments) in layers.items():
                start = time.perf_counter()
                jax.block_until_ready(program(*arguments))
                if turn:  # the first one pays for pages and threads
                    seconds[kind].append(time.perf_counter() - start)
        for kind, (program, _) in layers.items():
            temporary = program.memory_analysis().temp_size_in_bytes
            found.append(Cost(kind, specialists, float(np.median(seconds[kind])), temporary))
    return found


def exponent(costs: Sequence[Cost], kind: Kind, *, field: str = "seconds", at_least: int = 256) -> float:
    """p of the power law a * n^p through a kind's costs, least squares of the logarithms; of few specialists, what does
    not depend on their number weighs most: they are left out. ValueError with fewer than two points."""
    return _power_law(costs, kind, field, at_least)[1]


def _power_law(costs: Sequence[Cost], kind: Kind, field: str, at_least: int) -> tuple[float, float]:
    """(log a, p)."""
    points = [(c.specialists, getattr(c, field)) for c in costs if c.kind == kind and c.specialists >= at_least]
    if len(points) < 2:
        raise ValueError(f"{kind}: a power law needs two numbers of specialists of at least {at_least}")
    numbers, values = np.log(np.array(points)).T
    slope, level = np.polyfit(numbers, values, 1)
    return float(level), float(slope)


def ratio(costs: Sequence[Cost], kind: Kind, *, field: str = "seconds") -> tuple[int, float]:
    """(n, pairwise / kind) at the largest number of specialists that both were measured at."""
    own, other = ({c.specialists: getattr(c, field) for c in costs if c.kind == name} for name in (kind, "pairwise"))
    most = max(own.keys() & other.keys())
    return most, other[most] / own[most]


def plot(costs: Sequence[Cost], path: Path, *, at_least: int = 1024) -> None:
    """Time and memory against the number of specialists, both axes logarithmic; with the power law of the points from
    `at_least` on, where there are two."""
    figure, axes = pyplot().subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, field, label, scale in zip(
        axes, ("seconds", "temporary_bytes"), ("milliseconds", "MiB of intermediate arrays"), (1e3, 2**-20)
    ):
        for kind in dict.fromkeys(cost.kind for cost in costs):
            own = [cost for cost in costs if cost.kind == kind]
            numbers, values = [cost.specialists for cost in own], [getattr(cost, field) * scale for cost in own]
            (line,) = axis.plot(numbers, values, marker="o", linestyle="", label=kind)
            far = np.array([number for number in numbers if number >= at_least])
            if len(far) >= 2:
                level, slope = _power_law(costs, kind, field, at_least)
                line.set_label(f"{kind}, n^{slope:.2f} from {at_least:,} on")
                axis.plot(far, scale * np.exp(level) * far**slope, color=line.get_color())
        axis.set(xscale="log", yscale="log", xlabel="specialists", ylabel=label)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=100)
    pyplot().close(figure)
