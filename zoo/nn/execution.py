"""How a model is computed, as opposed to what it is: dtypes, layer loop, rematerialisation, kernels."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from zoo.command_line import AttentionName
from zoo.parallel import divided

RematPolicy = Literal["none", "norms", "mlp", "dots", "full"]

ATTENTION_NAMES = ("query", "key", "value", "attention", "sublayer_output")
"""Checkpoint names of what the policies "norms" and "mlp" keep. Not what a sub-layer gathers from its tensor group: to
write it to the stack of all layers and to read it back takes longer than the second gather, which is mostly hidden."""
MLP_NAMES = ("gate", "up")
"""Checkpoint names of what "norms" keeps besides."""


@dataclass(frozen=True)
class Execution:
    """The same parameters and the same function, computed differently. Nothing here changes what a model is."""

    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Activations and matrix products; sums, norms and softmax are float32 always."""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    """Parameters in memory."""
    scan_layers: bool = False
    """One loop over the repeating unit of layers: compiles in constant time; unrolled is faster on CPU."""
    remat_policy: RematPolicy = "none"
    """What a layer's backward pass recomputes: nothing, "norms" (norms and activation functions), "mlp" (the first half
    of the feed-forward, too), "dots" (all but matrix products: attention, too), or everything ("full")."""
    attention_implementation: AttentionName | None = None
    """Which attention kernels; None = the best ones for the back end. `--attention` is short for it."""

    @property
    def dtype(self) -> jnp.dtype:
        """Compute dtype as a jax dtype."""
        return jnp.dtype(self.compute_dtype)

    @property
    def weight_dtype(self) -> jnp.dtype:
        """Parameter dtype as a jax dtype."""
        return jnp.dtype(self.param_dtype)

    def remat(self, function):
        """`function` under this policy's rematerialisation."""
        if self.remat_policy == "none" and not divided("embed"):
            return function
        policies = jax.checkpoint_policies
        policy = {
            "none": _all_but_gathered_parameters,
            "norms": policies.save_only_these_names(*ATTENTION_NAMES, *MLP_NAMES),
            "mlp": policies.save_only_these_names(*ATTENTION_NAMES),
            "full": policies.nothing_saveable,
            "dots": policies.dots_with_no_batch_dims_saveable,
        }[self.remat_policy]
        return jax.checkpoint(function, policy=policy, prevent_cse=not self.scan_layers)


def _all_but_gathered_parameters(primitive, *_, **parameters) -> bool:
    """Kept for the backward pass, these would be a whole copy of the model on every device."""
    axes = parameters.get("axis_name", ())
    return primitive.name != "all_gather" or not set(divided("embed")) & set(
        axes if isinstance(axes, tuple) else (axes,)
    )
