"""gemma2-2b-sft: supervised fine-tuning of Gemma 2 2B on conversations; the loss counts on the model's turns only.

    python -m zoo.train gemma2-2b-sft --data chats.jsonl --init-from path/of/gemma-2-2b-it

Every line of the JSONL is one conversation (see zoo/data/chat.py); Gemma's turn template is applied, conversations are
packed whole into rows of 4,096 tokens.

Cost: 42 GB of device memory over all devices, as gemma2-2b. A step is 128 Ki tokens, 2.1e15 operations: 1,000 steps are
about 90 minutes of one device that reaches 400 TFLOP/s. Not run to its end by the authors.
Expected result: the validation loss falls within the first few hundred steps and is lowest after one to three epochs;
the checkpoint with the lowest one is kept.
"""

from zoo.data import DataConfig
from zoo.models import preset
from zoo.nn import Execution
from zoo.parallel import MeshConfig
from zoo.recipes.recipe import Recipe
from zoo.training.loop import LoopConfig
from zoo.training.optimizer import OptimizerConfig

RECIPE = Recipe(
    name="gemma2-2b-sft",
    needs_data=True,
    model=preset("gemma2-2b-it"),
    execution=Execution(compute_dtype="bfloat16", scan_layers=True, remat_policy="full"),
    mesh=MeshConfig(data=1, fsdp=-1, tensor=1),
    data=DataConfig(
        sequence_length=4096, batch_size=32, shuffle_window_tokens=2**20, format="chat", packing="first_fit"
    ),
    optimizer=OptimizerConfig(learning_rate=1e-5, warmup_steps=50, weight_decay=0.0),
    loop=LoopConfig(steps=1000, evaluate_every=100, checkpoint_every=100),
)
