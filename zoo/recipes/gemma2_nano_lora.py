"""gemma2-nano-lora: low-rank changes of every matrix of a gemma2-nano that is trained already, on other text.

    python -m zoo.train gemma2-nano-lora --init-from runs/gemma2-nano --data 'books/*.txt'

Without --data it goes on with the source text of Python's standard library, which the base has seen.

Cost: 2.9 MiB of optimizer state beside a base of 1.3M parameters that stays (7 % of that of training all of it); 200
steps of 2,048 tokens. Not timed by the authors.
Expected result: the checkpoints hold 0.2M numbers each. How far the loss falls depends on the text; not measured.
"""

from zoo.data import DataConfig
from zoo.models import preset
from zoo.nn import Execution
from zoo.peft import PeftConfig
from zoo.recipes.recipe import Recipe
from zoo.training.loop import LoopConfig
from zoo.training.optimizer import OptimizerConfig

RECIPE = Recipe(
    name="gemma2-nano-lora",
    needs_data=False,
    model=preset("gemma2-nano"),
    execution=Execution(compute_dtype="float32", scan_layers=False, remat_policy="none"),
    data=DataConfig(vocab_size=4096, sequence_length=256, batch_size=8, shuffle_window_tokens=2**22),
    peft=PeftConfig("lora", rank=8, alpha=16.0, target=("query", "key", "value", "output", "gate", "up", "down")),
    optimizer=OptimizerConfig(learning_rate=4e-3, warmup_steps=20, weight_decay=0.0),
    loop=LoopConfig(steps=200, log_every=20, evaluate_every=100, checkpoint_every=100),
    sample_prompt="def ",
)
