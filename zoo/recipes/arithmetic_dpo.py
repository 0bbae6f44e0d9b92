"""arithmetic-dpo: the model of arithmetic-sft learns from pairs of a right and a wrong sum (DPO, arXiv 2305.18290).

    python -m zoo.train arithmetic-dpo --init-from runs/arithmetic-sft/checkpoints/400

The wrong sum differs in one digit. The reference is the model that it begins with.

Cost: half a minute of one CPU core.
Expected result: of held-out pairs, 87.5 % in the right order; of 472 sums 74.6 % are right, 74.4 % were before.
"""

from zoo.data import DataConfig
from zoo.models import preset
from zoo.recipes.arithmetic_sft import TASK
from zoo.recipes.recipe import Recipe
from zoo.training.loop import LoopConfig
from zoo.training.optimizer import OptimizerConfig
from zoo.training.preference import PreferenceConfig

RECIPE = Recipe(
    name="arithmetic-dpo",
    needs_data=False,
    model=preset("gemma2-pico"),
    data=DataConfig(
        task=TASK, format="preference", packing="first_fit", vocab_size=276, sequence_length=104, batch_size=16
    ),
    preference=PreferenceConfig(beta=0.1),
    optimizer=OptimizerConfig(learning_rate=3e-4, warmup_steps=20, weight_decay=0.0),
    loop=LoopConfig(steps=150, log_every=25, evaluate_every=50, checkpoint_every=50),
    sample_tokens=0,
)
