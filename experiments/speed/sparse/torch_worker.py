"""The transformers side: `MixtralForCausalLM` with one of its implementations of the experts, eager or compiled."""

import sys
from pathlib import Path

import torch
from transformers import MixtralForCausalLM

from experiments.speed.sparse.workload import SIZES, SparseWorkload
from experiments.speed.torch_worker import Commands
from experiments.speed.worker import serve


class SparseCommands(Commands):
    """As for Gemma 2, with scaled_dot_product_attention: Mixtral has no soft-cap."""

    def __init__(self, folder: Path, workload: SparseWorkload, compiled: bool, experts: str):
        super().__init__(folder, workload, compiled)
        self._experts = experts

    def _load(self) -> None:
        self._model = self._run = None
        model = MixtralForCausalLM.from_pretrained(
            self._folder,
            dtype=torch.float32,
            attn_implementation="sdpa",
            experts_implementation=self._experts,
        )
        self._model, self._run = model, torch.compile(model) if self._compiled else model


def main() -> None:
    folder, size, mode, experts, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    commands = SparseCommands(Path(folder), SIZES[size], mode == "compiled", experts)
    serve({name: getattr(commands, name) for name in ("losses", "train", "peak_memory", "matmul")})


if __name__ == "__main__":
    main()
