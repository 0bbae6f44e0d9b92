"""What the sparse contest computes: one Mixtral, and the dense model that does as much arithmetic for a token."""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from flax import nnx
from jaxtyping import Int

from zoo.models.decoder import decoder_flops
from zoo.models.mixtral import Mixtral, MixtralConfig, mixtral_experts
from zoo.models.sparse_decoder import SparseDecoder
from zoo.nn import Execution, GatedFeedForward

Kind = Literal["dense", "dropless", "capacity"]
"""Feed-forward layers of a model of the zoo."""


@dataclass(frozen=True)
class SparseWorkload:
    """Mixtral 8x7B with every width divided by eight (4096, 14336, 32 heads, 32000 words), in two layers."""

    title: str = "Mixtral 8x7B's widths divided by eight"
    """What has these shapes."""
    embed_dim: int = 512
    """Model width D."""
    num_layers: int = 2
    """Layers, all of them sparse in a sparse model."""
    num_heads: int = 8
    """Query heads."""
    num_kv_heads: int = 2
    """Key/value heads."""
    head_dim: int = 64
    """Width of a head."""
    num_experts: int = 8
    """Experts E of a layer."""
    experts_per_token: int = 2
    """Experts k of a token."""
    hidden_dim: int = 1792
    """Width F of gate and up of one expert, each; the dense model has k F."""
    vocab_size: int = 4000
    """Words, with a matrix for the input and one for the output."""
    batch_size: int = 4
    """Sequences of a training step."""
    length: int = 512
    """Tokens of a sequence."""
    rounds: int = 12
    """Times that all implementations take their turn."""
    checked_steps: int = 3
    """Training steps whose losses must agree before anything is timed."""
    learning_rate: float = 3e-4
    """Of AdamW, constant; decay of the moments, epsilon and weight decay are those of zoo's `OptimizerConfig`."""

    def tokens(self, batch_size: int, length: int, vocab_size: int) -> Int[np.ndarray, "b t"]:
        """The same random tokens for every implementation."""
        return np.random.default_rng(0).integers(3, vocab_size, (batch_size, length), dtype=np.int32)


FULL = SparseWorkload()
SMALL = SparseWorkload(
    title="the shapes of gemini-tiny-pro",
    embed_dim=128,
    num_layers=4,
    num_heads=4,
    num_kv_heads=4,
    head_dim=32,
    hidden_dim=192,
    vocab_size=4096,
    batch_size=8,
    length=256,
)
"""What is trained on a CPU in minutes: at such widths much of a step is not arithmetic."""
QUICK = SparseWorkload(
    title="a small model",
    embed_dim=64,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=32,
    hidden_dim=128,
    vocab_size=256,
    batch_size=2,
    length=64,
    rounds=4,
)
SIZES = {"full": FULL, "small": SMALL, "quick": QUICK}
MEASURED = ("full", "small")
"""Sizes of a run that is not quick, in the order of the report."""


@dataclass(frozen=True, kw_only=True)
class DenseConfig(MixtralConfig):
    """Mixtral with one gated feed-forward in the place of the experts."""

    hidden_dim: int
    """Width of gate and up, each."""

    def num_parameters(self) -> int:
        """Parameters of the whole model, embedding and head counted each."""
        return self._parameters(3 * self.embed_dim * self.hidden_dim)

    def num_active_parameters(self) -> int:
        """All of them: a token uses every parameter."""
        return self.num_parameters()

    def flops_per_token(self, sequence_length: int) -> float:
        """Forward floating-point operations per token of a sequence."""
        return decoder_flops(self, sequence_length, hidden_dim=self.hidden_dim)


class DenseTwin(SparseDecoder):
    """Mixtral's layers, norms and head around a dense feed-forward."""

    config: DenseConfig

    @property
    def has_experts(self) -> bool:
        """There is no router."""
        return False

    def make_feed_forward(self, position: int, *, rngs: nnx.Rngs) -> GatedFeedForward:
        """SwiGLU, as an expert is."""
        config = self.config
        return GatedFeedForward(
            config.embed_dim, config.hidden_dim, activation="silu", execution=self.execution, rngs=rngs
        )


def config_of(kind: Kind, workload: SparseWorkload) -> MixtralConfig:
    """The architecture: all are the same but for the feed-forward layers."""
    w = workload
    sparse = MixtralConfig(
        vocab_size=w.vocab_size,
        embed_dim=w.embed_dim,
        num_layers=w.num_layers,
        num_heads=w.num_heads,
        num_kv_heads=w.num_kv_heads,
        head_dim=w.head_dim,
        # Without balancing loss: transformers takes it over all layers together, and losses could not be compared.
        experts=mixtral_experts(w.num_experts, w.experts_per_token, w.hidden_dim, balancing=0.0),
    )
    if kind == "dense":
        fields = {**sparse.__dict__, "experts": None}
        return DenseConfig(**fields, hidden_dim=w.experts_per_token * w.hidden_dim)
    return replace(sparse, experts=replace(sparse.experts, dispatch=kind))


def model_of(kind: Kind, workload: SparseWorkload, execution: Execution | None = None) -> SparseDecoder:
    """A model with random parameters; the two sparse kinds get the same ones every time."""
    model = DenseTwin if kind == "dense" else Mixtral
    return model(config_of(kind, workload), execution=execution, rngs=nnx.Rngs(0))


def main() -> None:
    """Arguments: size, folder. Saves the sparse model for transformers; prints what the three kinds cost."""
    from zoo.interop import save_huggingface

    size, folder = sys.argv[1:]
    workload = SIZES[size]
    save_huggingface(model_of("dropless", workload), Path(folder), dtype="float32")
    facts = {}
    for kind in ("dense", "dropless"):
        config = config_of(kind, workload)
        facts[kind] = {
            "parameters": config.num_parameters(),
            "active_parameters": config.num_active_parameters(),
            "flops_per_token": config.flops_per_token(workload.length),
        }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
