"""Every implementation computes the reference's function, forward and backward; the table stands in docs/benchmarks."""

import dataclasses

import pytest

from experiments.attention_kernels import parity
from tests.marks import all_but


def label(case: parity.Case) -> str:
    """A readable test id."""
    rows = "packed" if case.packed else "plain"
    return "-".join((case.layer, case.implementation, rows, "capped" if case.capped else "uncapped", case.dtype))


ORDINARY = ((False, True, "float64"), (True, False, "float32"), (True, True, "bfloat16"))
"""Of every layer and implementation: (packed, capped, dtype). The rest of the matrix is slow."""


def is_ordinary(case: parity.Case) -> bool:
    """The kernels of local and global attention have other tests of float32, packed and without a cap."""
    elsewhere = case.dtype == "float32" and case.layer != "ring cache" and case.implementation != "xla"
    return (case.packed, case.capped, case.dtype) in ORDINARY and not elsewhere


@pytest.mark.parametrize(
    "case",
    all_but([case for case in parity.cases() if is_ordinary(case)], parity.cases()),
    ids=label,
)
def test_the_parity_matrix(case: parity.Case) -> None:
    errors, limits = parity.measure(case), parity.limits(case)
    for name, error in dataclasses.asdict(errors).items():
        if error is not None:
            assert error <= getattr(limits, name), f"{name}: {error:.2e}"
