"""gemini-tiny-flash: a dense student, distilled from a sparse teacher that trains at the same time.

    python -m zoo.train gemini-tiny-flash

On the source text of Python's standard library. `zoo.load("runs/gemini-tiny-flash")` gives the student. Validation is
the student's loss on real labels; the teacher's stands beside it as validation_teacher_loss.

Cost: nine minutes on two CPU cores (3,100 tokens/s); per token 2.6 times the arithmetic of the student alone (7.3
against 2.7 MFLOP forward).
Expected result: after 800 steps, one run (Python 3.11), 4.35 nats per token, 1.95 bits per byte; the teacher 4.09. How
much of that the teacher gives was not measured: there is no run of the student alone.
"""

from zoo.data import DataConfig
from zoo.models import preset
from zoo.recipes.recipe import Recipe
from zoo.training.loop import LoopConfig
from zoo.training.optimizer import OptimizerConfig

RECIPE = Recipe(
    name="gemini-tiny-flash",
    needs_data=False,
    model=preset("gemini-tiny-flash"),
    data=DataConfig(vocab_size=4096, sequence_length=256, batch_size=8, shuffle_window_tokens=2**22),
    optimizer=OptimizerConfig(learning_rate=1.2e-2, warmup_steps=50, weight_decay=0.1),
    loop=LoopConfig(steps=800, log_every=20, evaluate_every=200, checkpoint_every=200),
    sample_prompt="def ",
)
