"""One seed: a model is trained, exported in every kind of weights, loaded again and scored on held-out text."""

import contextlib
import json
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import zoo
from experiments.quantisation.kinds import BFLOAT16, EXECUTION, FLOAT32, PACKINGS, Workload, recipe_of
from experiments.training import train_to_the_end
from zoo.data import Tokenizer, open_corpus
from zoo.inference import score_text
from zoo.interop import packed_bytes, save_quantised, save_run


@dataclass(frozen=True)
class Score:
    """One kind of weights of one model."""

    perplexity: float
    """exp of the mean loss per token of held-out text."""
    bits_per_byte: float
    """The same loss, comparable between tokenizers."""
    bytes_on_disk: int
    """Of the files that hold weights: measured where they are packed, else parameters times their width."""
    formula: int | None
    """Bytes of the packed weights by `packed_bytes`; None where nothing is packed."""


@dataclass(frozen=True)
class SeedResult:
    """What one seed found."""

    seed: int
    """Of the initial weights and of the order of the data."""
    tokens: int
    """Scored tokens of held-out text."""
    training_seconds: float
    """Of `zoo.train`."""
    scores: dict[str, Score]
    """By kind of weights."""


def run_seed(seed: int, workload: Workload, folder: Path, tokenizer: Path) -> SeedResult:
    """Trains in `folder`, which is removed in the end; what `zoo.train` prints goes to a log beside it."""
    recipe, began = recipe_of(seed, workload, str(tokenizer), str(folder / "run")), time.time()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".log"), "a") as log, contextlib.redirect_stdout(log):
        train_to_the_end(recipe)
    seconds = time.time() - began
    text = held_out_text(workload, tokenizer)
    trained = zoo.load(folder / "run", execution=EXECUTION)
    words = trained.tokenizer
    assert words is not None
    parameters = trained.model.config.num_parameters()
    scores, tokens = {}, 0

    def score(kind: str, path: Path, size: int, formula: int | None, param_dtype=None) -> None:
        nonlocal tokens
        model = zoo.load(path, execution=EXECUTION, param_dtype=param_dtype).decoder
        found = score_text(model, words, text, context=workload.sequence_length, overlap=workload.sequence_length // 4)
        tokens = found.tokens
        scores[kind] = Score(found.perplexity, found.bits_per_byte, size, formula)

    score(FLOAT32, folder / "run", 4 * parameters, None)
    save_run(trained.model, folder / BFLOAT16, tokenizer=words, dtype=BFLOAT16)
    score(BFLOAT16, folder / BFLOAT16, 2 * parameters, None, "stored")
    for kind in workload.kinds:
        save_quantised(trained.model, folder / "packed", PACKINGS[kind], tokenizer=words, overwrite=True)
        size = sum(file.stat().st_size for file in (folder / "packed").glob("*.safetensors"))
        score(kind, folder / "packed", size, packed_bytes(trained.model.config, PACKINGS[kind]))
    shutil.rmtree(folder)
    return SeedResult(seed, tokens, seconds, scores)


def held_out_text(workload: Workload, tokenizer: Path) -> str:
    """The first held-out documents, which are the same for all seeds, one after the other."""
    corpus = open_corpus(recipe_of(0, workload, str(tokenizer), "unused").data)
    parts: list[str] = []
    for source in corpus.sources:
        for number in range(len(source.validation)):
            parts.append(corpus.text(source.validation[number]))
            if sum(map(len, parts)) >= workload.scored_bytes:
                return "\n".join(parts)[: workload.scored_bytes]
    return "\n".join(parts)


def train_tokenizer(workload: Workload, folder: Path) -> str:
    """Trains the tokenizer that all seeds share, once; returns what the text is."""
    recipe = recipe_of(0, workload, None, "unused")
    corpus = open_corpus(recipe.data)
    if not folder.is_dir():
        made: Tokenizer = zoo.data.tokenizer_for(corpus, recipe.data)
        made.save(folder)
    return corpus.description


def read_result(path: Path) -> SeedResult:
    """The inverse of `write_result`."""
    fields = json.loads(path.read_text())
    return SeedResult(**fields | {"scores": {kind: Score(**score) for kind, score in fields["scores"].items()}})


def write_result(result: SeedResult, path: Path) -> None:
    """One JSON file, whole or not at all."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(asdict(result)) + "\n")
    os.replace(unfinished, path)
