"""gemma2-27b: Gemma 2 27B, continued pre-training or training from scratch, on your text.

    python -m zoo.train gemma2-27b --data "corpus/*.jsonl.zst" --init-from path/of/gemma-2-27b

Without --init-from the weights are random, and --data.tokenizer must name a tokenizer of at most 256,000 tokens.

Cost: 27.2 billion parameters take 16 bytes each while training: 436 GB, divided over all devices (mesh.fsdp;
mesh.tensor=2 or 4 where a sequence a device no longer fits). A step is 2 Mi tokens, 6 * 2.72e10 * 2,097,152 = 3.4e17
operations without attention: 10,000 steps are 21 billion tokens and 3.4e21 operations, about 2,400 device hours at
400 TFLOP/s. Not run to its end by the authors.
Expected result: continued pre-training starts at the loss of the published weights on your text, and must not rise.
"""

from zoo.data import DataConfig
from zoo.models import preset
from zoo.nn import Execution
from zoo.parallel import MeshConfig
from zoo.recipes.recipe import Recipe
from zoo.training.loop import LoopConfig
from zoo.training.optimizer import OptimizerConfig

RECIPE = Recipe(
    name="gemma2-27b",
    needs_data=True,
    model=preset("gemma2-27b"),
    execution=Execution(compute_dtype="bfloat16", scan_layers=True, remat_policy="full"),
    mesh=MeshConfig(data=1, fsdp=-1, tensor=1),
    data=DataConfig(sequence_length=8192, batch_size=256, shuffle_window_tokens=2**24),
    optimizer=OptimizerConfig(learning_rate=5e-5, warmup_steps=500),
    # Checksums would read 330 GB back after every save.
    loop=LoopConfig(steps=10_000, evaluate_every=500, checkpoint_every=500, checksums=False),
    z_loss=1e-4,
)
