"""gemma2-9b-v4-4096: the training run of the Gemma 2 report (9B), a slice of 8x16x32 TPU v4.

    python -m zoo.plan gemma2-9b-v4-4096 --topology v4:8x16x32
    python -m zoo.train gemma2-9b-v4-4096 --data "corpus/*.jsonl.zst" --data.tokenizer tokenizer.model

Source: table 3 of arXiv:2408.00118 gives chips, data shards (1024) and model shards (4), section 3
the optimizer state "sharded using techniques similar to ZeRO-3", table 2 the 8 trillion tokens. Batch, learning
rate and schedule are not published: here every data shard has one sequence of 8,192 tokens, and the rates are ours.

The 1,024 data shards are 16 copies (mesh.data) x 64 shards of the parameters (fsdp): 3584 does not divide by 1,024, and
a TPU's tile has 8 rows: 3584 / 64 = 56.
Cost: 953,674 steps of 8.4 million tokens and 5.3e17 operations: 5.0e23, 14 days at the speed below.
Expected result: not known, it was compiled only. `zoo.plan`: 15.6 of 34 GB a chip, 0.54 s a step by the roofline
and 1.26 s by the compiled schedule: 6.6 million tokens/s, 37 % of the chips' peak.
"""

from zoo.data import DataConfig
from zoo.models import preset
from zoo.nn import Execution
from zoo.parallel import MeshConfig
from zoo.recipes.recipe import Recipe
from zoo.training.loop import LoopConfig
from zoo.training.optimizer import OptimizerConfig

RECIPE = Recipe(
    name="gemma2-9b-v4-4096",
    needs_data=True,
    model=preset("gemma2-9b"),
    execution=Execution(compute_dtype="bfloat16", scan_layers=True, remat_policy="norms"),
    mesh=MeshConfig(data=16, fsdp=64, tensor=4),
    data=DataConfig(sequence_length=8192, batch_size=1024, shuffle_window_tokens=2**24),
    optimizer=OptimizerConfig(learning_rate=6e-4, warmup_steps=2000),
    # Checksums would read all that was saved back after every save.
    loop=LoopConfig(steps=953_674, evaluate_every=5000, checkpoint_every=500, checksums=False),
    z_loss=1e-4,
)
