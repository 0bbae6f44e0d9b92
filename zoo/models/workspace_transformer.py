"""Transformers whose positions speak pairwise or through a shared workspace (arXiv 2103.01197), as classifiers.

    x = [cls, question . W_q + b, elements . W_e + b] [+ sines and cosines]
    each layer:  x = x + communication(norm(x));  x = x + mlp(norm(x))
    logits = x_cls . W + b

Elements are patches of an image or descriptions of objects. Six variants, of which `variant` makes the config:

    TR       attention, one layer applied again and again
    TR+HC    attention, layers with parameters of their own (higher capacity)
    STR      TR, each query keeping its k largest weights, which are not renormalised (public code)
    ISAB     Set Transformer (arXiv 1810.00825, equations 5 to 9): elements -> inducing points -> elements, without a
             recurrence; layers with parameters of their own
    TR+SSW   the workspace, soft competition; one layer applied again and again, its memory passed on between them
    TR+HSW   the workspace, hard competition of k writers per slot; otherwise like TR+SSW

Where the public code is followed and where not: no norm after the last layer, as there; gelu instead of relu in `mlp`;
no dropout; attention has an output projection. On a mesh every device has its own rows and gathers a layer's
parameters, like the encoders of `zoo.nn.encoder_block`; heads of a workspace are divided over a tensor group.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32

from zoo.errors import UserError
from zoo.nn import Execution, build_layers, run_layers
from zoo.nn.competition import competition, per_head_scores
from zoo.nn.encoder_block import EncoderAttention, FeedForward
from zoo.nn.layer_norm import LayerNorm
from zoo.nn.parameters import fan_in_normal, parameter, precision_of, project
from zoo.nn.workspace import PUBLIC_CODE, Workspace, WorkspaceConfig

VARIANTS = ("TR", "TR+HC", "STR", "ISAB", "TR+SSW", "TR+HSW")
NORM_EPS = 1e-5
"""Added to the variance in every norm; torch's default, which the public code has."""


@dataclass(frozen=True, kw_only=True)
class WorkspaceTransformerConfig:
    """Architecture of a classifier of sets or sequences of elements."""

    input_dim: int
    """Numbers of an element."""
    num_classes: int
    """Answers."""
    question_dim: int = 0
    """Numbers of a question, which becomes one token; 0 = there is none."""
    positions: bool = True
    """Whether tokens are told where they stand; without, the order of elements is of no account."""
    embed_dim: int = 256
    """Model width D."""
    num_layers: int = 4
    """Layers applied."""
    num_heads: int = 4
    """Heads of attention; each has width D / num_heads."""
    hidden_dim: int = 512
    """Feed-forward width."""
    communication: Literal["attention", "induced", "workspace"] = "workspace"
    """How tokens learn of each other."""
    shared_layers: bool = True
    """Whether all layers are one, applied num_layers times."""
    attention_top_k: int | None = None
    """Weights that a query of "attention" keeps; None = all."""
    num_inducing: int = 8
    """Inducing points of "induced"."""
    norms_first: bool = False
    """Of "induced": norms before attention and mlp, as elsewhere; False: after the sums, as in the Set Transformer."""
    workspace: WorkspaceConfig = PUBLIC_CODE
    """The workspace of "workspace"."""

    def __post_init__(self):
        for name in ("input_dim", "num_classes", "embed_dim", "num_layers", "num_heads", "hidden_dim", "num_inducing"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name} must be at least 1, got {getattr(self, name)}")
        if self.question_dim < 0:
            raise UserError(f"model.question_dim must not be negative, got {self.question_dim}")
        if self.embed_dim % self.num_heads:
            raise UserError(f"model.embed_dim={self.embed_dim} is not a multiple of num_heads={self.num_heads}")
        if self.embed_dim % 2:
            raise UserError(f"model.embed_dim must be even for sines and cosines, got {self.embed_dim}")
        if self.communication not in ("attention", "induced", "workspace"):
            raise UserError(
                f"model.communication must be 'attention', 'induced' or 'workspace', got {self.communication!r}"
            )
        if self.attention_top_k is not None and (self.attention_top_k < 1 or self.communication != "attention"):
            raise UserError(f"model.attention_top_k={self.attention_top_k} must be at least 1, of 'attention' alone")
        if self.norms_first and self.communication != "induced":
            raise UserError("model.norms_first is of 'induced' alone: the others have their norms first")
        if self.communication == "workspace":
            self.workspace.width(self.embed_dim)

    def num_parameters(self) -> int:
        """Parameters of the whole model; those of shared layers once."""
        width = self.embed_dim
        question = (self.question_dim + 1) * width if self.question_dim else 0
        ends = (self.input_dim + 1) * width + width + question + (width + 1) * self.num_classes
        mlp = 2 * width * self.hidden_dim + self.hidden_dim + width
        attention = 4 * width * (width + 1)
        if self.communication == "induced":
            layer = self.num_inducing * width + 2 * (attention + mlp + 4 * width)
        else:
            speaks = attention if self.communication == "attention" else self.workspace.num_parameters(width)
            layer = speaks + mlp + 4 * width
        return ends + layer * (1 if self.shared_layers else self.num_layers)


def variant(config: WorkspaceTransformerConfig, name: str, *, top_k: int) -> WorkspaceTransformerConfig:
    """The variant of that name (`VARIANTS`) of the same sizes; top_k: the k of STR and TR+HSW.

    As many inducing points as slots. Raises `UserError` for an unknown name.
    """
    if name not in VARIANTS:
        raise UserError(f"unknown variant {name!r} of a transformer: one of {', '.join(VARIANTS)}")
    soft = replace(config.workspace, top_k=None, renormalised=True, losers_gradient=False)
    hard = replace(config.workspace, top_k=top_k)
    shared = name not in ("TR+HC", "ISAB")
    if name == "ISAB":
        changes: dict[str, Any] = dict(communication="induced", num_inducing=config.workspace.num_slots)
    elif name in ("TR+SSW", "TR+HSW"):
        changes = dict(communication="workspace", workspace=hard if name == "TR+HSW" else soft)
    else:
        changes = dict(communication="attention")
    return replace(config, shared_layers=shared, attention_top_k=top_k if name == "STR" else None, **changes)


class TopKAttention(nnx.Module):
    """Attention in which each query keeps its k largest weights as they are; losers stay in the denominator."""

    def __init__(self, embed_dim: int, num_heads: int, top_k: int, *, execution: Execution, rngs: nnx.Rngs):
        self.top_k = top_k
        self.maps = EncoderAttention(embed_dim, num_heads, execution=execution, rngs=rngs)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        maps = self.maps
        query = project("btd,dnh->btnh", x, maps.query[...]) + maps.query_bias[...].astype(x.dtype)
        key = project("btd,dnh->btnh", x, maps.key[...]) + maps.key_bias[...].astype(x.dtype)
        value = project("btd,dnh->btnh", x, maps.value[...]) + maps.value_bias[...].astype(x.dtype)
        scores = per_head_scores(query, key, scaled=True)
        weights = competition(scores, None, self.top_k, renormalised=False, losers_gradient=True).astype(x.dtype)
        out = jnp.einsum("bnts,bsnh->btnh", weights, value, precision=precision_of(x.dtype))
        return project("btnh,nhd->btd", out, maps.output[...]) + maps.output_bias[...].astype(x.dtype)


class WorkspaceTransformerLayer(nnx.Module):
    """x + communication(norm(x)), then x + mlp(norm(x)); gives the memory on, and who wrote to it."""

    def __init__(self, config: WorkspaceTransformerConfig, *, execution: Execution, rngs: nnx.Rngs):
        width, options = config.embed_dim, _options(execution, rngs)
        self.communication_norm = LayerNorm(width, eps=NORM_EPS, **options)
        self.has_workspace = config.communication == "workspace"
        if self.has_workspace:
            self.workspace = Workspace(width, config.workspace, **options)
        elif config.attention_top_k is not None:
            self.attention: nnx.Module = TopKAttention(width, config.num_heads, config.attention_top_k, **options)
        else:
            self.attention = EncoderAttention(width, config.num_heads, **options)
        self.mlp_norm = LayerNorm(width, eps=NORM_EPS, **options)
        self.mlp = FeedForward(width, config.hidden_dim, activation="gelu", **options)

    def __call__(self, x: Float[Array, "b n d"], memory: Float[Array, "b m w"] | None) -> tuple[Array, Any, Any]:
        normed, weights = self.communication_norm(x), None
        if self.has_workspace:
            assert memory is not None
            told, memory, weights = self.workspace(normed, memory)
        else:
            told = self.attention(normed)
        x = x + told
        with jax.named_scope("mlp"):
            return x + self.mlp(self.mlp_norm(x)), memory, weights


class AttentionBlock(nnx.Module):
    """norm(h + mlp(h)), h = norm(x + attention(x -> y)): the MAB of the Set Transformer, equations 5 and 6.

    With `norms_first`: h + mlp(norm(h)), h = x + attention(norm(x) -> norm(y)), with one norm for x and y.
    """

    def __init__(self, config: WorkspaceTransformerConfig, *, execution: Execution, rngs: nnx.Rngs):
        width, options = config.embed_dim, _options(execution, rngs)
        self.attention = EncoderAttention(width, config.num_heads, **options)
        self.attention_norm = LayerNorm(width, eps=NORM_EPS, **options)
        self.mlp = FeedForward(width, config.hidden_dim, activation="gelu", **options)
        self.mlp_norm = LayerNorm(width, eps=NORM_EPS, **options)
        self.norms_first = config.norms_first

    def __call__(self, x: Float[Array, "b t d"], y: Float[Array, "b s d"]) -> Float[Array, "b t d"]:
        if self.norms_first:
            h = x + self.attention(self.attention_norm(x), keys=self.attention_norm(y))
            return h + self.mlp(self.mlp_norm(h))
        h = self.attention_norm(x + self.attention(x, keys=y))
        return self.mlp_norm(h + self.mlp(h))


class InducedLayer(nnx.Module):
    """mab(x, mab(inducing points, x)): equation 9, the ISAB."""

    def __init__(self, config: WorkspaceTransformerConfig, *, execution: Execution, rngs: nnx.Rngs):
        shape, init = (config.num_inducing, config.embed_dim), fan_in_normal(config.embed_dim)
        self.inducing = parameter(rngs, shape, (None, "embed"), init, execution.weight_dtype)
        self.into, self.out = (AttentionBlock(config, execution=execution, rngs=rngs) for _ in range(2))

    def __call__(self, x: Float[Array, "b n d"], memory: None) -> tuple[Array, None, None]:
        points = self.inducing[...].astype(x.dtype)
        points = jnp.broadcast_to(points, (len(x), *points.shape))
        return self.out(x, self.into(points, x)), None, None


class WorkspaceTransformer(nnx.Module):
    """Elements, and a question where there is one, to logits of the answers."""

    def __init__(self, config: WorkspaceTransformerConfig, *, execution: Execution | None = None, rngs: nnx.Rngs):
        execution = execution or Execution()
        self.config, self.execution = config, execution
        width, dtype, zeros = config.embed_dim, execution.weight_dtype, jax.nn.initializers.zeros

        def linear(fan_in: int, fan_out: int, axes):
            kernel = parameter(rngs, (fan_in, fan_out), axes, fan_in_normal(fan_in), dtype)
            return kernel, parameter(rngs, (fan_out,), ("norm",), zeros, dtype)

        self.elements, self.elements_bias = linear(config.input_dim, width, (None, "embed"))
        if config.question_dim:
            self.question, self.question_bias = linear(config.question_dim, width, (None, "embed"))
        self.cls = parameter(rngs, (width,), ("norm",), fan_in_normal(width), dtype)
        kind = InducedLayer if config.communication == "induced" else WorkspaceTransformerLayer
        self.layers = build_layers(
            lambda _, rngs: kind(config, execution=execution, rngs=rngs),
            1 if config.shared_layers else config.num_layers,
            1,
            execution=execution,
            rngs=rngs,
        )
        self.head, self.head_bias = linear(width, config.num_classes, ("embed", None))

    def __call__(
        self, elements: Float[Array, "b e i"], question: Float[Array, "b q"] | None = None
    ) -> Float32[Array, "b c"]:
        """Logits. elements: input_dim numbers each; question: given if the config has a question_dim, ValueError
        otherwise."""
        hidden = self.hidden_states(elements, question)[:, 0]
        with jax.named_scope("head"):
            logits = project("bd,dc->bc", hidden, self.head[...]) + self.head_bias[...].astype(hidden.dtype)
            return logits.astype(jnp.float32)

    def hidden_states(
        self, elements: Float[Array, "b e i"], question: Float[Array, "b q"] | None = None
    ) -> Float[Array, "b n d"]:
        """Tokens after the last layer: cls, question, elements."""
        return self._run(elements, question)[0]

    def who_writes(
        self, elements: Float[Array, "b e i"], question: Float[Array, "b q"] | None = None
    ) -> Float32[Array, "l b h m n"]:
        """Each layer's weights of the tokens (cls, question, elements) in the slots. ValueError without a workspace."""
        if self.config.communication != "workspace":
            raise ValueError(f"nobody writes: communication is {self.config.communication!r}")
        return self._run(elements, question)[1]

    def embed(self, elements, question) -> Float[Array, "b n d"]:
        """The tokens before the first layer, in the compute dtype."""
        if (question is None) != (self.config.question_dim == 0):
            raise ValueError(
                f"model.question_dim is {self.config.question_dim}: question must be given iff it is not 0"
            )
        dtype = self.execution.dtype
        x = project("bei,id->bed", elements.astype(dtype), self.elements[...]) + self.elements_bias[...].astype(dtype)
        before = [jnp.broadcast_to(self.cls[...].astype(dtype), (len(x), 1, x.shape[-1]))]
        if question is not None:
            asked = project("bq,qd->bd", question.astype(dtype), self.question[...])
            before.append((asked + self.question_bias[...].astype(dtype))[:, None])
        x = jnp.concatenate([*before, x], axis=1)
        return x + sines_and_cosines(x.shape[1], x.shape[2]).astype(dtype) if self.config.positions else x

    def _run(self, elements, question):
        """(tokens after the last layer, who wrote in each layer or None)."""
        with jax.named_scope("embed"):
            x = self.embed(elements, question)
        layer, found = self.layers[0], []
        memory = layer.workspace.initial_memory(len(x)) if self.config.communication == "workspace" else None
        held: Any = (x, memory)

        def apply(layer, held, cache, _):
            x, memory, weights = layer(*held)
            return (x, memory), cache, weights

        for _ in range(self.config.num_layers if self.config.shared_layers else 1):
            held, _, weights = run_layers(self.layers, held, apply, None, self.execution)
            found.append(weights)
        return held[0], None if found[0] is None else jnp.concatenate(found)


def _options(execution: Execution, rngs: nnx.Rngs) -> dict[str, Any]:
    return dict(execution=execution, rngs=rngs)


def sines_and_cosines(length: int, width: int) -> Float32[np.ndarray, "n d"]:
    """sin(t / 10000^(2i / d)) in column 2i and the cosine in column 2i + 1 (Vaswani et al., section 3.5)."""
    angles = np.arange(length)[:, None] / 10_000 ** (np.arange(0, width, 2) / width)
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(length, width).astype(np.float32)


# Public code: 75 x 75 pixels in colour as 25 patches, questions of 18 bits, ten answers; five write to a slot.
SORT_OF_CLEVR = WorkspaceTransformerConfig(input_dim=675, question_dim=18, num_classes=10)
# Public code: 64 x 64 pixels as 256 patches; twenty write to a slot, whose MLP has one layer.
TRIANGLES = WorkspaceTransformerConfig(
    input_dim=16, num_classes=2, workspace=replace(PUBLIC_CODE, top_k=20, mlp_layers=1)
)

PRESETS = {"workspace-sort-of-clevr": SORT_OF_CLEVR, "workspace-triangles": TRIANGLES}
