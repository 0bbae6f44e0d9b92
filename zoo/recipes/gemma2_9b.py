"""gemma2-9b: Gemma 2 9B, continued pre-training or training from scratch, on your text.

    python -m zoo.train gemma2-9b --data "corpus/*.jsonl.zst" --init-from path/of/gemma-2-9b

Without --init-from the weights are random, and --data.tokenizer must name a tokenizer of at most 256,000 tokens.

Cost: 9.2 billion parameters take 16 bytes each while training: 148 GB, divided over all devices (mesh.fsdp). A step is
1 Mi tokens, 6 * 9.2e9 * 1,048,576 = 5.8e16 operations without attention: 10,000 steps are 10.5 billion tokens and
5.8e20 operations, about 400 device hours at 400 TFLOP/s. Not run to its end by the authors.
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
    name="gemma2-9b",
    needs_data=True,
    model=preset("gemma2-9b"),
    execution=Execution(compute_dtype="bfloat16", scan_layers=True, remat_policy="full"),
    mesh=MeshConfig(data=1, fsdp=-1, tensor=1),
    data=DataConfig(sequence_length=8192, batch_size=128, shuffle_window_tokens=2**23),
    optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=500),
    loop=LoopConfig(steps=10_000, evaluate_every=500, checkpoint_every=500),
    z_loss=1e-4,
)
