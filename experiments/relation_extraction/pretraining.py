"""Vocabulary and encoder of our own: WordPiece and masked tokens (BERT), on the training part of the corpus and novels.

The encoder begins with embeddings out of counts (`spectral`), and is trained by `zoo.train`'s recipe bert-tiny-mlm with
other sizes, in two stages as BERT's: on short rows, which are cheap, and then on rows as long as PARE's passages. A
document is a bag's sentences, a line each; nothing of val and test is read.
"""

import json
import time
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

from flax import nnx

from experiments.relation_extraction import spectral
from experiments.relation_extraction.arms import Size
from experiments.relation_extraction.bags import Bag
from experiments.relation_extraction.corpus import Corpus
from experiments.relation_extraction.encoders import small_bert
from experiments.runs import say, write_json
from experiments.shared_folder import training_novels
from experiments.training import train_to_the_end
from zoo.data import Tokenizer, load_tokenizer, open_corpus, train_dataset
from zoo.data.wordpiece_tokenizer import train_wordpiece
from zoo.interop import save_run
from zoo.models import build
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
    """(step, loss in nats per masked token, part of them that is right) on documents that were held out of it, in rows
    as long as those that it is trained on then."""
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


@dataclass(frozen=True)
class Stage:
    """A run of `zoo.train`, one of two."""

    run_dir: Path
    """Its folder."""
    steps: int
    """How many."""
    rows: int
    """Of a step."""
    tokens: int
    """Of a row."""
    learning_rate: float
    """Peak."""
    init_from: Path | None = None
    """The run, or the folder of `count_first`, whose weights it begins with; None: random ones."""


COUNTED = "counted"
"""Folder of the model that the first stage begins with."""


def stages_of(size: Size, out: Path) -> list[Stage]:
    """Short rows, then long ones where the size has steps for them; the last one's folder is out/mlm, and the first one
    begins with out/counted if the size has counts."""
    last, short = out / "mlm", (size.mlm_steps, size.mlm_rows, size.mlm_tokens, size.mlm_learning_rate)
    counted = out / COUNTED if size.mlm_counted_batches else None
    if not size.mlm_long_steps:
        return [Stage(last, *short, init_from=counted)]
    rows = max(1, size.mlm_rows * size.mlm_tokens // size.passage_tokens)
    long = (size.mlm_long_steps, rows, size.passage_tokens, size.mlm_long_learning_rate)
    return [Stage(out / "mlm-short", *short, init_from=counted), Stage(last, *long, init_from=out / "mlm-short")]


def mlm_recipe(
    size: Size, stage: Stage, tokenizer: Tokenizer, text: Path, out: Path, novels: tuple[str, ...]
) -> Recipe:
    """The run of `zoo.train`; out/tokenizer is its vocabulary."""
    base = recipe("bert-tiny-mlm")
    share = size.novels_share if novels else 0.0
    paths = (str(text), *novels) if share else (str(text),)
    every = max(1, stage.steps // 4)
    return replace(
        base,
        model=replace(small_bert(size, tokenizer), dropout=0.0),
        data=replace(
            base.data,
            paths=paths,
            weights=(1 - share, *(share / len(novels) for _ in novels)) if share else (),
            tokenizer=str(out / "tokenizer"),
            sequence_length=stage.tokens,
            batch_size=stage.rows,
        ),
        optimizer=replace(
            base.optimizer,
            learning_rate=stage.learning_rate,
            warmup_steps=max(1, stage.steps // 20),
        ),
        loop=replace(base.loop, steps=stage.steps, log_every=every, evaluate_every=every, checkpoint_every=every,
                     keep_last=1),
        run_dir=str(stage.run_dir),
        init_from=None if stage.init_from is None else str(stage.init_from),
        tensorboard=False,
    )  # fmt: skip


def count_first(recipe: Recipe, tokenizer: Tokenizer, batches: int, folder: Path) -> None:
    """Writes what a stage begins with: a new model with embeddings out of the first batches of that stage's rows."""
    if not folder.is_dir():
        say(f"counting neighbours in {batches:,} batches of {recipe.data.batch_size} x {recipe.data.sequence_length}")
        stream = train_dataset(open_corpus(recipe.data), tokenizer, recipe.data)
        model = build(recipe.model, rngs=nnx.Rngs(recipe.seed))
        spectral.begin_with(model, list(islice(stream, batches)))
        save_run(model, folder, tokenizer=tokenizer)


def pretrain(corpus: Corpus, size: Size, out: Path, *, with_novels: bool = True) -> Pretraining:
    """Trains the encoder in out/mlm, or goes on with it; what is finished is not done again."""
    kept = out / "pretraining.json"
    if not kept.is_file():
        began = time.perf_counter()
        tokenizer, text = vocabulary(corpus, size, out), out / "text.jsonl"
        lines = [json.dumps({"text": document(bag)}, ensure_ascii=False) for bag in corpus.train]
        text.write_text("\n".join(lines) + "\n", encoding="utf-8")
        novels = training_novels() if with_novels else ()
        done, tokens, checked = 0, 0, list[tuple[int, float, float]]()
        for stage in stages_of(size, out):
            say(f"pre-training on masked tokens: {stage.steps} steps of {stage.rows} x {stage.tokens}")
            chosen = mlm_recipe(size, stage, tokenizer, text, out, novels)
            if stage.init_from == out / COUNTED:
                count_first(chosen, tokenizer, size.mlm_counted_batches, stage.init_from)
            train_to_the_end(chosen)
            for line in read_metrics(stage.run_dir / "metrics.jsonl"):
                tokens += int(line["step_tokens"])
                if "validation_loss" in line:
                    losses = float(line["validation_loss"]), float(line["validation_masked_accuracy"])
                    checked.append((done + int(line["step"]), *losses))
            done += stage.steps
        names = tuple(Path(path).name for path in novels) if size.novels_share else ()
        sources = ("training part", *names)
        found = Pretraining(done, tokens, sources, tuple(checked), time.perf_counter() - began)
        write_json(asdict(found), kept)
    return read_pretraining(kept)


def read_pretraining(path: Path) -> Pretraining:
    """From JSON."""
    fields = json.loads(path.read_text())
    return Pretraining(
        **fields | {"sources": tuple(fields["sources"]), "validation": tuple(map(tuple, fields["validation"]))}
    )
