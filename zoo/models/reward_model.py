"""A reward model: a decoder whose hidden state after the last token of an answer is read by one vector.

    r(prompt, answer) = v . h_T,   h_T the decoder's state after its final norm at the answer's last token

It is trained on pairs of answers (`zoo.training.preference.reward_model_loss`), usually from a decoder that was tuned
on conversations before; v begins at zero.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float32, Int

from zoo.models.gemma2 import GEMMA2_PICO, Gemma2, Gemma2Config
from zoo.nn import Execution
from zoo.nn.parameters import parameter


@dataclass(frozen=True)
class RewardModelConfig:
    """Architecture of a reward model."""

    decoder: Gemma2Config
    """What reads prompt and answer."""

    @property
    def vocab_size(self) -> int:
        """Of the decoder."""
        return self.decoder.vocab_size

    @property
    def pad_token_id(self) -> int:
        """Of the decoder."""
        return self.decoder.pad_token_id

    @property
    def bos_token_id(self) -> int:
        """Of the decoder."""
        return self.decoder.bos_token_id

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Of the decoder."""
        return self.decoder.eos_token_ids

    @property
    def max_position_embeddings(self) -> int:
        """Of the decoder."""
        return self.decoder.max_position_embeddings

    @property
    def embed_dim(self) -> int:
        """Of the decoder."""
        return self.decoder.embed_dim

    @property
    def num_layers(self) -> int:
        """Of the decoder."""
        return self.decoder.num_layers

    def num_parameters(self) -> int:
        """The decoder's, and a vector."""
        return self.decoder.num_parameters() + self.embed_dim

    def flops_per_token(self, sequence_length: int) -> float:
        """Forward floating-point operations per token of a sequence: the decoder's, less the logits."""
        logits = 2 * self.vocab_size * self.embed_dim
        return self.decoder.flops_per_token(sequence_length) - logits + 2 * self.embed_dim


class RewardModel(nnx.Module):
    """Tokens to rewards."""

    def __init__(self, config: RewardModelConfig, *, execution: Execution | None = None, rngs: nnx.Rngs):
        self.config, self.execution = config, execution or Execution()
        self.decoder = Gemma2(config.decoder, execution=self.execution, rngs=rngs)
        zeros = jax.nn.initializers.zeros
        self.head = parameter(rngs, (config.embed_dim,), ("norm",), zeros, self.execution.weight_dtype)

    def __call__(
        self,
        tokens: Int[Array, "b t"],
        *,
        positions: Int[Array, "b t"] | None = None,
        segment_ids: Int[Array, "b t"] | None = None,
    ) -> Float32[Array, "b t"]:
        """v . h at every token: the reward of what stands in its segment up to there. Arguments as for `Decoder`."""
        hidden: Any = self.decoder.hidden_states(tokens, positions=positions, segment_ids=segment_ids)
        head: Any = self.head[...]
        with jax.named_scope("reward"):
            return jnp.einsum("btd,d->bt", hidden.astype(jnp.float32), head.astype(jnp.float32))


PRESETS = {"gemma2-pico-reward": RewardModelConfig(GEMMA2_PICO)}
