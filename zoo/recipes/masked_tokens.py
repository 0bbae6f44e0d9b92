"""What is particular to runs whose model guesses masked tokens: their checks, and what is said at their end."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from zoo.data import Batch, Corpus, Tokenizer, Unigram, unigram
from zoo.data.wordpiece_tokenizer import MASK
from zoo.errors import UserError
from zoo.models import BertConfig
from zoo.recipes.recipe import Recipe
from zoo.training.pictures import loss_curve


def check_masked_run(recipe: Recipe) -> None:
    """Raises `UserError` if a model that guesses masked tokens is to be trained on something else, or something else on
    masked tokens."""
    if recipe.trains_masked != (recipe.data.format == "masked"):
        wanted = "'masked': its model guesses masked tokens"
        if not recipe.trains_masked:
            wanted = "another than 'masked', which is for a model like BERT"
        raise UserError(f"data.format={recipe.data.format!r} of {recipe.name} must be {wanted}")
    if isinstance(recipe.model, BertConfig) and recipe.model.head != "masked_lm":
        raise UserError(f"model.head={recipe.model.head!r} must be 'masked_lm' to be trained on masked tokens")


def check_mask_token(recipe: Recipe, tokenizer: Tokenizer) -> None:
    """Raises `UserError` if the tokenizer's mask token is not the model's."""
    if not isinstance(recipe.model, BertConfig):
        return
    found = tokenizer.id_of(MASK)
    if found is None:
        raise UserError(f"the tokenizer has no {MASK}: training on masked tokens needs one of BERT's kind")
    if found != recipe.model.mask_token_id:
        raise UserError(
            f"{MASK} is token {found} of the tokenizer and model.mask_token_id={recipe.model.mask_token_id}: "
            f"say --model.mask-token-id {found}"
        )


def masked_report(
    recipe: Recipe, validation: Mapping[str, float], corpus: Corpus, tokenizer: Tokenizer, held_out: Sequence[Batch]
) -> str:
    """The table of held-out documents, the loss curve drawn, and what to do next."""
    run = Path(recipe.run_dir)
    found = unigram(corpus, tokenizer, held_out) if held_out else None
    lines = {} if found is None else {"token frequencies": found.nats_per_token}
    if jax.process_index() == 0:
        loss_curve(
            run / "metrics.jsonl", run / "loss.png", baselines=lines, title=recipe.name, unit="nats per masked token"
        )
    drawn = f"the loss curve is in {run / 'loss.png'}, every step in {run / 'metrics.jsonl'}"
    return "\n".join([comparison(validation, found), drawn, "", what_next(recipe)])


def comparison(validation: Mapping[str, float], found: Unigram | None) -> str:
    """A table: loss and accuracy of masked tokens, of the model and of token frequencies."""
    loss, accuracy = validation.get("validation_loss"), validation.get("validation_masked_accuracy")
    if loss is None or accuracy is None or found is None:
        return "no validation: no document was held out"
    rows = [
        ("this model", loss, accuracy),
        ("token frequencies (unigram)", found.nats_per_token, found.accuracy),
    ]
    lines = [f"{'masked tokens, held out':<30}{'nats per token':>16}{'perplexity':>12}{'accuracy':>12}"]
    for name, nats, right in rows:
        perplexity = f"{math.exp(nats):,.1f}" if nats < 50 else "-"
        lines.append(f"{name:<30}{nats:>16.4f}{perplexity:>12}{right:>12.2%}")
    return "\n".join(lines)


def what_next(recipe: Recipe) -> str:
    """What a finished run is good for."""
    run = recipe.run_dir
    return "\n".join(
        [
            "what to do next:",
            f"  python -m zoo.export {run} {run}/huggingface --format huggingface",
            f"  zoo.load({run!r}).model(input_ids, attention_mask)   # in Python: hidden states [B, T, D]",
        ]
    )
