"""image-classes: a small ResNet that learns to tell classes of images, on any JSON lines of images and labels.

    python -m experiments.twin_augmentation.image_files runs/x-rays --collection children
    python -m zoo.train image-classes --data runs/x-rays/train.jsonl --data.images.side 28

A line is {"image": "a.png", "label": "Pneumonia"} (`zoo/data/labelled_images.py`). The first command writes such files
from public chest X-rays of children (or of made-up images, if the optional data are not there). In training a random
part of each image is taken, mirrored, brighter or darker; validation is a random twentieth of the images: where several
are of one person, give `--data` a file without that person's and hold nothing out (`--data.validation-fraction 0`).

Other networks: `--model.depths`, `--model.widths`, ...; or, to go on from, an earlier run or a Hugging Face folder of a
ResNet with as many classes (`--init-from FOLDER --model-from-init`, with its own `--data.images.side` and the like).
Rare classes: `--classification.class-weights` or `--classification.focal-gamma`; or, afterwards, `zoo.augment`.

Cost: 24 CPU-seconds for 400 steps of 32 images of 28 pixels, compilation and report included.
Expected result: one run (Python 3.11, 2026-11-27) on the 2,698 images of children: of 159 held-out ones 93.1 % are
right (0.208 nats an image), where the more frequent class has 50.3 % (0.693).
"""

from zoo.data import DataConfig, LabelledImagesConfig
from zoo.models import preset
from zoo.recipes.recipe import Recipe
from zoo.training.loop import LoopConfig
from zoo.training.optimizer import OptimizerConfig

RECIPE = Recipe(
    name="image-classes",
    needs_data=True,
    model=preset("resnet-tiny"),
    data=DataConfig(
        format="labelled_images",
        packing="single",
        sequence_length=1,
        batch_size=32,
        images=LabelledImagesConfig(
            classes=("No finding", "Pneumonia"),
            side=64,
            channels=1,
            mean=(0.5,),
            std=(0.25,),
            crop=0.8,
            contrast=0.1,
            brightness=0.1,
        ),
    ),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=30, weight_decay=0.01),
    loop=LoopConfig(steps=400, log_every=20, evaluate_every=100, checkpoint_every=100),
    sample_tokens=0,
)
