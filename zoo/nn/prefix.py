"""Prefix tuning (Li and Liang, arXiv 2101.00190): learned keys and values of a layer that all of its queries see.

They are parameters beside those of the attention, prefix_key and prefix_value [P, K, H], and prefix_gate
(`AdapterBuffer`), the weight of each in a mixture. See `zoo.kernels.attention.prefix`.
"""

from flax import nnx

from zoo.kernels.attention.prefix import Prefix

KEY, VALUE, GATE = "prefix_key", "prefix_value", "prefix_gate"
"""Names of what an attention with a prefix has besides."""


def prefix_of(attention: nnx.Module) -> Prefix | None:
    """The prefix that was put into an attention; None where there is none."""
    if not hasattr(attention, KEY):
        return None
    return Prefix(*(getattr(attention, name)[...] for name in (KEY, VALUE, GATE)))
