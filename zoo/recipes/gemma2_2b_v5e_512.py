"""gemma2-2b-v5e-512: the training run of the Gemma 2 report (2B), two slices of 16x16 TPU v5e.

    python -m zoo.plan gemma2-2b-v5e-512 --topology v5e:16x16 --slices 2
    python -m zoo.train gemma2-2b-v5e-512 --data "corpus/*.jsonl.zst" --data.tokenizer tokenizer.model

Source: table 3 of arXiv:2408.00118 gives chips, data shards (512) and model shards (1), section 3
the optimizer state "sharded using techniques similar to ZeRO-3", table 2 the 2 trillion tokens. Batch, learning
rate and schedule are not published: here every data shard has one sequence of 8,192 tokens, and the rates are ours.

The 512 data shards are 2 slices (mesh.replica) x 8 copies (data) x 32 shards of the parameters (fsdp). 2304 does not
divide by 512, and in fewer than 8 rows of a weight a device would waste the 8 rows of a TPU's tile: 2304 / 32 = 72.
Cost: 476,837 steps of 4.2 million tokens and 7.5e16 operations: 3.6e22, 9 days at the speed below.
Expected result: not known, it was compiled only. `zoo.plan`: 14.5 of 17 GB a chip, 0.87 s a step by the roofline
and 1.57 s by the compiled schedule: 2.7 million tokens/s, 47 % of the chips' peak.
"""

from zoo.data import DataConfig
from zoo.models import preset
from zoo.nn import Execution
from zoo.parallel import MeshConfig
from zoo.recipes.recipe import Recipe
from zoo.training.loop import LoopConfig
from zoo.training.optimizer import OptimizerConfig

RECIPE = Recipe(
    name="gemma2-2b-v5e-512",
    needs_data=True,
    model=preset("gemma2-2b"),
    execution=Execution(compute_dtype="bfloat16", scan_layers=True, remat_policy="mlp"),
    mesh=MeshConfig(replica=2, data=8, fsdp=32),
    data=DataConfig(sequence_length=8192, batch_size=512, shuffle_window_tokens=2**24),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=2000),
    # Checksums would read all that was saved back after every save.
    loop=LoopConfig(steps=476_837, evaluate_every=5000, checkpoint_every=500, checksums=False),
    z_loss=1e-4,
)
