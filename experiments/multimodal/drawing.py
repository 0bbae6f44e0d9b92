"""Images that a model draws when it is asked to, and whether the classifier sees what was asked for."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from experiments.multimodal.classifier import classify, load_classifier
from experiments.multimodal.documents import WORDS
from experiments.multimodal.prepare import Prepared
from zoo.data import MediaVocabulary, Tokenizer
from zoo.inference import ImageOutput, Sampling, generate, left_pad
from zoo.inference.image_tokens import codes_to_images, load_image_tokenizer


def draw(
    model: Any, tokenizer: Tokenizer, out: Path, prepared: Prepared, each: int, seed: int
) -> tuple[UInt8[np.ndarray, "n s s 3"], Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """(images, the digits that were asked for, the digits that the classifier sees): `each` of every digit, in order,
    drawn at temperature 1 by constrained decoding."""
    words = MediaVocabulary(tokenizer.vocab_size, prepared.image_codes)
    asked = np.repeat(np.arange(10), each)
    prompts = [[tokenizer.bos_id, *tokenizer.encode(f"Draw a {WORDS[digit]}."), words.image_begin] for digit in asked]
    tokens, mask = left_pad(prompts, tokenizer.pad_id)
    # Equal prompts of a batch get different samples (`row_keys`).
    ids = generate(
        model,
        tokens,
        mask,
        max_new_tokens=prepared.codes_per_image,
        sampling=Sampling(temperature=1.0),
        seed=seed,
        image_output=ImageOutput(words, prepared.codes_per_image),
    )
    codes = words.codes_of_ids(ids.reshape(-1)).reshape(ids.shape)
    images = codes_to_images(load_image_tokenizer(out / "vq"), codes)
    return images, asked, classify(load_classifier(out / "classifier.npz"), images)
