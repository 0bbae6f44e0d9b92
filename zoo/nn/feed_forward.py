"""Feed-forward layers with and without a gate."""

from functools import partial

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from zoo.nn.activations import Activation, activated
from zoo.nn.bottleneck import through_bottlenecks
from zoo.nn.execution import Execution
from zoo.nn.parameters import fan_in_normal, parameter, project
from zoo.parallel import enter_sublayer, leave_sublayer


class GatedFeedForward(nnx.Module):
    """down(activation(gate(x)) * up(x)), without biases (Shazeer 2020, arXiv 2002.05202).

    gelu_tanh is GeGLU as in Gemma 2 (report, section 2), silu is SwiGLU (Mixtral, Qwen3).
    """

    def __init__(
        self,
        embed_dim: int,
        hidden_dim: int,
        *,
        activation: Activation = "gelu_tanh",
        execution: Execution,
        rngs: nnx.Rngs,
    ):
        dtype = execution.weight_dtype
        self.activation = activation
        self.gate = parameter(rngs, (embed_dim, hidden_dim), ("embed", "mlp"), fan_in_normal(embed_dim), dtype)
        self.up = parameter(rngs, (embed_dim, hidden_dim), ("embed", "mlp"), fan_in_normal(embed_dim), dtype)
        self.down = parameter(rngs, (hidden_dim, embed_dim), ("mlp_in", None), fan_in_normal(hidden_dim), dtype)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        x = enter_sublayer(x)
        gate = checkpoint_name(project("btd,df->btf", x, self.gate[...]), "gate")
        up = checkpoint_name(project("btd,df->btf", x, self.up[...]), "up")
        y = leave_sublayer(_down(gate, up, self.down[...], self.activation), "mlp")
        return through_bottlenecks(self, y)


class PlainFeedForward(nnx.Module):
    """down(gelu(up(x))) with the tanh approximation of gelu, without gate and biases: what GeGLU is compared with
    (Shazeer 2020, arXiv 2002.05202, equation 2)."""

    def __init__(self, embed_dim: int, hidden_dim: int, *, execution: Execution, rngs: nnx.Rngs):
        dtype = execution.weight_dtype
        self.up = parameter(rngs, (embed_dim, hidden_dim), ("embed", "mlp"), fan_in_normal(embed_dim), dtype)
        self.down = parameter(rngs, (hidden_dim, embed_dim), ("mlp_in", None), fan_in_normal(hidden_dim), dtype)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        up = checkpoint_name(project("btd,df->btf", enter_sublayer(x), self.up[...]), "up")
        y = leave_sublayer(project("btf,fd->btd", activated(up, "gelu_tanh"), self.down[...]), "mlp")
        return through_bottlenecks(self, y)


@partial(jax.checkpoint, static_argnums=3)
def _down(
    gate: Float[Array, "b t f"], up: Float[Array, "b t f"], down: Float[Array, "f d"], activation: Activation
) -> Float[Array, "b t d"]:
    """Keeps gate and up for the backward pass and computes the rest anew: it would keep five such arrays otherwise."""
    return project("btf,fd->btd", activated(gate, activation) * up, down)
