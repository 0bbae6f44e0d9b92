"""What is computed by every implementation that takes part, and the parameters that all of them start from."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int


@dataclass(frozen=True)
class Workload:
    """Shapes and repetitions of one run."""

    preset: str = "gemma2-mini"
    """Name of the model, with float32 parameters and arithmetic."""
    batch_size: int = 2
    """Sequences of a training step and of the forward pass."""
    length: int = 1024
    """Tokens of a sequence."""
    prompt_length: int = 128
    """Tokens of a prompt for decoding."""
    new_tokens: int = 128
    """Tokens decoded greedily after each prompt; their time includes the prefill."""
    decode_batches: tuple[int, ...] = (1, 8)
    """Numbers of prompts decoded together."""
    rounds: int = 5
    """Times that all implementations take their turn, for each measurement."""
    checked_steps: int = 3
    """Training steps whose losses must agree before anything is timed."""
    local_lengths: tuple[int, ...] = (2048, 4096, 8192, 16_384)
    """Sequence lengths of the single local attention layer."""
    learning_rate: float = 1e-3
    """Of AdamW, constant; decay of the moments, epsilon and weight decay are those of zoo's `OptimizerConfig`."""

    def tokens(self, batch_size: int, length: int, vocab_size: int) -> Int[np.ndarray, "b t"]:
        """The same random tokens for every implementation."""
        return np.random.default_rng(0).integers(3, vocab_size, (batch_size, length), dtype=np.int32)


FULL = Workload()
QUICK = Workload(
    preset="gemma2-nano",
    length=256,
    prompt_length=16,
    new_tokens=16,
    decode_batches=(1, 4),
    rounds=3,
    local_lengths=(1024, 2048, 4096),
)

LOGITS_TOLERANCE = 2e-4
"""Largest difference of float32 logits between exact implementations (noise reaches 1.5e-4)."""
LOSS_TOLERANCE = 2e-4
"""Largest difference of the first training losses, in nats."""


def save_initial_model(preset: str, folder: Path) -> int:
    """Writes a Hugging Face folder with random parameters, norm scales among them; returns their number of bytes."""
    import jax
    from flax import nnx

    from zoo.interop import save_huggingface
    from zoo.models import preset as preset_of
    from zoo.models.gemma2 import Gemma2

    model = Gemma2(preset_of(preset), rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(model, nnx.Param)
    leaves, structure = jax.tree.flatten(params)
    generator = np.random.default_rng(1)
    # Scales start at zero; with zeros everywhere a wrong norm could not be told from a right one.
    leaves = [x + 0.1 * generator.standard_normal(x.shape, np.float32) if x.ndim == 1 else x for x in leaves]
    save_huggingface(nnx.merge(graphdef, jax.tree.unflatten(structure, leaves)), folder, dtype="float32")
    return sum(leaf.nbytes for leaf in leaves)


def main() -> None:
    """Arguments: preset, folder, length. Saves the model; prints its bytes and its forward FLOPs per token."""
    from zoo.models import preset

    name, folder, length = sys.argv[1:]
    flops = preset(name).flops_per_token(int(length))
    print(json.dumps({"weight_bytes": save_initial_model(name, Path(folder)), "flops_per_token": flops}))


if __name__ == "__main__":
    main()
