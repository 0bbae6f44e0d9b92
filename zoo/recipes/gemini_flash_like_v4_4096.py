"""gemini-flash-like-v4-4096: a dense decoder of 27.6 billion parameters on a pod of 16x16x16 TPU v4.

    python -m zoo.plan gemini-flash-like-v4-4096 --topology v4:16x16x16
    python -m zoo.train gemini-flash-like-v4-4096 --data "corpus/*.jsonl.zst" --data.tokenizer tokenizer.model

Source: pods of 4,096 TPU v4 (arXiv 2312.11805, section 3), and attention and feed-forward side by side (2403.05530,
section 3) are all that the reports say. Sizes, mesh, batch and rates are ours. It learns from text alone here; from a
teacher that trains at the same time: gemini-tiny-flash.

A chip has 2,048 tokens of 1,024 sequences, whatever the mesh. Two model shards (tensor) halve the vocabulary of 262,144
words and its gradient, of 9.7 GB a chip; four would send three times the tokens over a line of chips. The other 2,048
chips are 8 copies (data) x 256 shards of the parameters (fsdp and context): 6144 / 256 = 24 rows, whole tiles of 8.
Cost: 500,000 steps of 8.4 million tokens and 1.5e18 operations: 7.5e23, 15 days at the speed below.
Expected result: not known, it was compiled only. `zoo.plan`: 26.7 of 34 GB a chip, 1.40 s a step by the roofline
and 2.54 s by the compiled schedule: 3.3 million tokens/s, 52 % of the chips' peak.
"""

from zoo.data import DataConfig
from zoo.models import preset
from zoo.nn import Execution
from zoo.parallel import MeshConfig
from zoo.recipes.recipe import Recipe
from zoo.training.loop import LoopConfig
from zoo.training.optimizer import OptimizerConfig

RECIPE = Recipe(
    name="gemini-flash-like-v4-4096",
    needs_data=True,
    model=preset("gemini-flash-like"),
    execution=Execution(compute_dtype="bfloat16", scan_layers=True, remat_policy="norms"),
    mesh=MeshConfig(data=8, fsdp=128, context=2, tensor=2),
    data=DataConfig(sequence_length=8192, batch_size=1024, shuffle_window_tokens=2**24),
    optimizer=OptimizerConfig(learning_rate=3e-4, warmup_steps=2000),
    # Checksums would read all that was saved back after every save.
    loop=LoopConfig(steps=500_000, evaluate_every=5000, checkpoint_every=500, checksums=False),
    z_loss=1e-4,
)
