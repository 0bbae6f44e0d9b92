"""What inference asks of a model, and a model taken apart for compiled programs."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
from flax import nnx
from jaxtyping import Array, Float, Int


class LanguageModel(Protocol):
    """A module that holds its weights, such as `zoo.models.Gemma2`."""

    config: Any
    """With vocab_size, max_position_embeddings and pad_token_id."""

    def hidden_states(
        self,
        tokens: Int[Array, "b t"],
        *,
        positions: Int[Array, "b t"] | None = None,
        segment_ids: Int[Array, "b t"] | None = None,
        media: Any = None,
        cache: Any = None,
    ) -> Any:
        """[B, T, D] after the final norm; with a cache also the cache that holds the tokens."""
        ...

    def logits(self, hidden: Float[Array, "b t d"]) -> Float[Array, "b t v"]:
        """float32 logits of hidden states."""
        ...

    def init_cache(self, batch_size: int, max_length: int, dtype: Any = None) -> Any:
        """An empty cache; dtype of keys and values, floating or int8, default the compute dtype."""
        ...


class Structure(NamedTuple):
    """All of a model but its arrays: the key under which compiled programs are kept."""

    graphdef: Any
    treedef: Any

    def restore(self, arrays: Sequence[Array]) -> LanguageModel:
        """The model with these arrays."""
        return nnx.merge(self.graphdef, jax.tree.unflatten(self.treedef, arrays))


def take_apart(model: LanguageModel | nnx.Module) -> tuple[Structure, list[Array]]:
    """(structure, arrays). The arrays are a flat list: a program that runs every few milliseconds cannot afford to have
    a tree of modules flattened at every call."""
    graphdef, state = nnx.split(model)
    arrays, treedef = jax.tree.flatten(state)
    return Structure(graphdef, treedef), arrays
