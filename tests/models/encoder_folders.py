"""Folders of encoders that transformers wrote, each with what it computes."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from tests.conftest import find_shared_dir
from zoo.interop import save_huggingface

GOLDENS = Path(__file__).resolve().parent.parent / "goldens" / "encoders"


def encoder_folder(name: str) -> tuple[Path, dict[str, np.ndarray]]:
    """(model folder, its expected.npz): a golden of the repository, or of the optional test data."""
    folder = GOLDENS / name
    if not folder.is_dir():
        shared = find_shared_dir()
        if shared is None:
            pytest.skip(f"optional test data: no folder `shared` beside the repository with fixtures/{name}")
        folder = shared / "fixtures" / name
    with np.load(folder / "expected.npz", allow_pickle=False) as expected:
        return folder, dict(expected)


def run(model: nnx.Module, method: str, *arguments: Any) -> Any:
    """`model.method(*arguments)`, compiled."""
    graphdef, state = nnx.split(model)
    return jax.jit(lambda state, *given: getattr(nnx.merge(graphdef, state), method)(*given))(state, *arguments)


def assert_export_repeats(model: Any, folder: Path, copy: Path) -> None:
    """An export of what was loaded has the same tensors bit for bit, and a config.json that says the same."""
    save_huggingface(model, copy)
    written, original = load_file(copy / "model.safetensors"), load_file(folder / "model.safetensors")
    assert written.keys() == original.keys()
    for name, tensor in original.items():
        np.testing.assert_array_equal(written[name], tensor, err_msg=name, strict=True)
    ours, theirs = (json.loads((path / "config.json").read_text()) for path in (copy, folder))
    assert {key: theirs[key] for key in ours if key in theirs} == ours
