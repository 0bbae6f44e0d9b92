"""The sizes: all stages of the full run, of the same without glosses, and of --quick."""

from dataclasses import replace

from experiments.in_context_language.documents import CONTEXTS
from experiments.in_context_language.facts import FactsConfig
from experiments.in_context_language.language import LanguageSize
from experiments.in_context_language.stages import Stage, Workload

FEW_RULES = LanguageSize(adjectives=6, prepositions=0)
"""The languages of the study."""
SEVEN_WORDS = replace(FEW_RULES, nouns=4, transitive_verbs=1, intransitive_verbs=1, adjectives=1)
TWELVE_WORDS = replace(FEW_RULES, nouns=5, transitive_verbs=2, intransitive_verbs=2, adjectives=3)
FACTS = Stage("facts", ("facts",), 96, 8, 1800, window=8, learning_rate=1.5e-3, words_asked=8,
              tested="facts", gate=0.95, attempts=3)  # fmt: skip
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
            size=SEVEN_WORDS,
            words_asked=10,
            tested="words",
            gate=0.85,
            attempts=3,
        ),
        Stage(
            "words",
            kinds=("recall", "lookup", "lookup"),
            sequence_length=640,
            batch_size=4,
            steps=500,
            size=FEW_RULES,
            words_asked=16,
            tested="words",
            gate=0.8,
            attempts=3,
        ),
        Stage(
            "rules",
            # One question a document: what counts is nearly all that the rules are read for it.
            kinds=("lookup", *("order",) * 8),
            sequence_length=512,
            batch_size=5,
            steps=900,
            size=FEW_RULES,
            longest=2,
            orders_asked=1,
            words_asked=8,
            tested="rules",
            gate=0.9,
            attempts=3,
        ),
        Stage(
            "order",
            # Some documents ask for words, here and below, so that this is not lost.
            kinds=("lookup", *("order",) * 4),
            sequence_length=448,
            batch_size=6,
            steps=1000,
            size=FEW_RULES,
            longest=5,
            orders_asked=10,
            words_asked=16,
            tested="order",
            gate=0.5,
            attempts=3,
        ),
        Stage(
            "short sentences",
            kinds=("lookup", "order", *("rules + word list",) * 6),
            sequence_length=1024,
            batch_size=3,
            steps=1300,
            # Fewer words, for there is room for twice as many questions then.
            size=TWELVE_WORDS,
            longest=3,
            questions=11,
            words_asked=16,
            # What is missing comes with the next stage, at the same cost: this one tells hopeless runs.
            gate=0.3,
        ),
        Stage(
            "sentences",
            kinds=("lookup", "order", *("rules + word list",) * 6),
            sequence_length=1344,
            batch_size=2,
            steps=1200,
            window=160,
            size=FEW_RULES,
            questions=10,
            words_asked=16,
        ),
        Stage(
            "all contexts",
            kinds=("lookup", *CONTEXTS),
            sequence_length=2112,
            batch_size=1,
            steps=900,
            window=160,
            size=FEW_RULES,
            questions=6,
            most_shots=16,
        ),
    )
)
QUICK = Workload(
    stages=(
        Stage("facts", ("facts",), 96, 4, 4, window=8, words_asked=4, tested="facts"),
        Stage("words", ("recall", "lookup"), 512, 2, 6, size=SEVEN_WORDS, words_asked=4, tested="words"),
        Stage(
            "all contexts",
            ("lookup", "rules + word list", "sentences"),
            640,
            2,
            6,
            size=SEVEN_WORDS,
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
    gate_languages=1,
    test_languages=1,
    test_questions=1,
    test_shots=4,
    contexts=("none", "sentences", "rules + word list"),
    shots=(1, 4),
    wrong_books=("rules + word list",),
)


def without_glosses(workload: Workload) -> Workload:
    """For comparison: what is asked is translated at once, and nothing teaches to gloss."""

    def plain(stage: Stage) -> Stage:
        # What such a run can do is measured, whatever it is.
        gate = 0.0 if stage.tested == "sentences" else stage.gate
        kinds = tuple(kind for kind in stage.kinds if kind != "order")
        return replace(stage, glosses=False, kinds=kinds, gate=gate)

    return replace(
        workload, stages=tuple(plain(stage) for stage in workload.stages if stage.tested not in ("rules", "order"))
    )


WITHOUT_GLOSSES = "-without-glosses"
WORKLOADS = {"full": FULL, "quick": QUICK}
WORKLOADS |= {f"{size}{WITHOUT_GLOSSES}": without_glosses(workload) for size, workload in WORKLOADS.items()}
