"""Recurrent independent mechanisms (Goyal et al., arXiv 1909.10893) that speak pairwise or through a shared workspace.

At each step, with units h_k, each with parameters of its own, and elements x_e of the input beside a null element of
zeros:

    a_k = softmax_{null, e}(h_k W_k^q . x_e W^e / sqrt(d)),  input_k = sum_e a_ke (x_e W^v)
    the n units that look least at the null element are active:  h_k = gru_k(input_k, h_k); the others stay as they are
    pairwise    active units:  h_k = h_k + (sum_l softmax_l(h_k Q_k . h_l K_l / sqrt(d)) h_l V_l) O_k
    workspace   active units write to the memory, all units read:  h_k = h_k + y_k        (arXiv 2103.01197, section 3)
    output_e = mlp([x_e, attention(x_e -> units)]) [+ x_e]

The memory persists over the steps. The order of elements is of no account, and there may be any number of them; the
input of a scene is its objects, or one element with all that there is to see. The output head is ours.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32

from zoo.errors import UserError
from zoo.nn import Execution
from zoo.nn.competition import competition, per_head_scores
from zoo.nn.parameters import fan_in_normal, parameter, precision_of, project
from zoo.nn.workspace import Workspace, WorkspaceConfig


@dataclass(frozen=True, kw_only=True)
class RimsConfig:
    """Architecture of recurrent independent mechanisms."""

    input_dim: int
    """Numbers of an element of the input."""
    output_dim: int
    """Numbers of an element of the output."""
    num_units: int = 6
    """Units, K."""
    num_active: int = 4
    """Units that are active at a step."""
    hidden_dim: int = 64
    """Width of a unit's state."""
    num_heads: int = 4
    """Heads of the pairwise communication; each has width hidden_dim / num_heads."""
    mlp_dim: int = 128
    """Hidden width of the output's MLP."""
    communication: Literal["none", "pairwise", "workspace"] = "workspace"
    """How units learn of each other."""
    workspace: WorkspaceConfig = WorkspaceConfig(num_slots=2, key_dim=16)
    """The workspace of "workspace"."""
    residual: bool = True
    """Whether an output is a change of its element; needs output_dim to be input_dim."""

    def __post_init__(self):
        for name in ("input_dim", "output_dim", "num_units", "num_active", "hidden_dim", "num_heads", "mlp_dim"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name} must be at least 1, got {getattr(self, name)}")
        if self.num_active > self.num_units:
            raise UserError(f"model.num_active={self.num_active} is more than num_units={self.num_units}")
        if self.hidden_dim % self.num_heads:
            raise UserError(f"model.hidden_dim={self.hidden_dim} is not a multiple of num_heads={self.num_heads}")
        if self.communication not in ("none", "pairwise", "workspace"):
            raise UserError(
                f"model.communication must be 'none', 'pairwise' or 'workspace', got {self.communication!r}"
            )
        if self.residual and self.input_dim != self.output_dim:
            raise UserError(f"model.residual needs output_dim={self.output_dim} to be input_dim={self.input_dim}")
        if self.communication == "workspace":
            self.workspace.width(self.hidden_dim)

    def num_parameters(self) -> int:
        """Parameters of the whole model."""
        units, width, mlp = self.num_units, self.hidden_dim, self.mlp_dim
        reading = units * width * width + 2 * self.input_dim * width
        cells = units * ((2 * width + 1) * 3 * width + width)
        speaks = {"none": 0, "pairwise": 4 * units * width * width}
        if self.communication == "workspace":
            speaks["workspace"] = self.workspace.num_parameters(width)
        head = (self.input_dim + 2 * width) * width
        head += (self.input_dim + width + 1) * mlp + (mlp + 1) * self.output_dim
        return reading + cells + speaks[self.communication] + head


class RimsState(NamedTuple):
    """What is passed from step to step."""

    hidden: Float[Array, "b k d"]
    """The units."""
    memory: Float32[Array, "b m w"] | None
    """The workspace, where there is one."""


class RimsSteps(NamedTuple):
    """Results of a sequence of steps."""

    outputs: Float[Array, "b t e o"]
    """After each step, of each element."""
    active: Bool[Array, "b t k"]
    """Which units were active."""
    weights: Float32[Array, "b t h m k"] | None
    """Who wrote to which slot, where there is a workspace."""
    state: RimsState
    """After the last step."""


class Rims(nnx.Module):
    """Sequences of sets of elements to an output for each element at each step."""

    def __init__(self, config: RimsConfig, *, execution: Execution | None = None, rngs: nnx.Rngs):
        execution = execution or Execution()
        self.config, self.execution = config, execution
        units, width, dtype = config.num_units, config.hidden_dim, execution.weight_dtype

        def matrix(axes, *shape: int):
            return parameter(rngs, shape, axes, fan_in_normal(shape[-2]), dtype)

        def zeros(*shape: int):
            return parameter(rngs, shape, (None,) * len(shape), jax.nn.initializers.zeros, dtype)

        by_unit, of_input = (None, "embed", None), (None, "embed")
        # Zeros would all look alike at the first step, and those that are not active would stay zeros.
        start = jax.nn.initializers.normal(1.0)
        self.initial_hidden = parameter(rngs, (units, width), of_input, start, dtype)
        self.input_query = matrix(by_unit, units, width, width)
        self.input_key, self.input_value = (matrix(of_input, config.input_dim, width) for _ in range(2))
        self.cell_input, self.cell_state = (matrix(by_unit, units, width, 3 * width) for _ in range(2))
        self.cell_bias = zeros(units, 3 * width)
        if config.communication == "pairwise":
            self.query, self.key, self.value, self.output = (matrix(by_unit, units, width, width) for _ in range(4))
        elif config.communication == "workspace":
            self.workspace = Workspace(width, config.workspace, execution=execution, rngs=rngs)
        self.head_query = matrix(of_input, config.input_dim, width)
        self.head_key, self.head_value = (matrix(("embed", None), width, width) for _ in range(2))
        self.mlp_in = matrix((None, None), config.input_dim + width, config.mlp_dim)
        self.mlp_bias = zeros(config.mlp_dim)
        self.mlp_out = matrix((None, None), config.mlp_dim, config.output_dim)
        self.mlp_out_bias = zeros(config.output_dim)

    def initial_state(self, batch_size: int) -> RimsState:
        """Learned states of the units and an empty memory."""
        hidden = self.initial_hidden[...].astype(self.execution.dtype)
        hidden = jnp.broadcast_to(hidden, (batch_size, *hidden.shape))
        has_memory = self.config.communication == "workspace"
        return RimsState(hidden, self.workspace.initial_memory(batch_size) if has_memory else None)

    def __call__(
        self,
        inputs: Float[Array, "b t e i"],
        present: Bool[Array, "b e"] | None = None,
        state: RimsState | None = None,
    ) -> RimsSteps:
        """All steps of a sequence.

        present: which elements there are (batches of scenes with different numbers of objects); the outputs of others
        mean nothing. state: where to go on; None = `initial_state`.
        """
        state = self.initial_state(len(inputs)) if state is None else state

        def step(state, x):
            state, *found = self.step(state, x, present)
            return state, tuple(found)

        last, found = jax.lax.scan(step, state, inputs.swapaxes(0, 1))
        outputs, active, weights = jax.tree.map(lambda x: x.swapaxes(0, 1), found)
        return RimsSteps(outputs, active, weights, last)

    def roll_out(
        self,
        inputs: Float[Array, "b t e i"],
        steps: int,
        present: Bool[Array, "b e"] | None = None,
    ) -> Float[Array, "b steps e i"]:
        """The next `steps` elements after the inputs, each the output for the one before. ValueError where outputs are
        no inputs."""
        if self.config.input_dim != self.config.output_dim:
            raise ValueError(f"output_dim={self.config.output_dim} is not input_dim={self.config.input_dim}")
        seen = self(inputs, present)

        def step(held, _):
            state, x = held
            state, output, *_ = self.step(state, x, present)
            return (state, output), x

        start = seen.state, seen.outputs[:, -1]
        return jax.lax.scan(step, start, length=steps)[1].swapaxes(0, 1)

    def step(
        self, state: RimsState, x: Float[Array, "b e i"], present: Bool[Array, "b e"] | None = None
    ) -> tuple[RimsState, Float[Array, "b e o"], Bool[Array, "b k"], Float32[Array, "b h m k"] | None]:
        """(state, outputs, active units, who wrote) after one step."""
        x, weights = x.astype(self.execution.dtype), None
        hidden, memory = state
        with jax.named_scope("input_attention"):
            inputs, active = self._look(hidden, x, present)
        with jax.named_scope("cells"):
            hidden = jnp.where(active[..., None], self._cell(inputs, hidden), hidden)
        if memory is not None:
            read, memory, weights = self.workspace(hidden, memory, writers=active)
            hidden = hidden + read
        elif self.config.communication == "pairwise":
            with jax.named_scope("pairwise"):
                hidden = hidden + jnp.where(active[..., None], self._hear(hidden), 0)
        with jax.named_scope("output"):
            return RimsState(hidden, memory), self._outputs(x, hidden), active, weights

    def _look(self, hidden, x, present):
        """(each unit's input, which units are active)."""
        query = self._by_unit(hidden, self.input_query)
        # Key and value of the null element, zeros without a bias, are zeros.
        pad = ((0, 0), (1, 0), (0, 0))
        key, value = (jnp.pad(project("bei,id->bed", x, w[...]), pad) for w in (self.input_key, self.input_value))
        seen = None if present is None else jnp.pad(present, pad[:2], constant_values=True)[:, None]
        scores = per_head_scores(query[:, :, None], key[:, :, None], scaled=True)[:, 0]
        weights = competition(scores, seen)
        inputs = jnp.einsum("bke,bed->bkd", weights.astype(x.dtype), value, precision=precision_of(x.dtype))
        looks = jax.lax.stop_gradient(1 - weights[..., 0])
        return inputs, competition(looks, None, self.config.num_active) > 0

    def _cell(self, inputs, hidden):
        """The gated recurrent unit: (1 - u) tanh(x W + b + r * h U) + u h."""
        given = self._by_unit(inputs, self.cell_input) + self.cell_bias[...].astype(inputs.dtype)
        held = self._by_unit(hidden, self.cell_state)
        (reset, update, new), (reset_h, update_h, new_h) = (jnp.split(part, 3, axis=-1) for part in (given, held))
        update = jax.nn.sigmoid(update + update_h)
        return (1 - update) * jnp.tanh(new + jax.nn.sigmoid(reset + reset_h) * new_h) + update * hidden

    def _hear(self, hidden):
        """What every unit hears from all of them."""
        heads = self.config.num_heads
        query, key, value = (
            self._by_unit(hidden, w).reshape(*hidden.shape[:2], heads, -1) for w in (self.query, self.key, self.value)
        )
        weights = jax.nn.softmax(per_head_scores(query, key, scaled=True), axis=-1).astype(hidden.dtype)
        heard = jnp.einsum("bhkl,blhv->bkhv", weights, value, precision=precision_of(hidden.dtype))
        return self._by_unit(heard.reshape(hidden.shape), self.output)

    def _outputs(self, x, hidden):
        query = project("bei,id->bed", x, self.head_query[...])[:, :, None]
        key = project("bkd,df->bkf", hidden, self.head_key[...])[:, :, None]
        value = project("bkd,df->bkf", hidden, self.head_value[...])
        weights = jax.nn.softmax(per_head_scores(query, key, scaled=True)[:, 0], axis=-1).astype(x.dtype)
        read = jnp.einsum("bek,bkd->bed", weights, value, precision=precision_of(x.dtype))
        known = jnp.concatenate([x, read], axis=-1)
        inner = jax.nn.gelu(project("bei,if->bef", known, self.mlp_in[...]) + self.mlp_bias[...].astype(x.dtype))
        out = project("bef,fo->beo", inner, self.mlp_out[...]) + self.mlp_out_bias[...].astype(x.dtype)
        return x + out if self.config.residual else out

    def _by_unit(self, x: Float[Array, "b k d"], weight: Any) -> Float[Array, "b k f"]:
        """Every unit times its own matrix."""
        return jnp.einsum("bkd,kdf->bkf", x, weight[...].astype(x.dtype), precision=precision_of(x.dtype))


# States of balls (x, y and their velocities); six units of which four are active (sizes for two CPU cores).
BOUNCING_BALLS = RimsConfig(input_dim=4, output_dim=4)

PRESETS = {"rims-bouncing-balls": BOUNCING_BALLS}
