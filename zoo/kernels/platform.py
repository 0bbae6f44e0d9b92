"""For which kind of device the program that is being traced will be compiled."""

import jax


def target_platform() -> str:
    """ "cpu", "gpu" or "tpu": of the abstract device while compiling ahead of time, else of the default back end."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    platform = device.platform if device is not None else jax.default_backend()
    return "gpu" if platform in ("cuda", "rocm") else platform
