"""gemini-pro-like-v4-4096: a sparse decoder of 340 billion parameters, 50 of them active, on a pod of 16x16x16 TPU v4.

    python -m zoo.plan gemini-pro-like-v4-4096 --topology v4:16x16x16
    python -m zoo.train gemini-pro-like-v4-4096 --data "corpus/*.jsonl.zst" --data.tokenizer tokenizer.model

Source: pods of 4,096 TPU v4 (arXiv 2312.11805, section 3) and a sparse mixture of experts (2403.05530, section 3) are
all that the reports say. Sizes, mesh, batch and rates are ours.

A chip has 2,048 tokens of 1,024 sequences, whatever the mesh. Each of 32 devices (expert) has one expert of a sparse
layer, and takes in 1.25 times the balanced load at most; two model shards (tensor) halve the vocabulary of 262,144
words and its gradient, of 12.9 GB a chip. The rest are 2 copies (data) x 1,024 shards of the parameters: 8192 / 1024 =
8 rows, a TPU's tile.
Cost: 500,000 steps of 8.4 million tokens and 2.7e18 operations: 1.4e24, 41 days at the speed below.
Expected result: not known, it was compiled only. `zoo.plan`: 28.1 of 34 GB a chip, 3.20 s a step by the roofline
and 7.06 s by the compiled schedule: 1.2 million tokens/s, 34 % of the chips' peak.
"""

from zoo.data import DataConfig
from zoo.models import preset
from zoo.nn import Execution
from zoo.parallel import MeshConfig
from zoo.recipes.recipe import Recipe
from zoo.training.loop import LoopConfig
from zoo.training.optimizer import OptimizerConfig

RECIPE = Recipe(
    name="gemini-pro-like-v4-4096",
    needs_data=True,
    model=preset("gemini-pro-like"),
    # "norms" would keep gate and up besides: of a chip's 2,048 tokens and in 64 layers 14 GB.
    execution=Execution(compute_dtype="bfloat16", scan_layers=True, remat_policy="mlp"),
    mesh=MeshConfig(data=2, fsdp=16, context=2, expert=32, tensor=2),
    data=DataConfig(sequence_length=8192, batch_size=1024, shuffle_window_tokens=2**24),
    optimizer=OptimizerConfig(learning_rate=1.5e-4, warmup_steps=2000),
    # Checksums would read all that was saved back after every save.
    loop=LoopConfig(steps=500_000, evaluate_every=5000, checkpoint_every=500, checksums=False),
    z_loss=1e-4,
)
