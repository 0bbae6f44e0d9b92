"""image-vq: a tokenizer that makes 64 codes of a 32 x 32 image, for models that write images.

    python -m experiments.multimodal.datasets runs/multimodal-data --shared SHARED
    python -m zoo.train image-vq --data runs/multimodal-data/draw/train.jsonl runs/multimodal-data/picture/train.jsonl

It reads the images and the frames of videos of any interleaved JSONL (`zoo/data/interleaved.py`), and no texts; each
image is cut to the square in its middle and resized. The first command writes digits and emoji; SHARED is a folder with
the data that `experiments/multimodal/README.md` names, without it shapes are drawn.

Cost: 166 CPU-seconds for 1,000 steps of 16 images, compilation and report included; that is about two minutes on two
quiet cores (an estimate: it was measured on a busy machine, where it took eight).
Expected result: one run (Python 3.11) on 4,500 digits and 6,000 emoji. Of 256 images of each test split, digits have a
PSNR of 22.6 dB and emoji 19.7 dB. The run's own table, of both together (some emoji are moved copies of training ones):
20.5 dB, squared error 0.0358 of pixels in -1..1, where the mean colour of each image has 11.2 dB and 0.307; all 256
codes in use, perplexity 53. Digits and emoji can be told at a glance; thin lines and faces are blurred
(RUN/reconstructions.png).
"""

from zoo.data import DataConfig, MediaConfig
from zoo.models import preset
from zoo.recipes.recipe import Recipe
from zoo.training.loop import LoopConfig
from zoo.training.optimizer import OptimizerConfig

RECIPE = Recipe(
    name="image-vq",
    needs_data=True,
    model=preset("vq-tiny"),
    data=DataConfig(
        format="interleaved",
        packing="first_fit",
        media=MediaConfig(patch_size=4, merge=1, max_patches=64, patches_per_row=256, image_side=32),
        sequence_length=288,
        batch_size=4,
    ),
    optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=50, weight_decay=0.0),
    loop=LoopConfig(steps=1000, log_every=20, evaluate_every=250, checkpoint_every=250),
    sample_tokens=0,
)
