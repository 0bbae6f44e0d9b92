"""The zoo's side: its training step, with dense layers or with experts, without drops or of fixed capacity."""

import sys
from typing import Any

from experiments.speed.sparse.workload import SIZES, Kind, SparseWorkload, model_of
from experiments.speed.worker import peak_bytes, serve, timed
from experiments.speed.zoo_worker import Trainer, product_rate


class Commands:
    """What the parent may ask for."""

    def __init__(self, kind: Kind, workload: SparseWorkload):
        self._kind, self._workload = kind, workload

    def losses(self, steps: int) -> list[float]:
        """Losses of the first steps: cross-entropy alone."""
        self._trainer = Trainer(model_of(self._kind, self._workload), self._workload, stochastic=self._kind != "dense")
        return [self._trainer.step() for _ in range(steps)]

    def train(self) -> dict[str, float]:
        """One timed training step."""
        return timed(self._trainer.step)

    def peak_memory(self) -> int:
        """Largest resident memory so far, in bytes."""
        return peak_bytes()

    def matmul(self, size: int) -> float:
        """Rate of a large float32 product."""
        return product_rate(size)

    def routing(self) -> dict[str, float]:
        """What the last step's routers did: largest load (1 = balanced) and the part of the choices dropped."""
        return {name: float(self._trainer.metrics[f"router_{name}"]) for name in ("largest_load", "dropped")}


def main() -> None:
    kind: Any
    kind, size = sys.argv[1:]
    commands = Commands(kind, SIZES[size])
    serve({name: getattr(commands, name) for name in ("losses", "train", "peak_memory", "matmul", "routing")})


if __name__ == "__main__":
    main()
