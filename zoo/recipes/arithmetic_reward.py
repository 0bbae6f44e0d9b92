"""arithmetic-reward: a reward model that tells right sums from wrong ones (Bradley and Terry), from arithmetic-sft.

    python -m zoo.train arithmetic-reward --init-from runs/arithmetic-sft/checkpoints/400

On the pairs of arithmetic-dpo; the decoder is that of the run it begins with, its vector is new.

Cost: half a minute of one CPU core.
Expected result: of held-out pairs, 79.4 % in the right order.
"""

from zoo.data import DataConfig
from zoo.models import preset
from zoo.recipes.arithmetic_sft import TASK
from zoo.recipes.recipe import Recipe
from zoo.training.loop import LoopConfig
from zoo.training.optimizer import OptimizerConfig
from zoo.training.preference import PreferenceConfig

RECIPE = Recipe(
    name="arithmetic-reward",
    needs_data=False,
    model=preset("gemma2-pico-reward"),
    data=DataConfig(
        task=TASK, format="preference", packing="first_fit", vocab_size=276, sequence_length=104, batch_size=16
    ),
    preference=PreferenceConfig(centering=0.01),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=20, weight_decay=0.0),
    loop=LoopConfig(steps=300, log_every=25, evaluate_every=100, checkpoint_every=100),
    sample_tokens=0,
)
