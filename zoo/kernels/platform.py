"""For which kind of device the program that is being traced will be compiled."""

import jax

from zoo.parallel.sharding import activation_context


def target_platform() -> str:
    """ "cpu", "gpu" or "tpu": of the abstract device while compiling ahead of time or inside `jax.shard_map`, else of
    the mesh of the active `activation_sharding` (its devices may be described only), else of the default back end."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    context = activation_context.get()
    if device is None and context is not None:
        device = context[0].devices.flat[0]
    platform = device.platform if device is not None else jax.default_backend()
    return "gpu" if platform in ("cuda", "rocm") else platform
