"""gemini-tiny-multimodal: one dense Gemini from scratch on text, images, speech and video, which draws digits, too.

    python -m experiments.multimodal.datasets runs/multimodal-data --shared SHARED
    python -m zoo.train image-vq --data runs/multimodal-data/draw/train.jsonl --run-dir runs/multimodal-vq \\
        --model.patch-size 8 --data.media.patch-size 8 --data.media.max-patches 16 --steps 700
    python -m zoo.train gemini-tiny-multimodal --data 'runs/multimodal-data/*/train.jsonl' \\
        --data.media.image-tokenizer runs/multimodal-vq

The first command writes interleaved documents: captioned pictures, statements about pictures, spoken digits, videos and
pairs of digits, digits to be drawn, and text; SHARED is a folder with the data that `experiments/multimodal/README.md`
names, without it they are drawn and sounded.

Cost: ten to fifteen minutes on one CPU core that was shared with other work, and two and a half for the image
tokenizer (three runs of 26 November 2026).
Expected result: (docs/benchmarks/2026-11-26-multimodal.md, three seeds) held-out spoken digits 98 % right, of a
speaker never heard 85 %, images of digits 92 %, the first or last digit of a video 91 %, of two images 89 %, drawn
digits 43 %; captions and statements about pictures no better than without the pictures.
"""

from zoo.data import DataConfig, MediaConfig
from zoo.models import preset
from zoo.recipes.recipe import Recipe
from zoo.training.loop import LoopConfig
from zoo.training.optimizer import OptimizerConfig

RECIPE = Recipe(
    name="gemini-tiny-multimodal",
    needs_data=True,
    model=preset("gemini-tiny-multimodal"),
    data=DataConfig(
        format="interleaved",
        packing="first_fit",
        vocab_size=1024,
        sequence_length=128,
        batch_size=23,
        media=MediaConfig(
            patch_size=8,
            merge=2,
            max_patches=64,
            patches_per_row=112,
            clips_per_row=2,
            clip_frames=80,
            audio_reduction=8,
            image_codes=256,
        ),
        validation_fraction=0.02,
        shuffle_window_tokens=0,
    ),
    optimizer=OptimizerConfig(
        learning_rate=1e-3, warmup_steps=50, schedule="wsd", decay_fraction=0.3, weight_decay=0.1
    ),
    loop=LoopConfig(steps=600, log_every=20, evaluate_every=200, checkpoint_every=200),
    sample_tokens=0,
)
