"""What is compared, on what, and how large: arms, data sets, sizes and runs."""

from dataclasses import dataclass
from typing import Literal

from experiments.choosing import choose
from experiments.relation_extraction.reader import Relations
from zoo.errors import UserError

Head = Literal["passage", "attention", "average", "at least one", "mnre"]
Encoder = Literal["pre-trained", "scratch", "pcnn", "linear"]
LINEAR, AVERAGE, ATTENTION, PARE, NO_FLOW = "linear", "average", "attention", "PARE", "PARE, no flow"
SCRATCH = ", scratch"


@dataclass(frozen=True)
class Arm:
    """One way to make scores of relations out of a bag."""

    name: str
    """In tables and file names."""
    what: str
    """One line."""
    head: Head
    """passage: the bag as one row, PARE's head, sigmoid; the others: vectors of sentences, softmax."""
    encoder: Encoder = "pre-trained"
    """pre-trained: by masked tokens on the training text and novels, or the folder that --encoder names; scratch: the
    same architecture with random weights; pcnn: convolutions over pre-trained words; linear: no network at all."""
    blocks: bool = False
    """A token sees its own sentence only, and positions begin anew with every sentence."""
    own_na: bool = False
    """`NA` has a scorer of its own."""
    see_padding: bool = False
    """Padding takes part in the relations' attention, and passages are filled up to the limit: the authors' code."""
    detached: bool = False
    """No gradient flows through the query of selective attention (DiS-ReX)."""


ARMS = (
    Arm(LINEAR, "logistic regressions on words (linear.py)", "average", "linear"),
    Arm(AVERAGE, "mean of the sentences' vectors", "average"),
    Arm(ATTENTION, "selective attention over the sentences' vectors", "attention"),
    Arm("at least one", "the sentence that is surest of the relation", "at least one"),
    Arm("MNRE", "attention with queries of relation and language", "mnre"),
    Arm(PARE, "all sentences in one passage, attention of every relation over its tokens", "passage"),
    Arm(NO_FLOW, "as PARE, but a token sees its own sentence only", "passage", blocks=True),
    Arm("PARE, own NA", "as PARE, NA with a scorer of its own", "passage", own_na=True),
    Arm("PARE, padding", "as PARE, padding takes part in the attention", "passage", see_padding=True),
    Arm("PCNN", "convolutions and three pools, selective attention", "attention", "pcnn"),
    Arm(AVERAGE + SCRATCH, "average without pre-training", "average", "scratch"),
    Arm(ATTENTION + SCRATCH, "attention without pre-training", "attention", "scratch"),
    Arm(PARE + SCRATCH, "PARE without pre-training", "passage", "scratch"),
    Arm(NO_FLOW + SCRATCH, "PARE, no flow, without pre-training", "passage", "scratch", blocks=True),
)
LANGUAGES_NEEDED = ("MNRE",)
"""Arms for corpora whose lines name a language."""


@dataclass(frozen=True)
class Size:
    """Sizes of the models and of their training: the same for all arms that have the part in question."""

    embed_dim: int = 128
    """Width D of the encoder."""
    num_layers: int = 2
    """Its layers."""
    num_heads: int = 4
    """Its attention heads."""
    hidden_dim: int = 512
    """Its feed-forward width."""
    vocab_size: int = 8192
    """Pieces, at most, of the WordPiece vocabulary that is trained on the training text."""
    lowercase: bool = False
    """Lower-case texts; that also drops accents, and with them the vowel signs of Indic scripts."""
    passage_tokens: int = 256
    """Most tokens of a bag, for all arms."""
    sentence_tokens: int = 128
    """Most tokens of a sentence with its markers, [CLS] and [SEP]; of a bag of many the share of each is smaller."""
    most_sentences: int = 4
    """Of a bag, drawn anew in every epoch; in evaluation fixed by the seed."""
    length_step: int = 64
    """Rows are filled up to a multiple of it. Larger: fewer programs to compile, and more padding to compute."""
    batch_bags: int = 32
    """Bags in a step."""
    epochs: int = 8
    """Through all training bags; the weights of the best one on val are kept."""
    learning_rate: float = 1e-3
    """Peak, after a linear warm-up; then a cosine to 0."""
    head_rate: float = 20.0
    """What stands on the encoder learns so many times as fast, for it begins with random weights."""
    warmup_share: float = 0.1
    """Part of all steps. (The authors' 30,000 bags are more than a small corpus has in all epochs.)"""
    weight_decay: float = 0.01
    """Of matrices and embeddings."""
    dropout: float = 0.1
    """Of the encoder's hidden states. Vectors of bags of the arms with a softmax have another one of 0.5 (OpenNRE)."""
    mlm_counted_batches: int = 1500
    """Batches of pre-training whose neighbouring pieces are counted before it begins: embeddings out of counts
    (`spectral`) are what it begins with. 0: random ones."""
    mlm_steps: int = 4000
    """Steps of pre-training on masked tokens, 0: none."""
    mlm_rows: int = 48
    """Rows of such a step."""
    mlm_tokens: int = 64
    """Tokens of such a row, at most `passage_tokens`."""
    mlm_learning_rate: float = 2e-3
    """Its peak."""
    mlm_long_steps: int = 1600
    """Steps after them with as many tokens, on rows of `passage_tokens`, whose places are learnt then (BERT has longer
    rows in its last tenth as well). 0: none."""
    mlm_long_learning_rate: float = 2e-3
    """Their peak."""
    novels_share: float = 0.5
    """Part of the rows that are English novels, where the folder `shared` has them."""
    linear_penalties: tuple[float, ...] = (0.1, 0.3)
    """Of the linear baseline, chosen on val."""
    linear_least: int = 5
    """Bags that one of its features must occur in."""
    linear_steps: int = 40
    """Of L-BFGS."""


SIZES = {
    # 7 % of its bags have more than three sentences.
    "gids": Size(
        lowercase=True,
        passage_tokens=192,
        sentence_tokens=64,
        most_sentences=3,
        epochs=5,
        dropout=0.2,
        mlm_steps=1600,
        mlm_long_steps=800,
    ),
    # Seven times as many bags: fewer epochs, and shorter passages. The two mentions of one line have 74 tokens.
    "indore": Size(
        vocab_size=12_288,
        passage_tokens=128,
        sentence_tokens=80,
        most_sentences=2,
        length_step=40,
        epochs=2,
        mlm_steps=2400,
        mlm_long_steps=600,
    ),
    # 318 pairs with five parallel sentences each: little text to pre-train on.
    "relx": Size(
        passage_tokens=240,
        sentence_tokens=48,
        most_sentences=5,
        length_step=48,
        batch_bags=16,
        epochs=8,
        dropout=0.2,
        mlm_steps=1000,
        mlm_long_steps=300,
    ),
    "quick": Size(
        embed_dim=32,
        num_layers=1,
        num_heads=2,
        hidden_dim=64,
        vocab_size=400,
        passage_tokens=64,
        sentence_tokens=32,
        most_sentences=2,
        length_step=32,
        epochs=4,
        learning_rate=5e-3,
        head_rate=5.0,
        mlm_steps=30,
        mlm_rows=8,
        mlm_tokens=32,
        mlm_long_steps=10,
        linear_penalties=(0.1,),
        linear_least=2,
        linear_steps=20,
    ),
    # A corpus of the user's, our own small encoder.
    "own": Size(),
    # A BERT of full size (--encoder) as PARE's and DiS-ReX's code has it, but for the warm-up. Rate, batch and epochs
    # are the authors'.
    "bert": Size(
        passage_tokens=512,
        sentence_tokens=256,
        most_sentences=16,
        length_step=128,
        epochs=5,
        learning_rate=2e-5,
        head_rate=1.0,
        mlm_steps=0,
    ),
}
"""By name: those of the data sets that are known, and of the others."""
DEFAULT_ARMS = {
    "gids": (LINEAR, AVERAGE, ATTENTION, "at least one", PARE, NO_FLOW, "PCNN", AVERAGE + SCRATCH),
    "indore": (LINEAR, ATTENTION, "MNRE", PARE, "PCNN"),
    "relx": (LINEAR, AVERAGE, ATTENTION, "at least one", "MNRE", PARE, NO_FLOW, "PCNN"),
    "quick": (LINEAR, ATTENTION, PARE),
    "own": (LINEAR, AVERAGE, ATTENTION, "at least one", PARE, NO_FLOW, "PCNN"),
    "bert": (LINEAR, AVERAGE, ATTENTION, "at least one", PARE, NO_FLOW),
}  # fmt: skip
"""Of each size; corpora that name languages also get those of `LANGUAGES_NEEDED`."""


def arm_named(name: str) -> Arm:
    """Raises `UserError` for an unknown one."""
    return choose(name, {arm.name: arm for arm in ARMS})


@dataclass(frozen=True)
class Run:
    """One model."""

    arm: str
    """Name of its arm."""
    seed: int
    """Of the initial weights of everything that is not pre-trained, of dropout, of orders and draws."""

    @property
    def name(self) -> str:
        """File name."""
        return f"{self.arm.replace(', ', '-').replace(' ', '-')}-seed-{self.seed}"


def runs_of(arms: tuple[str, ...], seeds: tuple[int, ...]) -> list[Run]:
    """Seed by seed, so that an early end leaves whole seeds; the linear model has no seed but 0."""
    chosen = [arm_named(name) for name in arms]
    return [Run(arm.name, seed) for seed in seeds for arm in chosen if arm.encoder != "linear" or seed == seeds[0]]


def arms_of(names: tuple[str, ...], size: str, relations: Relations, speaks: bool, folder: bool) -> tuple[str, ...]:
    """The arms that are asked for, or those of the size.

    speaks: the corpus names languages. folder: the encoder comes from a folder, so that nothing begins from scratch.

    Raises:
      UserError: an arm is unknown, or is not for this corpus or encoder.
    """
    chosen = names
    if not names:
        more = tuple(name for name in LANGUAGES_NEEDED if speaks and name not in DEFAULT_ARMS[size])
        chosen = DEFAULT_ARMS[size] + (more if size in ("own", "bert") else ())
    for arm in map(arm_named, chosen):
        if arm.name in LANGUAGES_NEEDED and not speaks:
            raise UserError(f"--arms: {arm.name!r} needs a corpus whose lines name their language")
        if arm.own_na and relations.na is None:
            raise UserError(f"--arms: {arm.name!r} needs a corpus with the class NA")
        if folder and arm.encoder in ("scratch", "pcnn"):
            raise UserError(f"--arms: {arm.name!r} has no encoder of the folder that --encoder names: leave it out")
    return chosen
