"""gemma2-2b: Gemma 2 2B, continued pre-training or training from scratch, on your text.

    python -m zoo.train gemma2-2b --data "corpus/*.jsonl.zst" --init-from path/of/gemma-2-2b

Without --init-from the weights are random, and --data.tokenizer must name a tokenizer of at most 256,000 tokens.

Cost: 2.6 billion parameters take 16 bytes each while training (float32 weights, their gradient, two moments): 42 GB,
divided over all devices (mesh.fsdp). A step is 512 Ki tokens, 6 * 2.6e9 * 524,288 = 8.2e15 operations without
attention: 10,000 steps are 5.2 billion tokens and 8.5e19 operations, about 60 hours of one device that reaches
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
    name="gemma2-2b",
    needs_data=True,
    model=preset("gemma2-2b"),
    execution=Execution(compute_dtype="bfloat16", scan_layers=True, remat_policy="full"),
    mesh=MeshConfig(data=1, fsdp=-1, tensor=1),
    data=DataConfig(sequence_length=8192, batch_size=64, shuffle_window_tokens=2**22),
    optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=500),
    loop=LoopConfig(steps=10_000, evaluate_every=500, checkpoint_every=500),
    z_loss=1e-4,
)
