"""Vocabulary and encoder of our own: WordPiece and masked tokens (BERT), on the training part of the corpus and novels.

The encoder is trained by `zoo.train`'s recipe bert-tiny-mlm with other sizes. A document is a bag's sentences, a line
each; nothing of val and test is read. Rows of `mlm_tokens` are shorter than PARE's passages: rows of the position table
beyond them are what they were at the beginning.
"""

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from experiments.relation_extraction.arms import Size
from experiments.relation_extraction.bags import Bag
from experiments.relation_extraction.corpus import Corpus
from experiments.relation_extraction.encoders import small_bert
from experiments.runs import say, write_json
from experiments.shared_folder import training_novels
from experiments.training import train_to_the_end
from zoo.data import Tokenizer, load_tokenizer
from zoo.data.wordpiece_tokenizer import train_wordpiece
from zoo.recipes import recipe
from zoo.recipes.recipe import Recipe
from zoo.training.metrics import read_metrics


@dataclass(frozen=True)
class Pretraining:
    """What pre-training came to."""

    steps: int
    """How many."""
    tokens: int
    """Read in all of them."""
    sources: tuple[str, ...]
    """What the text was."""
    validation: tuple[tuple[int, float, float], ...]
    """(step, loss in nats per masked token, part of them that is right) on documents that were held out of it."""
    seconds: float
    """Of everything."""


def vocabulary(corpus: Corpus, size: Size, out: Path) -> Tokenizer:
    """The corpus' vocabulary, trained on its training sentences; kept in out/tokenizer."""
    folder = out / "tokenizer"
    if not (folder / "done").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        texts = [one.text for bag in corpus.train for one in bag.instances]
        train_wordpiece(texts, size.vocab_size, lowercase=size.lowercase).save(folder)
        (folder / "done").touch()
    return load_tokenizer(folder)


def document(bag: Bag) -> str:
    """A bag as a text: its sentences, a line each."""
    return "\n".join(one.text for one in bag.instances)


def mlm_recipe(size: Size, tokenizer: Tokenizer, text: Path, out: Path, novels: tuple[str, ...]) -> Recipe:
    """The run of `zoo.train`; out/mlm is its folder, out/tokenizer its vocabulary."""
    base = recipe("bert-tiny-mlm")
    share = size.novels_share if novels else 0.0
    paths = (str(text), *novels) if share else (str(text),)
    every = max(1, size.mlm_steps // 4)
    return replace(
        base,
        model=replace(small_bert(size, tokenizer), dropout=0.0),
        data=replace(
            base.data,
            paths=paths,
            weights=(1 - share, *(share / len(novels) for _ in novels)) if share else (),
            tokenizer=str(out / "tokenizer"),
            sequence_length=size.mlm_tokens,
            batch_size=size.mlm_rows,
        ),
        optimizer=replace(
            base.optimizer,
            learning_rate=size.mlm_learning_rate,
            warmup_steps=max(1, size.mlm_steps // 20),
        ),
        loop=replace(base.loop, steps=size.mlm_steps, log_every=every, evaluate_every=every, checkpoint_every=every,
                     keep_last=1),
        run_dir=str(out / "mlm"),
        tensorboard=False,
    )  # fmt: skip


def pretrain(corpus: Corpus, size: Size, out: Path, *, with_novels: bool = True) -> Pretraining:
    """Trains the encoder in out/mlm, or goes on with it; what is finished is not done again."""
    kept = out / "pretraining.json"
    if not kept.is_file():
        began = time.perf_counter()
        tokenizer, text = vocabulary(corpus, size, out), out / "text.jsonl"
        lines = [json.dumps({"text": document(bag)}, ensure_ascii=False) for bag in corpus.train]
        text.write_text("\n".join(lines) + "\n", encoding="utf-8")
        chosen = mlm_recipe(size, tokenizer, text, out, training_novels() if with_novels else ())
        say(f"pre-training on masked tokens: {size.mlm_steps} steps")
        train_to_the_end(chosen)
        lines = read_metrics(out / "mlm" / "metrics.jsonl")
        checked = [line for line in lines if "validation_loss" in line]
        found = Pretraining(
            steps=size.mlm_steps,
            tokens=int(sum(line["step_tokens"] for line in lines)),
            sources=("training part", *(Path(path).name for path in chosen.data.paths[1:])),
            validation=tuple(
                (int(line["step"]), float(line["validation_loss"]), float(line["validation_masked_accuracy"]))
                for line in checked
            ),
            seconds=time.perf_counter() - began,
        )  # fmt: skip
        write_json(asdict(found), kept)
    return read_pretraining(kept)


def read_pretraining(path: Path) -> Pretraining:
    """From JSON."""
    fields = json.loads(path.read_text())
    return Pretraining(
        **fields | {"sources": tuple(fields["sources"]), "validation": tuple(map(tuple, fields["validation"]))}
    )
