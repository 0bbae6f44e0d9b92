"""Loading and exporting hold the model and about one tensor, whatever the size of the files."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from zoo.interop.architectures import config_to_huggingface
from zoo.interop.gemma2_names import HUGGINGFACE, axis_sizes, parameter_names, place
from zoo.interop.safetensors_writer import TensorToWrite, write_folder
from zoo.models import Gemma2Config

CONFIG = Gemma2Config(vocab_size=32_000, embed_dim=768, num_layers=10, num_heads=8, num_kv_heads=4, head_dim=96,
                      hidden_dim=3072, query_pre_attn_scalar=96)  # fmt: skip

# Peak resident memory, in bytes, above what the libraries take; the first jax array starts the back end.
MEASURE = """
import sys, jax, jax.numpy as jnp
from zoo.interop import load_huggingface, save_huggingface
from zoo.nn import Execution

def peak():
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

jnp.zeros(8).block_until_ready()
before = peak()
model = load_huggingface(sys.argv[1], execution=Execution(scan_layers=sys.argv[3] == "scan"))
print(peak() - before)
save_huggingface(model, sys.argv[2])
print(peak() - before)
"""


@pytest.fixture(scope="module")
def large_folder(tmp_path_factory) -> tuple[Path, int, int]:
    """(folder, bytes of its weights, bytes of its largest tensor), in several shards."""
    folder, sizes = tmp_path_factory.mktemp("large"), axis_sizes(CONFIG)
    (folder / "config.json").write_text(json.dumps(config_to_huggingface(CONFIG, "float32")))
    places = [place(HUGGINGFACE, name) for name in parameter_names(CONFIG)]
    tensors = [TensorToWrite(name, entry.layout.stored_shape(sizes), np.dtype("float32")) for name, entry in places]
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    generator = np.random.default_rng(0)
    write_folder(folder, tensors, lambda name: generator.random(shapes[name], np.float32), 150_000_000)
    return folder, sum(tensor.num_bytes for tensor in tensors), max(tensor.num_bytes for tensor in tensors)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("layers", ["unrolled", "scan"])
def test_peak_memory_is_the_model_and_at_most_two_tensors(large_folder, tmp_path, repository, layers):
    folder, model_bytes, largest = large_folder
    if layers == "scan":  # one parameter of all layers is one tensor then
        largest = max(largest, CONFIG.num_layers // 2 * CONFIG.hidden_dim * CONFIG.embed_dim * 4)
    command = [sys.executable, "-c", MEASURE, str(folder), str(tmp_path / "out"), layers]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=300, check=True)
    loading, exporting = map(int, done.stdout.split())
    print(f"{layers}: model {model_bytes / 1e6:.0f} MB, largest tensor {largest / 1e6:.0f} MB, "
          f"peak loading {loading / 1e6:.0f} MB, exporting {exporting / 1e6:.0f} MB")  # fmt: skip
    assert loading < model_bytes + 1.5 * largest
    assert exporting < model_bytes + 2 * largest
