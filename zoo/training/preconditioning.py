"""PSGD Kron: momentum, multiplied by a preconditioner that is learnt along with the parameters.

    update = P m,   P = Q^T Q,   Q = Q_1 x Q_2 x ... (Kronecker product, one triangular factor for each dimension)

where m is the mean of the gradients and Q is fitted, by steps on the Lie group of such factors, so that the gradients'
second moment becomes the identity: as in Shampoo a whitening in all dimensions of a matrix, but without inverse roots
(Li, arXiv 2402.11858; Pooladzandi and Li, arXiv 2402.04553). A dimension whose factor would be larger than the whole
parameter, such as a vocabulary, gets a diagonal. Gemini 1.5 Flash was trained with "higher-order preconditioned
methods" (arXiv 2403.05530); which ones is not published.

The implementation is that of rollfast (MIT), an optional dependency: optax has no Kronecker-factored optimizer.
"""

import contextlib
import importlib.util
import io
from collections.abc import Sequence
from typing import Any

import optax
from flax import nnx

from zoo.errors import UserError
from zoo.parallel.sharding import logical_axes
from zoo.training.parameters import nested_dict

BATCH_AXES = ("layers", "experts")
"""Logical axes along which a parameter is many matrices, each with factors of its own."""


def scale_by_kron(
    *, b1: float, mu_dtype: str, learning_rate: float, lowest_probability: float, batched: Any
) -> optax.GradientTransformation:
    """Gradients to P m, whose elements have about unit mean square: learning rates are as large as AdamW's.

    Args:
        b1: decay of the mean m of the gradients.
        mu_dtype: its storage.
        learning_rate: step size of the factors.
        lowest_probability: the factors are updated in every one of the first 500 steps, then with probability
            exp(-(step - 500) / 1000) down to this.
        batched: a tree like the parameters; True where the first axis is a batch of matrices.

    Raises:
        UserError: rollfast is not installed.
    """
    if importlib.util.find_spec("rollfast") is None:
        raise UserError("optimizer.kind=kron needs rollfast, which is not installed: pip install rollfast")
    from rollfast.optim import psgd

    with contextlib.redirect_stdout(io.StringIO()):
        kron = psgd.scale_by_kron(
            b1=b1,
            mu_dtype=mu_dtype,
            preconditioner_lr=learning_rate,
            preconditioner_update_probability=psgd.precond_update_prob_schedule(min_prob=lowest_probability),
            precond_update_precision="float32",
            scanned_layers=batched,
        )

    def init(params: Any) -> optax.OptState:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints sizes, at every tracing
            return kron.init(params)

    def update(updates: Any, state: Any, params: Any = None, **_: Any) -> tuple[Any, optax.OptState]:
        return kron.update(updates, state, params)

    return optax.GradientTransformationExtraArgs(init, update)


def batched_parameters(params: Any, names: Sequence[str]) -> dict[str, Any]:
    """For these parameters, as a nested dictionary, whether the first axis is a batch of matrices (scanned layers,
    experts). Raises `UserError` for one that has both."""
    found = dict.fromkeys(names, False)
    for path, variable in nnx.to_flat_state(params) if isinstance(params, nnx.State) else ():
        name = "/".join(map(str, path))
        if name not in found:
            continue
        leading = [axis for axis in logical_axes(variable)[:2] if axis in BATCH_AXES]
        if len(leading) > 1:
            raise UserError(
                f"optimizer.kind=kron: {name} is stacked over layers and over experts, which is not supported; "
                "set execution.scan_layers to false"
            )
        found[name] = bool(leading)
    return nested_dict(found)
