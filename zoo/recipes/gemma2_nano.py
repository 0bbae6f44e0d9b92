"""gemma2-nano: a small Gemma 2 on text that every machine has, the source text of Python's standard library.

    python -m zoo.train

Cost: three minutes on two quiet CPU cores (10,000 tokens/s), tokenizer and sample included.
Expected result: after 800 steps, 1.6M tokens (Python 3.11), a validation loss of 3.98 nats per token, 1.78 bits per
byte; token frequencies alone reach 6.58 and 2.95, byte frequencies 4.47 bits per byte.
"""

from zoo.data import DataConfig
from zoo.models import preset
from zoo.nn import Execution
from zoo.recipes.recipe import Recipe
from zoo.training.loop import LoopConfig
from zoo.training.optimizer import OptimizerConfig

RECIPE = Recipe(
    name="gemma2-nano",
    needs_data=False,
    model=preset("gemma2-nano"),
    # On CPU a scan over layers costs 20-40 % against unrolled ones.
    execution=Execution(compute_dtype="float32", scan_layers=False, remat_policy="none"),
    # The whole corpus in one window: with 2**18 the loss fell as a window's few files were learnt, then jumped.
    data=DataConfig(vocab_size=4096, sequence_length=256, batch_size=8, shuffle_window_tokens=2**22),
    optimizer=OptimizerConfig(learning_rate=1.2e-2, warmup_steps=50, weight_decay=0.1),
    loop=LoopConfig(steps=800, log_every=20, evaluate_every=200, checkpoint_every=200),
    sample_prompt="def ",
)
