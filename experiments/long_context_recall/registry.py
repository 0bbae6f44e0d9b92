"""All text tasks by name: `tasks()["needle"].make(setting, number, depth)` gives a `Sample`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from experiments.long_context_recall import infinitebench, ruler, ruler_words
from experiments.long_context_recall.babilong import TASKS as BABILONG
from experiments.long_context_recall.babilong import question_in_background
from experiments.long_context_recall.mrcr import Mrcr, conversation
from experiments.long_context_recall.needles import Needles, classic, magic_numbers
from experiments.long_context_recall.samples import Sample, Setting
from zoo.errors import UserError, nearest_name


@dataclass(frozen=True)
class Task:
    """A task of the registry."""

    name: str
    """Unique."""
    what: str
    """In a line."""
    build: Callable[..., Sample]
    """(name, setting, number), and depth where the task has one."""
    has_depth: bool = False
    """Whether what is asked for can be put at a depth."""

    def make(self, setting: Setting, number: int, depth: float | None = None) -> Sample:
        """Sample `number` at the setting's length; the same arguments give the same sample. `depth` in percent is drawn
        where the task has one and none is given. Raises `UserError` if the length is too short for the task."""
        if not self.has_depth:
            if depth is not None:
                raise UserError(f"{self.name} has no depth: leave it out")
            return self.build(self.name, setting, number)
        return self.build(self.name, setting, number, depth)


def tasks() -> dict[str, Task]:
    """Every task by name."""
    return {task.name: task for task in _listed()}


def task_named(name: str) -> Task:
    """A task. Raises `UserError` with the nearest name."""
    known = tasks()
    if name not in known:
        raise UserError(f"no task {name!r}; {nearest_name(name, known)}")
    return known[name]


def _listed() -> list[Task]:
    grid = partial(Task, has_depth=True)
    needles = {
        "needle": ("Gemini's magic number of a city", Needles()),
        "needle-held-out": ("the same with cities that training must not use", Needles(keys="held-out cities")),
        "needle-made-up": ("the same with words in no list, of several pieces", Needles(keys="made-up words")),
        "needle-numbers": ("the same with random numbers for cities", Needles(keys="numbers")),
        "needle-1-of-10": ("one of ten magic numbers", Needles(10)),
    }
    every = {
        f"needles-{n}": (f"{n} magic numbers, all in one turn", Needles(n, "all", "cities" if n <= 100 else "numbers"))
        for n in (10, 50, 100)
    }
    return [
        *(grid(name, what, partial(magic_numbers, config)) for name, (what, config) in {**needles, **every}.items()),
        grid("needle-classic", "Kamradt's San Francisco needle", classic),
        *(Task(name, f"RULER: {_niah(config)}", partial(ruler.niah, config)) for name, config in ruler.NIAH.items()),
        Task("ruler-vt", "RULER: variables of one value", partial(ruler.variables, ruler.Variables())),
        Task("ruler-cwe", "RULER: the ten most common words of a list", ruler_words.common_words),
        Task(
            "ruler-fwe",
            "RULER: the three most frequent coded words",
            partial(ruler_words.frequent_words, ruler_words.FrequentWords()),
        ),
        grid(
            "passkey",
            "InfiniteBench: five digits in noise",
            partial(infinitebench.digits_in_noise, infinitebench.PASSKEY),
        ),
        grid(
            "number-string",
            "InfiniteBench: ten digits with repeats in noise",
            partial(infinitebench.digits_in_noise, infinitebench.NUMBER_STRING),
        ),
        grid("key-value", "InfiniteBench: a pair of a JSON object", infinitebench.key_value),
        Task(
            "pairs-first",
            "Gemini 1.0: a pair from the beginning of a full context",
            partial(infinitebench.pairs_first, infinitebench.PairsFirst()),
        ),
        *(
            Task(f"mrcr-{n}", f"MRCR: one of {n} replies to the same request", partial(conversation, Mrcr(same=n)))
            for n in (2, 4, 8)
        ),
        *(
            Task(f"babilong-{kind}", f"BABILong: {kind} in a long text", partial(question_in_background, kind))
            for kind in BABILONG
        ),
    ]


def _niah(config: ruler.Niah) -> str:
    return (
        f"{config.num_queries} of {config.num_keys} keys ({config.keys}), {config.num_values} values each "
        f"({config.values}) in {config.haystack}"
    )
