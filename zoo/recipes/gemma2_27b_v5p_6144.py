"""gemma2-27b-v5p-6144: the training run of the Gemma 2 report (27B), a slice of 8x24x32 TPU v5p.

    python -m zoo.plan gemma2-27b-v5p-6144 --topology v5p:8x24x32
    python -m zoo.train gemma2-27b-v5p-6144 --data "corpus/*.jsonl.zst" --data.tokenizer tokenizer.model

Source: table 3 of arXiv:2408.00118 gives chips, data shards (768) and model shards (8), section 3
the optimizer state "sharded using techniques similar to ZeRO-3", table 2 the 13 trillion tokens. Batch, learning
rate and schedule are not published: here every data shard has one sequence of 8,192 tokens, and the rates are ours.

The 768 data shards are 4 copies (mesh.data) x 192 shards of the parameters (fsdp): 4608 does divide by 768, but in 6
rows, and a TPU's tile has 8; 4608 / 192 = 24. With fsdp=768 every gathered weight is laid out anew: a product of the
feed-forward then takes 1.75 instead of 1.36 million cycles.
Cost: 2,066,294 steps of 6.3 million tokens and 1.08e18 operations: 2.2e24, 17 days at the speed below.
Expected result: not known, it was compiled only. `zoo.plan`: 13.2 of 102 GB a chip, 0.39 s a step by the roofline
and 0.70 s by the compiled schedule: 9.0 million tokens/s, 55 % of the chips' peak.
"""

from zoo.data import DataConfig
from zoo.models import preset
from zoo.nn import Execution
from zoo.parallel import MeshConfig
from zoo.recipes.recipe import Recipe
from zoo.training.loop import LoopConfig
from zoo.training.optimizer import OptimizerConfig

RECIPE = Recipe(
    name="gemma2-27b-v5p-6144",
    needs_data=True,
    model=preset("gemma2-27b"),
    execution=Execution(compute_dtype="bfloat16", scan_layers=True, remat_policy="norms"),
    mesh=MeshConfig(data=4, fsdp=192, tensor=8),
    data=DataConfig(sequence_length=8192, batch_size=768, shuffle_window_tokens=2**24),
    optimizer=OptimizerConfig(learning_rate=3e-4, warmup_steps=2000),
    # Checksums would read all that was saved back after every save.
    loop=LoopConfig(steps=2_066_294, evaluate_every=5000, checkpoint_every=500, checksums=False),
    z_loss=1e-4,
)
