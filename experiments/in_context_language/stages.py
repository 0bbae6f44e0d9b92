"""What is trained: one model, in stages that ask for more and more, each a run of `zoo.train` that begins with the
weights of the one before.

Looking a word up is the hard part, and a small model that is given whole books, or word lists, from the start does not
begin to do it. So the first stages are rows of facts (`facts.py`), then word lists and nothing else, short ones
first, then rules, to be said in short, and with glosses to be put in the order that they tell, then sentences, short
ones first, after rules and word list, which are all that one needs, and only then all contexts; the window of local
layers grows with them. What is asked is glossed first (`glosses.py`). A stage with a gate is done again, with other
languages, until enough of what is unseen is exact; if in the end it is in neither direction, the run ends there.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiments.in_context_language.documents import CONTEXTS, Task
from experiments.in_context_language.facts import FactsConfig
from experiments.in_context_language.language import LanguageSize
from zoo.data import DataConfig
from zoo.models import GeminiConfig
from zoo.recipes import Recipe
from zoo.training.loop import LoopConfig
from zoo.training.optimizer import OptimizerConfig


@dataclass(frozen=True)
class Stage:
    """One part of the training."""

    name: str
    """Of its folder."""
    kinds: tuple[str, ...]
    """What documents hold, drawn evenly: names of `lessons.KINDS`; one that is there twice is drawn twice as often."""
    sequence_length: int
    """T. A document has at most so many tokens; example sentences that do not fit are left out."""
    batch_size: int
    """B."""
    steps: int
    """Of one attempt."""
    window: int = 128
    """W of local layers; all but one in a hundred of the questions have room with their answers in that of the stages
    with sentences."""
    facts: FactsConfig = FactsConfig()
    """What rows of facts hold."""
    size: LanguageSize = LanguageSize()
    """Words and rules of a language; those of the last stage are also tested in the end."""
    questions: int = 4
    """Sentences to be translated, of a document."""
    longest: int | None = None
    """Most words of the word list in a sentence that is asked for (`draw_short`); None: sentences as in the test."""
    glosses: bool = True
    """Whether words and sentences are glossed before they are translated. Then the example sentences of a document do
    not count: they are plain pairs, and what is taught is to answer by way of a gloss."""
    orders_asked: int = 16
    """Sentences whose glosses are to be put in order, of a document that asks for nothing else."""
    words_asked: int = 12
    """Words to be translated, of a document about words alone, or facts that come again."""
    most_shots: int = 32
    """Most example sentences of a document; their number is drawn evenly on a log scale."""
    learning_rate: float = 1e-3
    """Peak."""
    tested: Literal["facts", "words", "rules", "order", "sentences"] = "sentences"
    """What is asked for in the end: facts of unseen rows, or, of unseen languages, words after their list, the rules
    in short, or, of sentences as long as the stage's, glosses in order after the rules, or translations after rules and
    word list."""
    gate: float = 0.0
    """Part of these that should be exact."""
    attempts: int = 1
    """How often the stage is done, each time from where it ended before, until the mean of both directions is `gate`.
    The run goes on after the last attempt if one of the directions is."""

    @property
    def task(self) -> Task:
        """What is done with words and sentences."""
        return "gloss" if self.glosses else "translate"


@dataclass(frozen=True)
class Workload:
    """Sizes of one invocation."""

    stages: tuple[Stage, ...]
    """In their order."""
    embed_dim: int = 160
    """Model width."""
    layer_types: tuple[str, ...] = ("local", "local", "global", "local", "global")
    """All layers. Two local ones first: one gathers the words of a fact, the next carries them to what follows."""
    query_like_key: float = 0.95
    """c: global layers begin with queries that are like the keys of the same token, W_Q = c W_K + sqrt(1 - c^2) W."""
    num_heads: int = 5
    """Heads of 32 dimensions, of queries and of keys."""
    hidden_dim: int = 448
    """Feed-forward width."""
    vocab_size: int = 648
    """Rows of the embedding; the tokenizer has 635, and 6 more stand for media."""
    warmup_steps: int = 60
    """Of every stage."""
    seeds: int = 3
    """Runs."""
    gate_languages: int = 40
    """Unseen languages, or rows of facts, of the test after every stage."""
    test_languages: int = 40
    """Unseen languages that are translated in the end."""
    test_questions: int = 1
    """Sentences of each of them, in each direction."""
    test_shots: int = 16
    """Example sentences in every context but "sentences"."""
    contexts: tuple[str, ...] = tuple(CONTEXTS)
    """Of the ablation."""
    shots: tuple[int, ...] = (1, 4, 16, 64, 256)
    """Of the many-shot curve: every other one of `synthetic.SHOTS`, for time."""
    wrong_books: tuple[str, ...] = ("all",)
    """Contexts that are also tried with the book of another language."""


@dataclass(frozen=True)
class Run:
    """One training run."""

    seed: int
    """Of the initial weights, of the languages, and of their order."""

    @property
    def name(self) -> str:
        """File name."""
        return f"seed-{self.seed}"


def model_of(workload: Workload, window: int | None = None) -> GeminiConfig:
    """The architecture with a window of local layers, by default the last stage's. Global layers see no positions,
    local ones only distances within their window: a prompt may be longer than any training document."""
    layers = workload.layer_types
    return GeminiConfig(
        vocab_size=workload.vocab_size,
        embed_dim=workload.embed_dim,
        num_layers=len(layers),
        num_heads=workload.num_heads,
        num_kv_heads=workload.num_heads,
        head_dim=32,
        hidden_dim=workload.hidden_dim,
        sliding_window=workload.stages[-1].window if window is None else window,
        layer_types=layers,
        global_rope=False,
        max_position_embeddings=32_768,
    )


def recipe_of(
    run: Run, workload: Workload, stage: Stage, documents: Path, tokenizer: Path, begin: Path, folder: Path
) -> Recipe:
    """A stage as `zoo.train` takes it; `begin` has the weights it begins with."""
    return Recipe(
        name=f"in-context-language, {run.name}, {stage.name}",
        needs_data=True,
        model=model_of(workload, stage.window),
        data=DataConfig(
            paths=(str(documents),),
            format="interleaved",
            packing="first_fit",
            tokenizer=str(tokenizer),
            sequence_length=stage.sequence_length,
            batch_size=stage.batch_size,
            validation_fraction=0,  # every document is of a language that was not seen before
            seed=run.seed,
        ),
        optimizer=OptimizerConfig(
            learning_rate=stage.learning_rate,
            warmup_steps=min(workload.warmup_steps, stage.steps // 2),
            schedule="wsd",
            b2=0.98,
            weight_decay=0.05,
        ),
        loop=LoopConfig(
            steps=stage.steps,
            log_every=max(1, stage.steps // 20),
            evaluate_every=stage.steps,
            checkpoint_every=max(1, stage.steps // 4),
            keep_last=1,
            checksums=False,
        ),
        run_dir=str(folder),
        init_from=str(begin),
        seed=run.seed,
        sample_tokens=0,
        tensorboard=False,
    )
