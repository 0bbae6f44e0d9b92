"""What is said at the end of a run: how good it is against knowing frequencies only, a sample, and what to do next."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx

from zoo.data import Batch, Corpus, Tokenizer, baselines
from zoo.inference import Sampling, generate
from zoo.recipes.recipe import Recipe


def comparison(validation: Mapping[str, float], corpus: Corpus, tokenizer: Tokenizer, batches: Sequence[Batch]) -> str:
    """A table: validation loss and bits per byte of the model, of token frequencies and of byte frequencies."""
    loss, bits = validation.get("validation_loss"), validation.get("validation_bits_per_byte")
    if loss is None or bits is None:
        return "no validation: no document was held out"
    found = baselines(corpus, tokenizer, batches)
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


def sample_text(recipe: Recipe, graphdef: nnx.GraphDef, params: Any, tokenizer: Tokenizer) -> str:
    """What the model continues the recipe's prompt with, prompt included."""
    model = nnx.merge(graphdef, params)
    prompt = tokenizer.encode(recipe.sample_prompt, bos=True)
    room = recipe.model.max_position_embeddings - len(prompt)
    new_tokens = generate(
        model,
        np.array([prompt], np.int32),
        max_new_tokens=max(1, min(recipe.sample_tokens, room)),
        sampling=Sampling(temperature=0.7, top_p=0.95),
        stop_tokens=(tokenizer.eos_id,),
        seed=recipe.seed,
    )
    return recipe.sample_prompt + tokenizer.decode([int(token) for token in new_tokens[0]])


def what_next(recipe: Recipe) -> str:
    """Commands that go on from a finished run."""
    run = recipe.run_dir
    return "\n".join(
        [
            "next:",
            f"  python -m zoo.generate --checkpoint {run} --prompt 'def '          write with it",
            f"  python -m zoo.score --checkpoint {run} --text FILE                 measure it on your text",
            f"  python -m zoo.export {run} {run}/huggingface --format huggingface  take it to other programs",
            "  python -m zoo.train --data YOUR_FILES --run-dir runs/mine           train on your own text",
        ]
    )


def _perplexity(nats: float) -> str:
    return f"{math.exp(nats):,.1f}" if nats < 50 else "-"
