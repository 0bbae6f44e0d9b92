"""The small Gemma 2, unrolled and scanned."""

import pytest
from flax import nnx

from tests.peft.small import CONFIG
from zoo.models import build
from zoo.nn import Execution


@pytest.fixture(scope="session")
def base():
    return build(CONFIG, rngs=nnx.Rngs(0))


@pytest.fixture(scope="session")
def scanned():
    return build(CONFIG, execution=Execution(scan_layers=True), rngs=nnx.Rngs(0))
