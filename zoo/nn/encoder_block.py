"""The transformer blocks of encoders, pre-norm and post-norm: attention in both directions, a feed-forward, biases.

Encoders are small beside the decoders that they serve. On a mesh every device encodes its own rows with whole layers
(`run_layers` gathers them), so that nothing here is divided over a tensor group.
"""

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, Key

from zoo.kernels import dot_product_attention
from zoo.nn.activations import Activation, activated
from zoo.nn.bottleneck import through_bottlenecks
from zoo.nn.dropout import dropped, folded
from zoo.nn.execution import Execution
from zoo.nn.layer_norm import LayerNorm
from zoo.nn.parameters import fan_in_normal, parameter, project
from zoo.nn.prefix import prefix_of


class EncoderAttention(nnx.Module):
    """out(softmax(q . k / sqrt(H)) v) + b without a causal mask; q, k and v are linear maps with biases.

    Of the attention kernels that `Execution` can name, most are for causal attention: "reference" and "xla" are used
    here too, instead of any other one that `dot_product_attention` takes for the best.
    """

    def __init__(self, embed_dim: int, num_heads: int, *, key_bias: bool = True, execution: Execution, rngs: nnx.Rngs):
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim={embed_dim} is not a multiple of num_heads={num_heads}")
        head_dim, dtype = embed_dim // num_heads, execution.weight_dtype
        named = execution.attention_implementation
        self.implementation = named if named in ("reference", "xla") else None
        init, zeros = fan_in_normal(embed_dim), jax.nn.initializers.zeros
        shape, axes = (embed_dim, num_heads, head_dim), ("embed", None, None)
        self.query = parameter(rngs, shape, axes, init, dtype)
        self.key = parameter(rngs, shape, axes, init, dtype)
        self.value = parameter(rngs, shape, axes, init, dtype)
        self.output = parameter(rngs, (num_heads, head_dim, embed_dim), (None, None, "embed"), init, dtype)
        self.query_bias = parameter(rngs, shape[1:], (None, None), zeros, dtype)
        if key_bias:
            self.key_bias = parameter(rngs, shape[1:], (None, None), zeros, dtype)
        self.has_key_bias = key_bias
        self.value_bias = parameter(rngs, shape[1:], (None, None), zeros, dtype)
        self.output_bias = parameter(rngs, (embed_dim,), ("norm",), zeros, dtype)

    def __call__(
        self,
        x: Float[Array, "b t d"],
        segment_ids: Int[Array, "b t"] | None = None,
        *,
        keys: Float[Array, "b s d"] | None = None,
        key_segment_ids: Int[Array, "b s"] | None = None,
    ) -> Float[Array, "b t d"]:
        """Attends among the tokens of `x`, or from them to `keys`; a token sees the tokens of its own segment."""
        if keys is None:
            keys, key_segment_ids = x, segment_ids
        with jax.named_scope("qkv"):
            query = project("btd,dnh->btnh", x, self.query[...]) + self.query_bias[...].astype(x.dtype)
            key = project("bsd,dnh->bsnh", keys, self.key[...])
            if self.has_key_bias:
                key = key + self.key_bias[...].astype(x.dtype)
            value = project("bsd,dnh->bsnh", keys, self.value[...]) + self.value_bias[...].astype(x.dtype)
        with jax.named_scope("encoder_attention"):
            out = dot_product_attention(
                checkpoint_name(query, "query"),
                checkpoint_name(key, "key"),
                checkpoint_name(value, "value"),
                scale=query.shape[-1] ** -0.5,
                causal=False,
                query_segment_ids=segment_ids,
                key_segment_ids=key_segment_ids,
                prefix=prefix_of(self),
                implementation=self.implementation,
            )
        with jax.named_scope("output"):
            out = project("btnh,nhd->btd", out, self.output[...]) + self.output_bias[...].astype(x.dtype)
            return through_bottlenecks(self, checkpoint_name(out, "sublayer_output"))


class FeedForward(nnx.Module):
    """activation(x . up + b) . down + b."""

    def __init__(
        self, embed_dim: int, hidden_dim: int, *, activation: Activation, execution: Execution, rngs: nnx.Rngs
    ):
        dtype, zeros = execution.weight_dtype, jax.nn.initializers.zeros
        self.activation = activation
        self.up = parameter(rngs, (embed_dim, hidden_dim), ("embed", None), fan_in_normal(embed_dim), dtype)
        self.up_bias = parameter(rngs, (hidden_dim,), ("norm",), zeros, dtype)
        self.down = parameter(rngs, (hidden_dim, embed_dim), (None, "embed"), fan_in_normal(hidden_dim), dtype)
        self.down_bias = parameter(rngs, (embed_dim,), ("norm",), zeros, dtype)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        up = checkpoint_name(project("btd,df->btf", x, self.up[...]) + self.up_bias[...].astype(x.dtype), "up")
        out = project("btf,fd->btd", activated(up, self.activation), self.down[...])
        out = out + self.down_bias[...].astype(x.dtype)
        return through_bottlenecks(self, checkpoint_name(out, "sublayer_output"))


class EncoderBlock(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        hidden_dim: int,
        *,
        activation: Activation,
        norm_eps: float,
        key_bias: bool = True,
        execution: Execution,
        rngs: nnx.Rngs,
    ):
        self.attention_norm = LayerNorm(embed_dim, eps=norm_eps, execution=execution, rngs=rngs)
        self.attention = EncoderAttention(embed_dim, num_heads, key_bias=key_bias, execution=execution, rngs=rngs)
        self.mlp_norm = LayerNorm(embed_dim, eps=norm_eps, execution=execution, rngs=rngs)
        self.mlp = FeedForward(embed_dim, hidden_dim, activation=activation, execution=execution, rngs=rngs)

    def __call__(self, x: Float[Array, "b t d"], segment_ids: Int[Array, "b t"] | None = None) -> Float[Array, "b t d"]:
        x = x + self.attention(self.attention_norm(x), segment_ids)
        with jax.named_scope("mlp"):
            return x + self.mlp(self.mlp_norm(x))


class PostNormBlock(nnx.Module):
    """norm(x + attention(x)), then norm(x + mlp(x)) (Vaswani et al., arXiv 1706.03762; BERT's block), GELU within."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        hidden_dim: int,
        *,
        norm_eps: float,
        dropout: float = 0.0,
        execution: Execution,
        rngs: nnx.Rngs,
    ):
        """dropout: of what either sub-layer adds, where the call is given keys."""
        self.dropout = dropout
        self.attention = EncoderAttention(embed_dim, num_heads, execution=execution, rngs=rngs)
        self.attention_norm = LayerNorm(embed_dim, eps=norm_eps, execution=execution, rngs=rngs)
        self.mlp = FeedForward(embed_dim, hidden_dim, activation="gelu", execution=execution, rngs=rngs)
        self.mlp_norm = LayerNorm(embed_dim, eps=norm_eps, execution=execution, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b t d"],
        segment_ids: Int[Array, "b t"] | None = None,
        key_segment_ids: Int[Array, "b t"] | None = None,
        dropout_keys: Key[Array, "b"] | None = None,
    ) -> Float[Array, "b t d"]:
        """A token sees the tokens whose `key_segment_ids` are its own `segment_ids`. Keys of dropout: in training."""
        first, second = (None, None) if dropout_keys is None else (folded(dropout_keys, n) for n in (0, 1))
        attended = self.attention(x, segment_ids, keys=x, key_segment_ids=key_segment_ids)
        x = self.attention_norm(x + dropped(attended, self.dropout, first))
        with jax.named_scope("mlp"):
            return self.mlp_norm(x + dropped(self.mlp(x), self.dropout, second))


def encoder_block_parameters(embed_dim: int, hidden_dim: int, *, key_bias: bool = True) -> int:
    """Parameters of one `EncoderBlock` or `PostNormBlock`: two norms, four projections, two feed-forward matrices, and
    their biases."""
    attention = 4 * embed_dim * embed_dim + (3 + key_bias) * embed_dim
    return 4 * embed_dim + attention + 2 * embed_dim * hidden_dim + hidden_dim + embed_dim
