"""bert-tiny-mlm: a small BERT that learns to guess masked tokens, on text that every machine has.

    python -m zoo.train bert-tiny-mlm

On the source text of Python's standard library, or with `--data` on any other; needs `pip install '.[hf]'`, which
trains the WordPiece vocabulary. 15 % of the tokens are guessed, 80 % of them masked, 10 % replaced by any token, 10 %
left. `zoo.load("runs/bert-tiny-mlm").model` gives hidden states to go on from; a BERT that is there already is trained
further with `--init-from FOLDER --model-from-init`.

Cost: not measured yet.
Expected result: not measured yet; the table at the end has the loss and the accuracy of masked tokens on held-out
documents beside those of token frequencies.
"""

from zoo.data import DataConfig
from zoo.models import preset
from zoo.recipes.recipe import Recipe
from zoo.training.loop import LoopConfig
from zoo.training.optimizer import OptimizerConfig

RECIPE = Recipe(
    name="bert-tiny-mlm",
    needs_data=False,
    model=preset("bert-tiny"),
    data=DataConfig(format="masked", vocab_size=4096, sequence_length=128, batch_size=16, shuffle_window_tokens=2**22),
    optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=100, weight_decay=0.01),
    loop=LoopConfig(steps=1000, log_every=20, evaluate_every=250, checkpoint_every=250),
    sample_tokens=0,
)
