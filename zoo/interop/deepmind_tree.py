"""The three layouts of a google-deepmind/gemma parameter tree, an Orbax checkpoint, and reading it array by array.

    flat      {"transformer/layer_0/attn/q_einsum": {"w": ...}, ...}: the released checkpoints
    nested    {"layer_0": {"attn": {"q_einsum": {"w": ...}}, "mlp": {"linear": ...}}}: `gm.ckpts.save_params` writes it
    stacked   {"transformer/stacked_layers/attention_type_0/attn/q_einsum": {"w": [unit, ...]}}

Source: gm/ckpts/_checkpoint.py and _compat.py of gemma 3.3. Here every array has its name in the flat layout, less
"transformer/": ``layer_3/attn/q_einsum/w``.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp

from zoo.errors import UserError

TreeLayout = Literal["flat", "nested", "stacked"]

_MLP_LEAVES = ("mlp/gating_einsum", "mlp/linear")
_MLP_ARRAYS = ("mlp/gating_einsum/w", "mlp/linear/w")
_STACKED = re.compile(r"stacked_layers/attention_type_(\d+)/(.*)")
_LAYER = re.compile(r"layer_(\d+)/(.*)")


class DeepMindTree:
    """The arrays of a checkpoint under the names of the flat layout (``layer_3/attn/q_einsum/w``), read one by one."""

    def __init__(self, folder: Path):
        """Raises `UserError` if Orbax cannot read the folder's metadata or it is not such a tree."""
        self.folder = folder.absolute()
        self._paths: dict[str, tuple[tuple[str, ...], int | None]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._cached: tuple[tuple[str, ...], np.ndarray] | None = None
        self._checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
        try:
            metadata = self._checkpointer.metadata(self.folder).item_metadata
        except Exception as error:
            raise UserError(f"{folder} cannot be read as an Orbax checkpoint: {_first_line(error)}") from None
        if metadata is None:
            raise UserError(
                f"{folder} cannot be read as an Orbax checkpoint: it says nothing of its arrays (_METADATA)"
            )
        leaves = _flatten(metadata.tree)
        positions = [int(match[1]) for path in leaves if (match := _STACKED.search("/".join(path)))]
        for path, leaf in leaves.items():
            for name, index, shape in _flat_names(path, tuple(leaf.shape), max(positions, default=0) + 1):
                self._paths[name] = (path, index)
                self._shapes[name] = shape

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every array by its name in the flat layout."""
        return self._shapes

    def leaf(self, name: str) -> tuple[str, ...]:
        """Where in the checkpoint an array lies; arrays of one leaf are best read one after the other."""
        return self._paths[name][0]

    def read(self, name: str) -> np.ndarray:
        """One array of the flat layout in its stored dtype. The last one is kept: parameters share arrays."""
        path, index = self._paths[name]
        if self._cached is None or self._cached[0] != path:
            self._cached = (path, self._restore(path))
        array = self._cached[1]
        return array if index is None else array[index]

    def _restore(self, path: tuple[str, ...]) -> np.ndarray:
        item: Any = 0
        arguments: Any = ocp.RestoreArgs(restore_type=np.ndarray)
        for key in reversed(path):
            item, arguments = {key: item}, {key: arguments}
        request = ocp.args.PyTreeRestore(item=item, restore_args=arguments, partial_restore=True)
        try:
            return _flatten(self._checkpointer.restore(self.folder, args=request))[path]
        except Exception as error:
            raise UserError(
                f"{self.folder} is damaged: {'/'.join(path)} cannot be read: {_first_line(error)}"
            ) from None


def as_layout(arrays: Mapping[str, np.ndarray], layout: TreeLayout, unit: int) -> dict[str, Any]:
    """The tree of one layout from arrays under the names of the flat one."""
    if layout == "nested":
        tree: dict[str, Any] = {}
        for name, array in arrays.items():
            *parents, leaf = (name.removesuffix("/w") if name.endswith(_MLP_ARRAYS) else name).split("/")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = array
        return tree
    if layout == "stacked":
        groups: dict[str, dict[int, np.ndarray]] = {}
        rest = {}
        for name, array in arrays.items():
            if match := _LAYER.fullmatch(name):
                target = f"stacked_layers/attention_type_{int(match[1]) % unit}/{match[2]}"
                groups.setdefault(target, {})[int(match[1]) // unit] = array
            else:
                rest[name] = array
        arrays = rest | {name: np.stack([slices[i] for i in range(len(slices))]) for name, slices in groups.items()}
    flat: dict[str, Any] = {}
    for name, array in arrays.items():
        parent, leaf = name.rsplit("/", 1)
        flat.setdefault(f"transformer/{parent}", {})[leaf] = array
    return flat


def _flatten(tree: Any) -> dict[tuple[str, ...], Any]:
    """Leaves by their path of keys (a key of the flat layouts holds slashes)."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {tuple(str(getattr(key, "key", key)) for key in path): leaf for path, leaf in leaves}


def _flat_names(
    path: tuple[str, ...], shape: tuple[int, ...], unit: int
) -> list[tuple[str, int | None, tuple[int, ...]]]:
    """(name in the flat layout, index along the leading axis or None, shape) of every array that one leaf holds."""
    name = "/".join(path).removeprefix("params/").removeprefix("transformer/")
    if name.endswith(_MLP_LEAVES):
        name += "/w"
    stacked = _STACKED.fullmatch(name)
    if stacked is None:
        return [(name, None, shape)]
    return [(f"layer_{i * unit + int(stacked[1])}/{stacked[2]}", i, shape[1:]) for i in range(shape[0])]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
