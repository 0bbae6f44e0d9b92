import platform
import subprocess
import sys

import pytest

COUNT_FAULTS = """
import resource, sys
import jax, jax.numpy as jnp
from zoo.parallel import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
step = jax.jit(lambda x: (jnp.outer(x, x) @ jnp.outer(x, x)).sum())
x = jnp.ones(1500)
for _ in range(3):
    step(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_kept_memory_is_not_mapped_anew_by_every_step():
    def faults(mode):
        done = subprocess.run(
            [sys.executable, "-c", COUNT_FAULTS, mode], capture_output=True, text=True, check=True, timeout=120
        )
        return int(done.stdout)

    assert faults("keep") < 0.2 * faults("default")
