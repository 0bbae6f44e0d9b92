"""BERT (arXiv 1810.04805): tokens to hidden states that have seen what stands on both sides of them.

    x = norm(word + position + token type)
    x = norm(x + attention(x));  x = norm(x + mlp(x))      each layer; exact GELU, norms after the sum
    pooled = tanh(x[0] . kernel + b)                       where the head is a pooler
    logits = norm(gelu(x . kernel + b)) . E^T + bias       where it guesses masked tokens; E are the word embeddings

Several texts can share a row: with `segment_ids` a token sees its own text only. What BERT's paper calls segments, the
first and the second text of a pair, are `token_type_ids` here. Dropout is that of hidden states; there is none of the
attention's weights, which the kernels do not have. Source of names and details: transformers 5.23, models/bert.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int, Key

from zoo.errors import UserError
from zoo.nn import Embedder, Execution, build_layers, gathered_outside_layers, run_layers
from zoo.nn.activations import activated
from zoo.nn.dropout import dropped, folded
from zoo.nn.encoder_block import PostNormBlock, encoder_block_parameters
from zoo.nn.layer_norm import LayerNorm
from zoo.nn.parameters import fan_in_normal, parameter, project
from zoo.nn.sinusoids import sinusoids
from zoo.parallel import spmd, state_axes
from zoo.training.masked_loss import MASKED_SHARE

Head = Literal["pooler", "masked_lm"]


@dataclass(frozen=True)
class BertConfig:
    """Architecture of a BERT."""

    vocab_size: int
    """Tokens V of the vocabulary."""
    embed_dim: int
    """Model width D."""
    num_layers: int
    """Encoder layers."""
    num_heads: int
    """Attention heads; each has width D / num_heads."""
    hidden_dim: int
    """Feed-forward width F."""
    num_positions: int = 512
    """Rows of the position table: the longest sequence."""
    num_token_types: int = 2
    """Kinds of texts that tokens may belong to (the first and the second of a pair)."""
    head: Head = "masked_lm"
    """pooler: one vector for a sequence (`BertModel`). masked_lm: logits of masked tokens (`BertForMaskedLM`)."""
    dropout: float = 0.1
    """Probability of a hidden number to be zeroed in training: of the embeddings and of what each sub-layer adds."""
    norm_eps: float = 1e-12
    """Added to the variance in every norm."""
    pad_token_id: int = 0
    """What fills up a row."""
    mask_token_id: int = 103
    """What stands for a masked token in training. No field of config.json, but 103 in Google's vocabularies."""

    def __post_init__(self):
        for name in ("vocab_size", "embed_dim", "num_layers", "num_heads", "hidden_dim", "num_positions",
                     "num_token_types"):  # fmt: skip
            if getattr(self, name) < 1:
                raise UserError(f"model.{name} must be at least 1, got {getattr(self, name)}")
        if self.embed_dim % self.num_heads:
            raise UserError(f"model.embed_dim={self.embed_dim} is not a multiple of num_heads={self.num_heads}")
        if self.head not in ("pooler", "masked_lm"):
            raise UserError(f"model.head must be 'pooler' or 'masked_lm', got {self.head!r}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"model.dropout must be at least 0 and below 1, got {self.dropout}")
        if not self.norm_eps > 0:
            raise UserError(f"model.norm_eps must be positive, got {self.norm_eps}")

    @property
    def max_position_embeddings(self) -> int:
        """What `num_positions` is called elsewhere, where it is no size of a parameter."""
        return self.num_positions

    def num_parameters(self) -> int:
        """Parameters of the whole model; the output table of masked tokens is that of the words."""
        width = self.embed_dim
        tables = (self.vocab_size + self.num_positions + self.num_token_types) * width
        layers = self.num_layers * encoder_block_parameters(width, self.hidden_dim)
        head = width * width + width
        if self.head == "masked_lm":
            head += 2 * width + self.vocab_size
        return tables + 2 * width + layers + head

    def flops_per_token(self, sequence_length: int) -> float:
        """Forward floating-point operations per token of a row that is one text, where `MASKED_SHARE` of the tokens
        pass through the head; a training step takes three times as many.

            projections 8 D^2, attention 4 D T, feed-forward 4 D F; the head's share of 2 D^2 + 2 D V
        """
        width = self.embed_dim
        layer = 8 * width * width + 4 * width * sequence_length + 4 * width * self.hidden_dim
        head = 2 * width * width + (2 * width * self.vocab_size if self.head == "masked_lm" else 0)
        return self.num_layers * layer + MASKED_SHARE * head


def sinusoidal_positions(key: Key[Array, ""], shape: tuple[int, int], dtype: Any) -> Float[Array, "t d"]:
    """Initial position table of a shape [t, d]: `sinusoids` of 0 .. t - 1, times sqrt(2 / d); the same for every key.

    Its numbers are as large as those of `fan_in_normal`. (BERT's paper learns the table from random numbers.) What a
    place is to its neighbours is the same everywhere in the row; with random rows every place has to learn it by
    itself, and a small model is stuck for long at what it knows without (docs/decisions.md, 2026-11-28).
    """
    rows, width = shape
    table = sinusoids(np.arange(rows, dtype=np.float32), width + width % 2)[:, :width]
    return jnp.asarray(table * math.sqrt(2 / width), dtype)


class MaskedTokenHead(nnx.Module):
    """norm(gelu(x . kernel + b)), whose products with the word embeddings, plus `bias`, are the logits."""

    def __init__(self, config: BertConfig, *, execution: Execution, rngs: nnx.Rngs):
        width, dtype, zeros = config.embed_dim, execution.weight_dtype, jax.nn.initializers.zeros
        self.kernel = parameter(rngs, (width, width), ("embed", None), fan_in_normal(width), dtype)
        self.kernel_bias = parameter(rngs, (width,), ("norm",), zeros, dtype)
        self.norm = LayerNorm(width, eps=config.norm_eps, execution=execution, rngs=rngs)
        self.bias = parameter(rngs, (config.vocab_size,), ("vocab",), zeros, dtype)

    def __call__(self, hidden: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        x = project("btd,de->bte", hidden, self.kernel[...]) + self.kernel_bias[...].astype(hidden.dtype)
        return self.norm(activated(x, "gelu"))


class Pooler(nnx.Module):
    """tanh(x[0] . kernel + b): one vector for each sequence, out of the hidden state of its first token."""

    def __init__(self, config: BertConfig, *, execution: Execution, rngs: nnx.Rngs):
        width, dtype = config.embed_dim, execution.weight_dtype
        self.kernel = parameter(rngs, (width, width), ("embed", None), fan_in_normal(width), dtype)
        self.kernel_bias = parameter(rngs, (width,), ("norm",), jax.nn.initializers.zeros, dtype)

    def __call__(self, hidden: Float[Array, "b t d"]) -> Float[Array, "b d"]:
        first = project("bd,de->be", hidden[:, 0], self.kernel[...])
        return jnp.tanh(first + self.kernel_bias[...].astype(hidden.dtype))


class Bert(nnx.Module):
    """Tokens to one vector for each; out of these logits of masked tokens, or one vector for each sequence."""

    def __init__(self, config: BertConfig, *, execution: Execution | None = None, rngs: nnx.Rngs):
        execution = execution or Execution()
        self.config, self.execution = config, execution
        width, dtype = config.embed_dim, execution.weight_dtype

        def table(rows: int, initializer: Any):
            return parameter(rngs, (rows, width), (None, "embed"), initializer, dtype)

        self.embedder = Embedder(config.vocab_size, width, scaled=False, execution=execution, rngs=rngs)
        self.position = table(config.num_positions, sinusoidal_positions)
        self.token_type = table(config.num_token_types, fan_in_normal(width))
        self.embedding_norm = LayerNorm(width, eps=config.norm_eps, execution=execution, rngs=rngs)
        self.layers = build_layers(
            lambda _, rngs: PostNormBlock(
                width,
                config.num_heads,
                config.hidden_dim,
                norm_eps=config.norm_eps,
                dropout=config.dropout,
                execution=execution,
                rngs=rngs,
            ),
            config.num_layers,
            1,
            execution=execution,
            rngs=rngs,
        )
        head = MaskedTokenHead if config.head == "masked_lm" else Pooler
        self.head: Any = head(config, execution=execution, rngs=rngs)

    def __call__(
        self,
        input_ids: Int[Array, "b t"],
        attention_mask: Int[Array, "b t"] | Bool[Array, "b t"] | None = None,
        token_type_ids: Int[Array, "b t"] | None = None,
        position_ids: Int[Array, "#b t"] | None = None,
        *,
        segment_ids: Int[Array, "b t"] | None = None,
        rng: Key[Array, ""] | None = None,
    ) -> Float[Array, "b t d"]:
        """Hidden states after the last layer, in the compute dtype.

        Args:
          input_ids: tokens.
          attention_mask: 0 at padding, which nothing sees; default: there is none.
          token_type_ids: which text of a pair a token belongs to; default 0.
          position_ids: rows of the position table; default 0 .. T-1. One beyond the table gives NaN.
          segment_ids: which text of the row a token belongs to, 0 = padding; it sees the tokens of its own text only.
            Positions are those of the row unless `position_ids` begin anew with every text. Results at padding mean
            nothing.
          rng: turns dropout on; None: not training.

        ValueError for rows that are longer than the position table.
        """
        return self._run(input_ids, attention_mask, token_type_ids, position_ids, segment_ids, rng, keep=False)[0]

    def hidden_states(
        self,
        input_ids: Int[Array, "b t"],
        attention_mask: Int[Array, "b t"] | Bool[Array, "b t"] | None = None,
        token_type_ids: Int[Array, "b t"] | None = None,
        position_ids: Int[Array, "#b t"] | None = None,
        *,
        segment_ids: Int[Array, "b t"] | None = None,
    ) -> Float[Array, "n b t d"]:
        """The embeddings after their norm and the result of each layer: num_layers + 1 of them. Arguments as for the
        call."""
        return self._run(input_ids, attention_mask, token_type_ids, position_ids, segment_ids, None, keep=True)[1]

    def pool(self, hidden: Float[Array, "b t d"]) -> Float[Array, "b d"]:
        """One vector for each sequence out of what the call gives. ValueError if the head is no pooler."""
        self._check_head("pooler")
        with jax.named_scope("head"):
            return self.head(hidden)

    def logits(self, hidden: Float[Array, "b t d"]) -> Float32[Array, "b t v"]:
        """Of the token at each place, out of what the call gives. ValueError if the head is a pooler."""
        features, (_, bias) = self.masked_features(hidden), self.output_layer()
        with jax.named_scope("logits"):
            return self.embedder.decode(features, None) + bias.astype(jnp.float32)

    def masked_features(self, hidden: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """What the output layer reads, in the compute dtype. ValueError if the head is a pooler."""
        self._check_head("masked_lm")
        with jax.named_scope("head"):
            return self.head(hidden)

    def output_layer(self) -> tuple[Float[Array, "v d"], Float[Array, "v"]]:
        """(E, bias) of the logits f . E^T + bias of features f, in the compute dtype, for losses that work on parts of
        the logits. ValueError if the head is a pooler."""
        self._check_head("masked_lm")
        table: Any = self.embedder.output_table()
        return table.astype(self.execution.dtype), self.head.bias[...].astype(self.execution.dtype)

    def _check_head(self, wanted: str) -> None:
        if self.config.head != wanted:
            raise ValueError(f"this BERT has the head {self.config.head!r}, not {wanted!r} (config.head)")

    def _run(self, input_ids, attention_mask, token_type_ids, position_ids, segment_ids, rng, *, keep: bool):
        """(hidden states after the last layer, all of them or None)."""
        batch, length = input_ids.shape
        if length > self.config.num_positions:
            limit = self.config.num_positions
            raise ValueError(f"rows of {length} tokens are longer than the position table, num_positions={limit}")
        if position_ids is None:
            position_ids = jnp.arange(length, dtype=jnp.int32)[None]
        if token_type_ids is None:
            token_type_ids = jnp.zeros_like(input_ids)
        queries, keys = _segments(attention_mask, segment_ids)
        noise = None if rng is None or not self.config.dropout else jax.random.split(rng, batch)
        graphdef, state = nnx.split(self)

        def run(state, *arrays):
            return nnx.merge(graphdef, state)._run_rows(*arrays, keep=keep)

        arrays = (input_ids, jnp.broadcast_to(position_ids, input_ids.shape), token_type_ids, queries, keys, noise)
        row = ("batch", None)
        axes = [None if array is None else row[: array.ndim] for array in arrays]
        out_axes = (("batch", None, None), (None, "batch", None, None) if keep else None)
        # Every device has whole rows, with whole layers: it says so of the lengths, which mesh axes might divide.
        sizes = {"batch": batch, "length": 1, "residual_length": 1}
        return spmd(run, (state_axes(state), *axes), out_axes, sizes)(state, *arrays)

    def _run_rows(self, input_ids, positions, token_types, queries, keys, noise, *, keep: bool):
        """`_run` on one device's rows."""
        # The table of words stays divided: the embedder looks up what other devices hold.
        words = self.embedder.encode(input_ids)
        model: Any = gathered_outside_layers(self, self.execution)
        with jax.named_scope("embed"):
            position = jnp.take(model.position[...].astype(words.dtype), positions, axis=0)
            token_type = jnp.take(model.token_type[...].astype(words.dtype), token_types, axis=0)
            embedded = self.embedding_norm(words + position + token_type)
            embedded = dropped(embedded, self.config.dropout, None if noise is None else folded(noise, 0))

        def apply(layer, x, cache, index):
            x = layer(x, queries, keys, None if noise is None else folded(noise, index + 1))
            return x, cache, x if keep else None

        hidden, _, states = run_layers(self.layers, embedded, apply, None, self.execution)
        return hidden, jnp.concatenate([embedded[None], states]) if keep else None


def _segments(attention_mask, segment_ids):
    """(segments of tokens as queries, as keys). With a mask alone padding sees the text, as in the public
    implementation, and nothing sees padding."""
    if segment_ids is None:
        if attention_mask is None:
            return None, None
        real = (attention_mask != 0).astype(jnp.int32)
        return jnp.ones_like(real), real
    own = segment_ids if attention_mask is None else jnp.where(attention_mask != 0, segment_ids, 0)
    return own, own


# arXiv 1810.04805, section 3: L=12, H=768, A=12, 110M parameters. The sizes of the vocabularies are those of the
# released vocab.txt.
BERT_BASE = BertConfig(vocab_size=30_522, embed_dim=768, num_layers=12, num_heads=12, hidden_dim=3072)
# Minutes on two CPU cores.
BERT_TINY = BertConfig(
    vocab_size=4096,
    embed_dim=128,
    num_layers=4,
    num_heads=4,
    hidden_dim=512,
    num_positions=256,
    dropout=0.0,
)

PRESETS = {
    "bert-base-uncased": BERT_BASE,
    "bert-base-cased": replace(BERT_BASE, vocab_size=28_996),
    # 104 languages.
    "bert-base-multilingual-cased": replace(BERT_BASE, vocab_size=119_547),
    "bert-tiny": BERT_TINY,
}
