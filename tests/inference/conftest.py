"""Small models with random weights, large enough to have windows, groups and both layouts."""

import pytest
from flax import nnx

from zoo.models import Gemma2Config, build
from zoo.nn import Execution

WINDOW = 8
VOCAB_SIZE = 96


def small_config(**changes) -> Gemma2Config:
    fields = dict(
        vocab_size=VOCAB_SIZE,
        embed_dim=32,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        hidden_dim=64,
        query_pre_attn_scalar=16.0,
        sliding_window=WINDOW,
        max_position_embeddings=128,
    )
    return Gemma2Config(**(fields | changes))


def small_model(execution: Execution | None = None, seed: int = 0, **changes):
    return build(small_config(**changes), execution=execution, rngs=nnx.Rngs(seed))


@pytest.fixture(scope="session")
def model():
    """Four layers, local and global in turn, window 8."""
    return small_model()


@pytest.fixture(scope="session", params=[False, True], ids=["unrolled", "scanned"])
def any_layout_model(request):
    """The same, in both layouts of the layers."""
    return small_model(Execution(scan_layers=request.param))
