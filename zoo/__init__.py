"""A JAX/Flax model zoo: train, fine-tune, evaluate, sample and export Gemma 2.

``zoo.load(path)`` gives the model of any checkpoint, ``zoo.presets()`` the architectures by name, ``zoo.augment`` puts
a twin head on a trained network of images. They import JAX when they are first asked for, so that ``import zoo`` (and
``--help``) costs nothing.
"""

import importlib
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo.inference.augmented import augment as augment
    from zoo.interop import Loaded as Loaded
    from zoo.interop import load as load
    from zoo.models import presets as presets

_LAZY = {
    "load": "zoo.interop",
    "Loaded": "zoo.interop",
    "presets": "zoo.models",
    "augment": "zoo.inference.augmented",
}

__all__ = ["Loaded", "__version__", "augment", "load", "presets"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name == "__version__":
        try:
            return metadata.version("jax-flax-zoo")
        except metadata.PackageNotFoundError:  # a checkout that is not installed
            return "0"
    raise AttributeError(f"module 'zoo' has no attribute {name!r}")
