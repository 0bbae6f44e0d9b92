"""Sizes of the study, its families of tasks, and which languages each update has new data of."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from experiments import kept
from experiments.choosing import choose

FamilyName = Literal["tagging", "classification", "transduction"]
MADE_UP = "made-up"
"""Data that is made in code."""


@dataclass(frozen=True)
class Family:
    """One family of tasks."""

    name: FamilyName
    """tagging: universal parts of speech. classification: sentiment of tweets. transduction: inflected forms."""
    data: str
    """Folder in shared/data."""
    languages: tuple[str, ...]
    """ISO 639-3 codes (or those of the folder): all that have training data and a vector of their own in URIEL."""
    subsets: tuple[tuple[str, ...], ...]
    """Languages that each update has new data of; set before anything was trained."""
    length: int
    """Most tokens of a row."""
    per_language: int
    """Most stage-0 rows of a language."""
    test: int
    """Most test rows of a language."""
    held_out: bool = False
    """Whether development and test rows are lines of the training file that nothing trains on. Half of sigmorphon2022's
    test forms have a set of features that no training line has, which asks for another thing than this study: a model
    of stage 0 wrote one form in eight."""
    dropout: float = 0.1
    """Of hidden numbers, in training."""
    stage0_steps: int = 2400
    """Steps on all languages."""
    stage0_rate: float = 2e-3
    """Peak learning rate of stage 0."""


TAGGING = Family(
    "tagging",
    "ud_pos",
    ("afr", "eng", "fra", "ita", "ell", "hun", "lit", "mar", "tam", "tel", "tur", "vie", "cym", "mlt", "wol", "fao",
     "glg"),
    (("eng",), ("afr", "fao"), ("tur",), ("wol", "cym"), ("ita",), ("hun", "tel"), ("mlt",), ("fra", "ell")),
    length=56,
    per_language=200,
    test=100,
)  # fmt: skip
CLASSIFICATION = Family(
    "classification",
    "afrisenti",
    ("amh", "arq", "ary", "hau", "ibo", "kin", "pcm", "por", "swa", "tso", "twi", "yor"),
    (("hau",), ("kin", "ibo"), ("yor",), ("pcm", "amh"), ("ary",), ("por", "twi"), ("swa",), ("arq", "tso")),
    length=40,
    per_language=400,
    test=250,
)
TRANSDUCTION = Family(
    "transduction",
    "sigmorphon2022",
    ("ang", "ara", "asm", "evn", "got", "heb", "hun", "hye", "kat", "kaz", "khk", "kor", "krl", "lud", "non", "pol",
     "slk", "tur", "vep"),
    (("tur",), ("got", "hye"), ("krl",), ("kat", "kor"), ("pol",), ("ara", "hun"), ("khk",), ("slk", "heb")),
    length=44,
    per_language=600,
    test=200,
    held_out=True,
    dropout=0.0,
    stage0_steps=8000,
    stage0_rate=5e-3,
)  # fmt: skip
FAMILIES = (TAGGING, CLASSIFICATION, TRANSDUCTION)


def family_named(name: str) -> Family:
    """Raises `UserError` for an unknown one."""
    return choose(name, {family.name: family for family in FAMILIES}, "--family")


@dataclass(frozen=True)
class Size:
    """Of models, training and choices."""

    embed_dim: int = 64
    """Width D of the encoder."""
    num_layers: int = 2
    """Its layers."""
    num_heads: int = 4
    """Heads of attention."""
    hidden_dim: int = 256
    """Width of its feed-forward layers."""
    vocab_size: int = 4096
    """Pieces at most, for families that read words."""
    batch_size: int = 32
    """Rows of a step."""
    stage0_checks: int = 6
    """How often the development sets are looked at; the best weights are kept."""
    new_rows: int = 600
    """Most new rows of an updated language."""
    dev: int = 100
    """Most development rows of a language."""
    steps: int = 100
    """Of an update."""
    joint_factor: int = 3
    """Times as many steps has the arm `joint`."""
    checks: int = 2
    """How often an update looks at the updated languages' development sets; the best weights are kept."""
    warmup_share: float = 0.1
    """Part of all steps in which the rate rises; then it falls to 0 in a line."""
    width: int = 16
    """Of a bottleneck: of one language, or shared."""
    rank: int = 8
    """Of LoRA."""
    widths: tuple[int, int] = (2, 32)
    """Narrowest and widest delta of the second reading. The widest is twice `width`: one program serves all."""
    least_share: float = 0.1
    """Of a delta of another language: what is less is none."""
    strengths: tuple[float, ...] = (0.05, 0.15, 0.35, 0.65)
    """Parts of the whole change that arms with a curve are measured at, besides all of it."""
    rates: dict[str, tuple[float, ...]] = field(
        default_factory=lambda: {
            "full": (3e-4, 1e-3, 3e-3),
            "head": (3e-3, 1e-2, 3e-2),
            "bitfit": (1e-3, 3e-3, 1e-2),
            "lora": (1e-3, 3e-3, 1e-2),
            "bottleneck": (1e-3, 3e-3, 1e-2),
        }
    )
    """Learning rates to choose from, by what trains."""
    pulls: tuple[float, ...] = (0.003, 0.03, 0.3)
    """Strengths of the penalties to choose from."""
    kept_gain: float = 0.9
    """Part of full fine-tuning's gain that the chosen penalty keeps."""
    choice_subsets: int = 2
    """Updates, the first ones of the family, that rates and pulls are chosen on (with seed 0)."""
    fisher_rows: int = 256
    """Stage-0 rows of which the Fisher information is taken."""
    eval_rows: int = 256
    """Rows that are read at once without training."""

    def __post_init__(self) -> None:
        if self.widths[1] != 2 * self.width:
            raise ValueError(f"widths {self.widths} must end with twice the width {self.width}")


FULL_SIZE = Size()
QUICK_SIZE = Size(
    embed_dim=16,
    num_layers=1,
    num_heads=2,
    hidden_dim=32,
    vocab_size=600,
    batch_size=16,
    stage0_checks=2,
    new_rows=40,
    dev=12,
    steps=12,
    joint_factor=2,
    checks=2,
    width=4,
    rank=2,
    widths=(2, 8),
    strengths=(0.5,),
    rates=dict.fromkeys(("full", "head", "bitfit", "lora", "bottleneck"), (0.01,)),
    pulls=(0.03,),
    choice_subsets=1,
    fisher_rows=16,
    eval_rows=64,
)


def quick_family(family: Family) -> Family:
    """The same kind of task in six made-up languages."""
    return replace(
        family,
        data=MADE_UP,
        languages=("aa", "ab", "ba", "bb", "ca", "cb"),
        subsets=(("aa",), ("ab", "ca")),
        length=32,
        per_language=40,
        test=24,
        stage0_steps=120,
        stage0_rate=1e-2,
    )


def digest(family: Family, size: Size, fingerprint: str, *more: Any) -> str:
    """Of everything that results come from, the seed apart."""
    return kept.digest([asdict(family), asdict(size), fingerprint, *more])
