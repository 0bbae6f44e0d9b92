"""Parameters by name: paths such as `layers/0/attention/query`, patterns over them, nested dictionaries of them."""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from fnmatch import translate
from typing import Any

import jax
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

from zoo.errors import UserError


def _key_name(key: Any) -> str:
    match key:
        case DictKey(key=name) | FlattenedIndexKey(key=name):
            return str(name)
        case GetAttrKey(name=name):
            return name
        case SequenceKey(idx=index):
            return str(index)
    return str(key)


def path_name(key_path: Sequence[Any]) -> str:
    """`layers/0/attention/query` for a key path of jax.tree_util; the `.value` of a Flax variable is left out."""
    keys = list(key_path)
    if keys and isinstance(keys[-1], GetAttrKey) and keys[-1].name == "value":
        keys.pop()
    return "/".join(_key_name(key) for key in keys)


def flatten_with_names(tree: Any) -> dict[str, Any]:
    """Every leaf of a tree (nnx.State or nested dictionary) under its path, in the order of `jax.tree.leaves`."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    named = {path_name(path): leaf for path, leaf in leaves}
    if len(named) != len(leaves):
        raise ValueError("two leaves of the tree have the same path")
    return named


def nested_dict(named: Mapping[str, Any]) -> dict[str, Any]:
    """{"a/b": x} -> {"a": {"b": x}}; all keys are strings."""
    tree: dict[str, Any] = {}
    for name, leaf in named.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern covers the parameter called `name` (`layers/0/attention/query`).

    A pattern is a glob over the whole path, in which `*` also crosses `/`, and `.` may be written for `/`
    (`embedder.*`, `layers/[01]/*`, `*norm/scale`); or the path of a module, which covers everything inside it
    (`layers/0`); or `re:` and a regular expression that the whole path must match.
    """
    if pattern.startswith("re:"):
        try:
            return re.fullmatch(pattern[3:], name) is not None
        except re.error as error:
            raise UserError(f"pattern {pattern!r} is not a regular expression: {error}") from error
    pattern = pattern.replace(".", "/").strip("/")
    return name.startswith(pattern + "/") or re.fullmatch(translate(pattern), name) is not None


def matching_names(names: Sequence[str], patterns: Sequence[str], *, option: str = "--freeze") -> frozenset[str]:
    """The parameter names that any of the patterns covers. Raises UserError for a pattern that covers none."""
    found: set[str] = set()
    for pattern in patterns:
        covered = {name for name in names if matches(pattern, name)}
        if not covered:
            close = get_close_matches(pattern.replace(".", "/"), names, n=3, cutoff=0.0) or list(names[:3])
            raise UserError(f"{option} {pattern!r} matches no parameter; parameters are called {', '.join(close)}, ...")
        found |= covered
    return frozenset(found)
