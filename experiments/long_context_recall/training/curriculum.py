"""What a model is trained on, stage by stage, as data.

Matching the key is the hard part: it is learnt first, on rows of facts and nothing else, with keys that are never the
same; then over the distance that Gemini's words put between key and number; then between a few sentences, and in longer
and longer texts.
"""

from dataclasses import dataclass, replace
from typing import Literal

from experiments.long_context_recall.training.keys import TRAINED, KeyKind
from zoo.models import GeminiConfig
from zoo.training.optimizer import OptimizerConfig


@dataclass(frozen=True)
class Stage:
    """A part of a run whose rows are of one kind."""

    name: str
    """Of its folder."""
    form: Literal["facts", "questions", "document"]
    """See `documents`."""
    length: int
    """T, tokens that are read in a row."""
    batch_size: int
    """B, rows in a step."""
    window: int
    """Of local layers."""
    needles: int
    """Keys in a row; 0: only text."""
    questions: int
    """In a document; other rows ask to their end."""
    steps: int
    """Of one attempt."""
    learning_rate: float
    """Peak; each attempt has a schedule of its own, from a warm-up down to a twentieth."""
    lm_weight: float = 0.0
    """What a token of the text counts, a digit of an answer being 1."""
    first_weight: float = 1.0
    """What the first digit of an answer counts: the others follow from it."""
    key_weight: float = 0.0
    """What a token of a key that is asked for counts, from its second on. It can be foretold by looking up the tokens
    before it: that is learnt much sooner than the numbers, and the numbers then follow."""
    digits: int = 7
    """Of a number; the tests have 7."""
    keys: tuple[KeyKind, ...] = TRAINED
    """Kinds of keys, drawn evenly; one that is there twice is drawn twice as often."""
    gate: float = 0.0
    """Part of unseen keys whose number should be right at the end."""
    attempts: int = 1
    """How often the stage is done, each time from where it ended before, until `gate` is reached. The run goes on after
    the last one in any case."""
    reach: int = 0
    """Positions are spread, with jumps, over as many as this; 0: they rise by one."""


@dataclass(frozen=True)
class Workload:
    """Sizes of one invocation."""

    stages: tuple[Stage, ...]
    """In their order."""
    embed_dim: int = 128
    """Model width."""
    num_layers: int = 3
    """Layers. In principle the first can gather the tokens of a key where it ends, the second carry that to the digits
    and to the end of the question, and the third match."""
    layer_types: tuple[str, ...] = ("local", "local", "global")
    """The repeating pattern."""
    num_heads: int = 4
    """Query heads, of 32 dimensions."""
    num_kv_heads: int = 2
    """Key and value heads."""
    hidden_dim: int = 384
    """Feed-forward width."""
    vocab_size: int = 2048
    """Tokens of the tokenizer and rows of the embedding."""
    query_like_key: float = 0.95
    """c: global layers begin with queries that are like the keys of the same token, W_Q = c W_K + sqrt(1 - c^2) W."""
    embedding_rate: float = 0.3
    """Factor of the embedding's updates: what is learnt should not be learnt token by token."""
    global_rope: bool = False
    """Whether global layers see positions."""
    rope_theta: float = 10_000.0
    """Base of the rotation of global layers, where they rotate; that of local layers is always 10,000. (Results of runs
    carry a digest of the names and values here: a new field would make all of them strangers.)"""
    train_bytes: int = 8_000_000
    """Of the novels that are trained on."""
    tokenizer_bytes: int = 2_000_000
    """Of them, for the tokenizer."""
    text_passages: int = 24
    """Of held-out novels, each of `text_length` tokens, to measure the language model on."""
    text_length: int = 2048
    """Tokens of a passage."""
    test_rows: int = 16
    """Batches of a stage with unseen keys that are answered after each attempt."""

    @property
    def trained_length(self) -> int:
        """T of the last stage."""
        return self.stages[-1].length

    @property
    def steps(self) -> int:
        """Of one attempt at every stage."""
        return sum(stage.steps for stage in self.stages)


def model_of(workload: Workload, window: int) -> GeminiConfig:
    """The architecture with a window of local layers."""
    return GeminiConfig(
        vocab_size=workload.vocab_size,
        embed_dim=workload.embed_dim,
        num_layers=workload.num_layers,
        num_heads=workload.num_heads,
        num_kv_heads=workload.num_kv_heads,
        head_dim=32,
        hidden_dim=workload.hidden_dim,
        sliding_window=window,
        layer_types=workload.layer_types,
        global_rope=workload.global_rope,
        global_rope_theta=workload.rope_theta if workload.global_rope else None,
        max_position_embeddings=workload.trained_length,
    )


def optimizer_of(stage: Stage) -> OptimizerConfig:
    """AdamW, as in the pilot."""
    return OptimizerConfig(
        learning_rate=stage.learning_rate,
        warmup_steps=min(60, stage.steps // 5),
        schedule="cosine",
        final_learning_rate_fraction=0.05,
        b2=0.98,
        weight_decay=0.05,
    )


WINDOW = 64
"""Covers a question of Gemini's wording with its answer: the last digit sees the key."""
FACTS = Stage("facts", "facts", 64, 8, 8, 4, 0, 1200, 1.5e-3, key_weight=1.0, digits=1, gate=0.95, attempts=3)
NUMBERS = replace(FACTS, name="numbers", length=192, window=WINDOW, needles=6, steps=500, digits=7, gate=0.9)
FULL = Workload(
    stages=(
        FACTS,
        NUMBERS,
        replace(NUMBERS, name="questions", form="questions", length=320, needles=5, steps=600),
        Stage("short", "document", 256, 8, WINDOW, 3, 3, 300, 1e-3, 0.05, 2.0, key_weight=0.5, gate=0.9, attempts=3),
        Stage("512", "document", 512, 4, WINDOW, 6, 6, 300, 1.5e-3, 0.05, 2.0, key_weight=0.5, gate=0.8, attempts=3),
        Stage("1024", "document", 1024, 4, WINDOW, 10, 10, 200, 1.5e-3, 0.1, key_weight=0.5),
        Stage("2048", "document", 2048, 2, WINDOW, 14, 14, 200, 1.5e-3, 0.1, key_weight=0.5),
        Stage("4096", "document", 4096, 1, WINDOW, 16, 16, 150, 1.5e-3, 0.1, key_weight=0.5),
        Stage("8192", "document", 8192, 1, WINDOW, 16, 16, 100, 1e-3, 0.2, key_weight=0.5),
    )
)
