"""The real training step of a tiny recipe on any mesh: its loss curve, next to that of one device.

python -m tests.parallel.training_equivalence           # a table: the largest deviation of every case
"""

import argparse
import functools
import itertools
import os
import time
from dataclasses import dataclass, replace
from typing import Any

import grain
import jax
import numpy as np

from zoo.data import Batch, DataConfig
from zoo.data.packing import PREDICTIONS, make_batch, packed_rows
from zoo.models import Gemma2Config
from zoo.nn import Execution
from zoo.parallel import MeshConfig, ShardingRules, activation_sharding, init_sharded, make_mesh
from zoo.recipes.program import TrainingProgram, training_program
from zoo.recipes.recipe import Recipe
from zoo.recipes.weights import make_model
from zoo.training.loop import LoopConfig
from zoo.training.optimizer import OptimizerConfig
from zoo.training.state import TrainState, create_state

STEPS, LENGTH, VOCABULARY = 20, 64, 128
ALIKE = 1e-5
"""Most that a loss, in nats per token, may differ from that of one device in any of the steps."""

MODEL = Gemma2Config(
    vocab_size=VOCABULARY,
    embed_dim=32,
    num_layers=2,
    num_heads=8,
    num_kv_heads=4,
    head_dim=16,
    hidden_dim=64,
    query_pre_attn_scalar=16,
    sliding_window=12,
    max_position_embeddings=LENGTH,
)


@dataclass(frozen=True)
class Case:
    """One way to run the recipe."""

    mesh: tuple[tuple[str, int], ...] = ()
    """Sizes of the mesh axes that are not 1."""
    window: int = 12
    """Of the local layers."""
    layers: int = 2
    """Scanned layers need 4: a loop of one pass would be none."""
    remat: str = "none"
    scan: bool = False
    exchange: str = "auto"
    accumulation: int = 1
    rows: int = 8

    @property
    def shown(self) -> str:
        """`fsdp=2,context=4 W=40 scan full ring`."""
        mesh = ",".join(f"{name}={size}" for name, size in self.mesh) or "one device"
        words = [mesh, f"W={self.window}", "scan" if self.scan else "", self.remat, self.exchange]
        words.append(f"accumulate={self.accumulation}" if self.accumulation > 1 else "")
        return " ".join(word for word in words if word not in ("", "none", "auto"))

    @property
    def devices(self) -> int:
        """Number of devices of the mesh."""
        return int(np.prod([size for _, size in self.mesh]))

    def recipe(self) -> Recipe:
        """The recipe of this case."""
        return Recipe(
            name="tiny",
            needs_data=True,
            loop=LoopConfig(steps=STEPS),
            data=DataConfig(vocab_size=VOCABULARY, sequence_length=LENGTH, batch_size=self.rows),
            optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=4, accumulation_steps=self.accumulation),
            model=replace(MODEL, sliding_window=self.window, num_layers=self.layers),
            execution=Execution(scan_layers=self.scan, remat_policy=self.remat),
            mesh=MeshConfig(**{"fsdp": 1} | dict(self.mesh)),
            rules=ShardingRules(context_exchange=self.exchange),
            z_loss=1e-4,
        )


def case(window: int = 12, *, scan: bool = False, **options: Any) -> Case:
    """`case(fsdp=2, context=4, remat="full")`: mesh axes and fields of `Case` by their names."""
    fields = {name: options.pop(name) for name in ("remat", "exchange", "accumulation", "rows") if name in options}
    return Case(tuple(options.items()), window, 4 if scan else 2, scan=scan, **fields)


@functools.cache
def batches(size: int) -> tuple[Batch, ...]:
    """20 batches of so many rows, as the data pipeline packs them: several documents to a row, and padding at its end.

    A document counts up by a step of its own, with a wrong token in four: something to learn, and not all of it.
    """
    rng, documents = np.random.default_rng(0), []
    for _ in range(112 * size):
        count, step = rng.integers(3, 28), rng.integers(1, 4)
        ids = (rng.integers(VOCABULARY) + step * np.arange(count + 1)) % VOCABULARY
        ids = np.where(rng.random(count + 1) < 0.25, rng.integers(VOCABULARY, size=count + 1), ids)
        triples = np.stack([ids[:-1], ids[1:], np.ones(count, int)], axis=1)
        documents.append({PREDICTIONS: triples.astype(np.int32)})
    source = grain.MapDataset.source(documents).to_iter_dataset()
    rows = list(itertools.islice(packed_rows(source, "first_fit", LENGTH, seed=0), STEPS * size))
    return tuple(make_batch(rows[i : i + size], size, pad_id=0) for i in range(0, STEPS * size, size))


@dataclass(frozen=True)
class Prepared:
    """The compiled step of a case, and what it begins with."""

    program: TrainingProgram
    step: jax.stages.Compiled
    state: TrainState


def prepare(of: Case) -> Prepared:
    """Compiles the training step that `zoo.train` would run on this mesh."""
    recipe = of.recipe()
    mesh = make_mesh(recipe.mesh, jax.devices()[: of.devices])
    program = training_program(recipe, mesh)
    params = init_sharded(lambda: make_model(recipe), mesh, recipe.rules)[1]
    state = create_state(params, program.optimizer, seed=recipe.seed)
    with activation_sharding(mesh, recipe.rules):
        return Prepared(program, program.step.lower(program.state, program.batch).compile(), state)


def curve(of: Case, prepared: Prepared | None = None) -> np.ndarray:
    """float64 [STEPS, 2]: loss and gradient norm of every step."""
    prepared = prepared or prepare(of)
    state, metrics = prepared.state, []
    for batch in batches(of.rows):
        placed = jax.tree.map(lambda array, like: jax.device_put(array, like.sharding), batch, prepared.program.batch)
        state, numbers = prepared.step(state, placed)
        metrics.append(jax.device_get((numbers["loss"], numbers["grad_norm"])))
    return np.array(metrics, np.float64)


@functools.cache
def expected(window: int, layers: int, rows: int = 8) -> np.ndarray:
    """The curve of one device, layer by layer, without recomputation."""
    return curve(Case(window=window, layers=layers, rows=rows))


def deviation(of: Case, prepared: Prepared | None = None) -> float:
    """The largest difference of a loss from that of one device, in nats per token."""
    difference = curve(of, prepared) - expected(of.window, of.layers, of.rows)
    return float(np.abs(difference[:, 0]).max())


def print_table(cases: list[Case]) -> None:
    """One line for each case, as soon as it is known."""
    print(f"{'case':60} {'largest deviation':>18} {'seconds':>8}")
    for one in cases:
        start = time.perf_counter()
        try:
            result = f"{deviation(one):.1e}"
        except Exception as error:
            result = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
        print(f"{one.shown:60} {result:>18} {time.perf_counter() - start:8.1f}", flush=True)


def all_meshes(axes: int, sizes: tuple[int, ...]) -> list[Case]:
    """Every choice of so many mesh axes, outermost first, of these sizes; computed in ways that take turns."""
    names = ("replica", "data", "fsdp", "context", "expert", "tensor")
    ways: list[dict[str, Any]] = [{}, {"scan": True, "remat": "full"}, {"remat": "dots"}, {"scan": True}]
    found = []
    for index, chosen in enumerate(itertools.combinations(names, axes)):
        mesh, way = dict(zip(chosen, sizes, strict=True)), ways[index % 4]
        exchange = ("ring", "gather")[index // 4 % 2] if "context" in mesh else "auto"
        parts = np.prod([size for name, size in mesh.items() if name not in ("context", "tensor")], dtype=int)
        found.append(case((12, 40)[index // 2 % 2], exchange=exchange, rows=max(8, int(parts)), **way, **mesh))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, default=8, help="virtual CPU devices; 16 for meshes of four axes")
    arguments = parser.parse_args()
    count = f"--xla_force_host_platform_device_count={arguments.devices}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {count}"  # not yet read
    from tests.parallel.test_training_equivalence import EIGHT, SIXTEEN

    print_table(SIXTEEN if arguments.devices == 16 else EIGHT)


if __name__ == "__main__":
    main()
