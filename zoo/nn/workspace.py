"""A shared global workspace: specialists compete to write to a few memory slots, and all of them read the slots.

Goyal et al., "Coordination Among Neural Modules Through a Shared Global Workspace", arXiv 2103.01197, section 2. With
specialists x_i and slots M_j, in each of several heads (H = width of a key):

    z_i = x_i                                                 or x_i . W_in + b (`input_projection`)
    write    A_ji = softmax_i(M_j W_q . z_i W_k [/ sqrt(H)])  each slot divides itself among the specialists; in hard
                                                              competition all but its k largest weights are 0
             U = A (z W_v)                                    heads side by side
             U = norm(M + U),  U = norm(U + mlp(U))           with `mlp_layers` (as in Santoro et al., arXiv 1806.01822)
    gates    C = mean_i relu(z_i W_1) + tanh(M)
             I = sigmoid(C W_I + b_I),  F = sigmoid(C W_F + b_F)
             M' = I * tanh(U) + F * M
    read     s_ij = softmax_j(z_i W'_q . M'_j W'_k [/ sqrt(H)]),   y_i = sum_j s_ij M'_j W'_v

The caller adds y_i to its stream and hands M' to the next layer or step: memory persists as long as it is passed on.
Time and memory are O(n_s n_m): no specialist is compared with another one. (Hard competition sorts: lax.top_k.)

The public code (github.com/anirudh9119/shared_workspace) differs from the paper's equations; each difference is a field
of `WorkspaceConfig`, and `PAPER` and `PUBLIC_CODE` are the two sets of them.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32

from zoo.errors import UserError
from zoo.nn.competition import competition, gated_memory, identity_memory, per_head_scores
from zoo.nn.execution import Execution
from zoo.nn.layer_norm import LayerNorm
from zoo.nn.parameters import fan_in_normal, parameter, precision_of, project
from zoo.parallel import divided, gather

NORM_EPS = 1e-5
"""Of the norms of the memory's MLP; torch's default, which the public code has."""
FORGET_BIAS = 1.0
"""b_F at the beginning, where b_I is 0: slots keep what they hold (Santoro et al.)."""


@dataclass(frozen=True, kw_only=True)
class WorkspaceConfig:
    """A workspace; the defaults are the paper's equations with soft competition."""

    num_slots: int = 8
    """Slots n_m of the memory."""
    num_heads: int = 4
    """Heads, in writing and reading."""
    key_dim: int = 32
    """Width H of a head's queries and keys."""
    memory_dim: int | None = None
    """Width of a slot, a multiple of the heads; None = that of the specialists."""
    top_k: int | None = None
    """Specialists that write to a slot in each head (hard competition); None = all (soft)."""
    scaled: bool = True
    """Whether scores are divided by sqrt(key_dim). The public code does not."""
    renormalised: bool = True
    """Whether the softmax of a hard competition is over the k winners; otherwise over all, and the losers' weights are
    dropped, so that the others sum to less than 1 (public code)."""
    losers_gradient: bool = False
    """Without renormalisation: whether the losers' scores have a gradient, by the denominator of the winners' weights
    (public code)."""
    tied: bool = False
    """Whether reading uses the projections of writing (public code): the same query map for slots and specialists."""
    input_projection: bool = False
    """Whether specialists pass through a linear map before all else (public code)."""
    bias: bool = False
    """Whether queries, keys and values have biases (public code)."""
    gates: Literal["shared", "per_slot"] = "shared"
    """shared: the formulas above, one W_I and W_F for all slots. per_slot: each gate is the sigmoid of
    mean_i relu(w * z_i) W + tanh(M_j) W_j + b with a vector w and a matrix W_j of each slot's own (public code)."""
    mlp_layers: int = 0
    """Layers, each linear and relu, between A V and the gates, with both residuals and norms; 0 = none of that."""
    mlp_shared: bool = False
    """Whether these layers have the same weights (public code)."""

    def __post_init__(self):
        for name in ("num_slots", "num_heads", "key_dim"):
            if getattr(self, name) < 1:
                raise UserError(f"workspace.{name} must be at least 1, got {getattr(self, name)}")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"workspace.top_k must be at least 1, or none for soft competition, got {self.top_k}")
        if self.mlp_layers < 0:
            raise UserError(f"workspace.mlp_layers must not be negative, got {self.mlp_layers}")
        if self.gates not in ("shared", "per_slot"):
            raise UserError(f"workspace.gates must be 'shared' or 'per_slot', got {self.gates!r}")
        if self.losers_gradient and (self.renormalised or self.top_k is None):
            raise UserError(
                "workspace.losers_gradient needs top_k and renormalised=false: others have no losers' terms"
            )

    def width(self, embed_dim: int) -> int:
        """Width of a slot beside specialists of this width. Raises `UserError` for widths that do not fit."""
        width = self.memory_dim or embed_dim
        for name, size in (("embed_dim", embed_dim), ("memory_dim", width)):
            if size % self.num_heads:
                raise UserError(f"workspace.num_heads={self.num_heads} does not divide {name}={size}")
        if self.tied and width != embed_dim:
            raise UserError(f"workspace.tied needs memory_dim={width} to be the specialists' width {embed_dim}")
        if self.num_slots > width:
            raise UserError(
                f"workspace.num_slots={self.num_slots} must not exceed their width {width}: slots begin as rows of the "
                "identity, and further ones would be alike"
            )
        return width

    def num_parameters(self, embed_dim: int) -> int:
        """Parameters of a `Workspace` of this config."""
        width, keys = self.width(embed_dim), self.num_heads * self.key_dim
        bias = int(self.bias)
        writing = (width + embed_dim + 2 * bias) * keys + (embed_dim + bias) * width
        reading = 0 if self.tied else (width + embed_dim + 2 * bias) * keys + (width + bias) * embed_dim
        into = (embed_dim + 1) * embed_dim if self.input_projection else 0
        layers = min(self.mlp_layers, 1) if self.mlp_shared else self.mlp_layers
        mlp = layers * (width + 1) * width + (4 * width if self.mlp_layers else 0)
        if self.gates == "shared":
            gates = (embed_dim + 2 * width + 2) * width
        else:
            gates = embed_dim + 2 * width * (embed_dim + self.num_slots * width + 1)
        return writing + reading + into + mlp + gates


PAPER = WorkspaceConfig()
"""The equations of section 2; `replace(PAPER, top_k=...)` is their hard competition."""
PUBLIC_CODE = WorkspaceConfig(
    top_k=5,
    scaled=False,
    renormalised=False,
    losers_gradient=True,
    tied=True,
    input_projection=True,
    bias=True,
    gates="per_slot",
    mlp_layers=4,
    mlp_shared=True,
)
"""As Sort-of-CLEVR's files of the public code compute it. (Its scalar gate biases are part of b here, and that its maps
have biases is torch's default.)"""


class Exchanged(NamedTuple):
    """What specialists and memory are after one exchange."""

    read: Float[Array, "b n d"]
    """y: what each specialist reads; without the residual."""
    memory: Float32[Array, "b m w"]
    """M', float32 whatever the compute dtype is: it is summed over layers and time."""
    weights: Float32[Array, "b h m n"]
    """A: who wrote to which slot."""


class Projections(nnx.Module):
    """Queries of one side, keys and values of the other, by head."""

    def __init__(self, query_width, key_width, key_dim, value_dim, *, heads, bias, execution, rngs: nnx.Rngs):
        dtype, axes, zeros = execution.weight_dtype, ("embed", "heads", "head_dim"), jax.nn.initializers.zeros
        self.query = parameter(rngs, (query_width, heads, key_dim), axes, fan_in_normal(query_width), dtype)
        self.key = parameter(rngs, (key_width, heads, key_dim), axes, fan_in_normal(key_width), dtype)
        self.value = parameter(rngs, (key_width, heads, value_dim), axes, fan_in_normal(key_width), dtype)
        self.has_bias = bias
        if bias:
            self.query_bias = parameter(rngs, (heads, key_dim), axes[1:], zeros, dtype)
            self.key_bias = parameter(rngs, (heads, key_dim), axes[1:], zeros, dtype)
            self.value_bias = parameter(rngs, (heads, value_dim), axes[1:], zeros, dtype)

    def queries(self, x: Float[Array, "b q d"]) -> Float[Array, "b q h k"]:
        """x W_q."""
        out = project("bqd,dhk->bqhk", x, self.query[...])
        return out + self.query_bias[...].astype(x.dtype) if self.has_bias else out

    def keys(self, x: Float[Array, "b s d"]) -> Float[Array, "b s h k"]:
        """x W_k."""
        out = project("bsd,dhk->bshk", x, self.key[...])
        return out + self.key_bias[...].astype(x.dtype) if self.has_bias else out

    def values(self, x: Float[Array, "b s d"]) -> Float[Array, "b s h v"]:
        """x W_v."""
        out = project("bsd,dhv->bshv", x, self.value[...])
        return out + self.value_bias[...].astype(x.dtype) if self.has_bias else out


class Workspace(nnx.Module):
    """One exchange between specialists and memory; see the module's docstring for the formulas.

    On a mesh, heads are divided over a tensor group and put together where they meet (slots before the gates, what is
    read at the end); the specialists are whole. `zoo.nn.workspace_causal` is the variant for decoders.
    """

    def __init__(self, embed_dim: int, config: WorkspaceConfig, *, execution: Execution, rngs: nnx.Rngs):
        width, heads = config.width(embed_dim), config.num_heads
        self.config, self.width, self.dtype = config, width, execution.dtype
        dtype, zeros = execution.weight_dtype, jax.nn.initializers.zeros
        options: dict[str, Any] = dict(heads=heads, bias=config.bias, execution=execution, rngs=rngs)
        self.writing = Projections(width, embed_dim, config.key_dim, width // heads, **options)
        if not config.tied:
            self.reading = Projections(embed_dim, width, config.key_dim, embed_dim // heads, **options)
        if config.input_projection:
            shape = (embed_dim, embed_dim)
            self.input = parameter(rngs, shape, ("embed", None), fan_in_normal(embed_dim), dtype)
            self.input_bias = parameter(rngs, (embed_dim,), ("norm",), zeros, dtype)
        if config.mlp_layers:
            layers = 1 if config.mlp_shared else config.mlp_layers
            shape = (layers, width, width)
            self.mlp = parameter(rngs, shape, (None, "embed", None), fan_in_normal(width), dtype)
            self.mlp_bias = parameter(rngs, (layers, width), (None, "norm"), zeros, dtype)
            self.attended_norm, self.mlp_norm = (
                LayerNorm(width, eps=NORM_EPS, execution=execution, rngs=rngs) for _ in range(2)
            )
        self._make_gates(embed_dim, rngs, dtype)

    def _make_gates(self, embed_dim: int, rngs: nnx.Rngs, dtype) -> None:
        config, width = self.config, self.width

        def bias(key, shape, dtype):
            return jnp.zeros(shape, dtype).at[1].set(FORGET_BIAS)

        self.gate_bias = parameter(rngs, (2, width), (None, "norm"), bias, dtype)
        if config.gates == "shared":
            shape, axes = (embed_dim, width), ("embed", "mlp")
            self.gate_input = parameter(rngs, shape, axes, fan_in_normal(embed_dim), dtype)
            shape, axes = (width, 2, width), ("embed", None, None)
            self.gate = parameter(rngs, shape, axes, fan_in_normal(width), dtype)
        else:
            self.gate_scale = parameter(rngs, (embed_dim,), ("norm",), jax.nn.initializers.ones, dtype)
            shape, axes = (embed_dim, 2, width), ("embed", None, None)
            self.gate_input = parameter(rngs, shape, axes, fan_in_normal(embed_dim), dtype)
            shape, axes = (config.num_slots, width, 2, width), (None, "embed", None, None)
            self.gate = parameter(rngs, shape, axes, fan_in_normal(width), dtype)

    def initial_memory(self, batch_size: int) -> Float32[Array, "b m w"]:
        """The memory before anything was written: slot j is row j of the identity."""
        return identity_memory(batch_size, self.config.num_slots, self.width)

    def __call__(
        self, x: Float[Array, "b n d"], memory: Float[Array, "b m w"], *, writers: Bool[Array, "b n"] | None = None
    ) -> Exchanged:
        """Writes, updates the memory and reads.

        x: the specialists, in the order of which nothing depends. writers: which of them may write and count in the
        gates' mean; all read. None = all write; where nobody may, U is 0 before the MLP.
        """
        z = self.specialists(x)
        with jax.named_scope("workspace_write"):
            attended, weights = self.attend(z, memory, None if writers is None else writers[:, None, None])
            memory = self.updated(memory, attended, self._mean(self.gate_terms(z), writers))
        with jax.named_scope("workspace_read"):
            return Exchanged(self.read(z, memory), memory, weights)

    def specialists(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """z, in the compute dtype."""
        x = x.astype(self.dtype)
        if not self.config.input_projection:
            return x
        return project("bnd,df->bnf", x, self.input[...]) + self.input_bias[...].astype(self.dtype)

    def attend(self, z, memory, visible) -> tuple[Float[Array, "b m w"], Float32[Array, "b h m n"]]:
        """(A V, A); visible [b, 1, 1, n]: who may write."""
        config = self.config
        query = self.writing.queries(memory.astype(self.dtype))
        scores = per_head_scores(query, self.writing.keys(z), config.scaled)
        weights = competition(scores, visible, config.top_k, config.renormalised, config.losers_gradient)
        values = self.writing.values(z)
        precision = precision_of(self.dtype)
        attended = jnp.einsum("bhmn,bnhv->bmhv", weights.astype(self.dtype), values, precision=precision)
        return self.whole_heads(attended), weights

    def whole_heads(self, x: Float[Array, "*b h v"]) -> Float[Array, "*b hv"]:
        """All heads side by side; on a mesh, those of the whole tensor group."""
        x = gather(x, divided("heads"), axis=x.ndim - 2)
        return x.reshape(*x.shape[:-2], -1)

    def gate_terms(self, z: Float[Array, "b n d"]) -> Float32[Array, "b n w"]:
        """The specialists' terms of the gates, of which the mean is taken: relu(z W_1), or relu(w * z)."""
        if self.config.gates == "shared":
            return jax.nn.relu(project("bnd,dw->bnw", z, self.gate_input[...])).astype(jnp.float32)
        return jax.nn.relu(z * self.gate_scale[...].astype(z.dtype)).astype(jnp.float32)

    def _mean(self, terms, writers):
        if writers is None:
            return jnp.mean(terms, axis=1)
        count = jnp.maximum(jnp.sum(writers, axis=1, keepdims=True), 1)
        return jnp.sum(jnp.where(writers[..., None], terms, 0), axis=1) / count

    def updated(
        self, memory: Float[Array, "b m w"], attended: Float[Array, "b m w"], mean: Float32[Array, "b w"]
    ) -> Float32[Array, "b m w"]:
        """M' of M, A V and the mean of the gates' terms."""
        memory = memory.astype(jnp.float32)
        update = self._through_mlp(memory, attended)
        bias = self.gate_bias[...].astype(jnp.float32)
        if self.config.gates == "shared":
            mean = gather(mean, divided("mlp"), axis=1)
            context = (mean[:, None] + jnp.tanh(memory)).astype(self.dtype)
            gates = project("bmw,wgv->bmgv", context, self.gate[...]).astype(jnp.float32) + bias
        else:
            by_input = project("bd,dgv->bgv", mean.astype(self.dtype), self.gate_input[...])[:, None]
            held = jnp.tanh(memory).astype(self.dtype)
            weight = self.gate[...].astype(self.dtype)
            by_slot = jnp.einsum("bmw,mwgv->bmgv", held, weight, precision=precision_of(self.dtype))
            gates = (by_input + by_slot).astype(jnp.float32) + bias
        return gated_memory(memory, update.astype(jnp.float32), gates[:, :, 0], gates[:, :, 1])

    def _through_mlp(self, memory, attended):
        if not self.config.mlp_layers:
            return attended
        attended = self.attended_norm(memory.astype(self.dtype) + attended)
        hidden = attended
        for layer in range(self.config.mlp_layers):
            place = 0 if self.config.mlp_shared else layer
            bias = self.mlp_bias[...][place].astype(self.dtype)
            hidden = jax.nn.relu(project("bmw,wv->bmv", hidden, self.mlp[...][place]) + bias)
        return self.mlp_norm(attended + hidden)

    def read(self, z: Float[Array, "b n d"], memory: Float[Array, "b m w"]) -> Float[Array, "b n d"]:
        """y: every specialist reads all slots."""
        maps = self.writing if self.config.tied else self.reading
        held = memory.astype(self.dtype)
        scores = per_head_scores(maps.queries(z), maps.keys(held), self.config.scaled)
        weights = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
        out = jnp.einsum("bhnm,bmhv->bnhv", weights, maps.values(held), precision=precision_of(self.dtype))
        return self.whole_heads(out)
