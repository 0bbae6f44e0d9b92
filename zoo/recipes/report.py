"""What is said at the end of a run: how good it is against knowing frequencies only, a sample, and what to do next."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from zoo.data import Baselines, Corpus, MediaVocabulary, Tokenizer
from zoo.inference import ImageOutput, Sampling, generate
from zoo.models import VqImageConfig
from zoo.recipes.recipe import Recipe
from zoo.training.goodput import Goodput
from zoo.training.pictures import goodput_picture, loss_curve, router_picture


def opening(recipe: Recipe, mesh: Mesh, corpus: Corpus, tokenizer: Tokenizer, first_step: int) -> str:
    """What is about to happen, in a few lines."""
    model, loop, data = recipe.model, recipe.loop, recipe.data
    amount = f"{data.batch_size * data.sequence_length:,} tokens"
    reads = f"tokenizer  {tokenizer.vocab_size} tokens, sha256 {tokenizer.fingerprint[:12]}"
    if isinstance(model, VqImageConfig):
        amount = f"{data.batch_size * data.media.patches_per_row // model.codes_per_image:,} images"
        reads = f"images     {model.image_size} x {model.image_size} pixels, {model.codes_per_image} codes"
        reads += f" of {model.num_codes:,} each; texts and recordings are not read"
    if recipe.classifies:
        amount, images = f"{data.batch_size:,} images", data.images
        reads = f"images     {images.side} x {images.side} x {images.channels}, {len(images.classes)} classes"
    if recipe.samples_answers:
        amount = f"{data.batch_size * recipe.policy.samples_per_prompt:,} sampled answers"
    kind = mesh.devices.flat[0].device_kind
    axes = ", ".join(f"{name}={size}" for name, size in mesh.shape.items() if size > 1)
    begin = f"resuming after step {first_step}" if first_step else "beginning"
    return "\n".join(
        [
            f"data       {corpus.description}",
            reads,
            f"model      {recipe.name}: {model.num_parameters():,} parameters, {recipe.execution.compute_dtype}",
            f"devices    {mesh.size} x {kind}" + (f" ({axes})" if axes else ""),
            f"run        {recipe.run_dir}: {begin}, {loop.last_step - first_step} steps of {amount}",
        ]
    )


def comparison(validation: Mapping[str, float], found: Baselines | None) -> str:
    """A table: validation loss and bits per byte of the model, of token frequencies and of byte frequencies."""
    loss, bits = validation.get("validation_loss"), validation.get("validation_bits_per_byte")
    if loss is None or bits is None or found is None:
        return "no validation: no document was held out"
    rows = [
        ("this model", loss, bits),
        ("token frequencies (unigram)", found.unigram_nats_per_token, found.unigram_bits_per_byte),
        ("byte frequencies", None, found.byte_unigram_bits_per_byte),
    ]
    lines = [f"{'on held-out documents':<30}{'nats per token':>16}{'perplexity':>12}{'bits per byte':>15}"]
    for name, nats, per_byte in rows:
        shown = f"{'':>28}" if nats is None else f"{nats:>16.4f}{_perplexity(nats):>12}"
        lines.append(f"{name:<30}{shown}{per_byte:>15.4f}")
    return "\n".join(lines)


def draw_losses(recipe: Recipe, found: Baselines | None) -> str:
    """Draws RUN/loss.png and, of a model with sparse layers, RUN/router.png; returns the words for them."""
    run = Path(recipe.run_dir)
    lines = {"token frequencies": found.unigram_nats_per_token} if found is not None else {}
    sparse = getattr(recipe.model, "experts", None) is not None
    if jax.process_index() == 0:
        loss_curve(run / "metrics.jsonl", run / "loss.png", baselines=lines, title=recipe.name)
        if sparse:
            router_picture(run / "metrics.jsonl", run / "router.png", title=recipe.name)
    routers = f", the load of the experts in {run / 'router.png'}" if sparse else ""
    return f"the loss curve is in {run / 'loss.png'}{routers}, every step in {run / 'metrics.jsonl'}"


def show_goodput(recipe: Recipe, goodput: Goodput) -> str:
    """Draws RUN/goodput.png; returns what the run's time went into."""
    if jax.process_index() == 0:
        goodput_picture(goodput.starts, Path(recipe.run_dir) / "goodput.png", title=recipe.name)
    return goodput.table()


def sample_text(recipe: Recipe, graphdef: nnx.GraphDef, params: Any, tokenizer: Tokenizer) -> str:
    """What the model continues the recipe's prompt with, prompt included."""
    model = nnx.merge(graphdef, params)
    prompt = tokenizer.encode(recipe.sample_prompt, bos=True)
    # A model of interleaved documents has tokens that stand for no text: none of them is drawn.
    vocabulary = MediaVocabulary(tokenizer.vocab_size, recipe.data.media.image_codes)
    words_only = ImageOutput(vocabulary) if recipe.data.format == "interleaved" else None
    room = recipe.sequence_model.max_position_embeddings - len(prompt)
    new_tokens = generate(
        model,
        np.array([prompt], np.int32),
        max_new_tokens=max(1, min(recipe.sample_tokens, room)),
        sampling=Sampling(temperature=0.7, top_p=0.95),
        stop_tokens=(tokenizer.eos_id,),
        seed=recipe.seed,
        image_output=words_only,
    )
    return recipe.sample_prompt + tokenizer.decode([int(token) for token in new_tokens[0]])


def what_next(recipe: Recipe) -> str:
    """Commands that go on from a finished run."""
    run = recipe.run_dir
    return "\n".join(
        [
            "what to do next:",
            f"  python -m zoo.generate --checkpoint {run} --prompt 'def '",
            f"  python -m zoo.score --checkpoint {run} --text FILE",
            f"  python -m zoo.export {run} {run}/huggingface --format huggingface",
            "  python -m zoo.train --data YOUR_FILES --run-dir runs/mine",
        ]
    )


def _perplexity(nats: float) -> str:
    return f"{math.exp(nats):,.1f}" if nats < 50 else "-"
