"""What is trained: one model, in stages that ask for more and more, each a run of `zoo.train` that begins with the
weights of the one before.

Looking a word up is the hard part, and a small model that is given whole books, or word lists, from the start does not
begin to do it. So the first stages are rows of facts (`facts.py`), then word lists and nothing else, short ones first;
the window of local layers grows with them. A stage with a gate is done again, with other
languages, until unseen words are found; if in the end they are in neither direction, the run ends there.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from experiments.in_context_language.facts import FactsConfig
from experiments.in_context_language.language import Vocabulary
from experiments.in_context_language.synthetic import CONTEXTS, SHOTS
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
    """W of local layers; a question with its answer has room in that of the last stages."""
    facts: FactsConfig = FactsConfig()
    """What rows of facts hold."""
    vocabulary: Vocabulary = Vocabulary()
    """Words of a language."""
    questions: int = 4
    """Sentences to be translated, of a document."""
    words_asked: int = 12
    """Words to be translated, of a document about words alone, or facts that come again."""
    most_shots: int = 32
    """Most example sentences of a document; their number is drawn evenly on a log scale."""
    learning_rate: float = 1e-3
    """Peak."""
    gate: float = 0.0
    """Part of unseen words that should be translated exactly at the end; in a stage of facts alone, of facts."""
    attempts: int = 1
    """How often the stage is done, each time from where it ended before, until the mean of both directions is `gate`.
    The run goes on after the last attempt if one of the directions is."""

    @property
    def is_facts(self) -> bool:
        """Whether there is nothing but facts to learn."""
        return set(self.kinds) == {"facts"}


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
    vocab_size: int = 640
    """Rows of the embedding; the tokenizer has 632."""
    warmup_steps: int = 60
    """Of every stage."""
    seeds: int = 3
    """Runs."""
    word_languages: int = 40
    """Unseen languages of the test of words after every stage."""
    test_languages: int = 25
    """Unseen languages that are translated in the end."""
    test_questions: int = 2
    """Sentences of each of them, in each direction."""
    test_shots: int = 32
    """Example sentences in every context but "sentences"."""
    contexts: tuple[str, ...] = tuple(CONTEXTS)
    """Of the ablation."""
    shots: tuple[int, ...] = SHOTS
    """Of the many-shot curve."""
    wrong_books: tuple[str, ...] = ("rules + word list", "all")
    """Contexts that are also tried with the book of another language."""


SEVEN_WORDS = Vocabulary(nouns=3, transitive_verbs=1, intransitive_verbs=1, adjectives=1, prepositions=1)
FACTS = Stage("facts", ("facts",), 96, 8, 1800, window=8, learning_rate=1.5e-3, words_asked=8, gate=0.95, attempts=3)
SPELLED = replace(
    FACTS,
    name="spelled facts",
    sequence_length=128,
    steps=600,
    window=16,
    facts=FactsConfig(words=(1, 3), letters=(2, 5)),
)
FULL = Workload(
    stages=(
        FACTS,
        SPELLED,
        Stage(
            "few words",
            kinds=("recall", "recall", "lookup"),
            sequence_length=192,
            batch_size=6,
            steps=800,
            window=32,
            learning_rate=1.5e-3,
            vocabulary=SEVEN_WORDS,
            words_asked=10,
            gate=0.9,
            attempts=3,
        ),
        Stage(
            "words",
            kinds=("recall", "lookup", "lookup"),
            sequence_length=640,
            batch_size=4,
            steps=500,
            words_asked=16,
            gate=0.8,
            attempts=3,
        ),
        Stage(
            "short documents",
            kinds=("lookup", "rules + word list", "rules + word list", "word list + sentences", "sentences"),
            sequence_length=1024,
            batch_size=4,
            steps=1400,
            questions=8,
            most_shots=6,
        ),
        Stage(
            "all contexts",
            # One document in ten asks for words, so that this is not lost.
            kinds=("lookup", *CONTEXTS),
            sequence_length=3072,
            batch_size=1,
            steps=1500,
            questions=8,
        ),
    )
)
QUICK = Workload(
    stages=(
        Stage("facts", ("facts",), 96, 4, 4, window=8, words_asked=4),
        Stage("words", ("recall", "lookup"), 512, 2, 6, vocabulary=SEVEN_WORDS, words_asked=4),
        Stage(
            "all contexts",
            ("lookup", "rules + word list", "sentences"),
            512,
            2,
            6,
            vocabulary=SEVEN_WORDS,
            questions=1,
            words_asked=4,
            most_shots=2,
        ),  # fmt: skip
    ),
    embed_dim=32,
    layer_types=("local", "global"),
    num_heads=1,
    hidden_dim=64,
    warmup_steps=2,
    seeds=1,
    word_languages=1,
    test_languages=1,
    test_questions=1,
    test_shots=4,
    contexts=("none", "sentences", "rules + word list"),
    shots=(1, 4),
    wrong_books=("rules + word list",),
)
WORKLOADS = {"full": FULL, "quick": QUICK}


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
