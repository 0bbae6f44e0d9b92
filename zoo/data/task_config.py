"""Which task a generator makes documents of (`zoo.data.tasks`)."""

from dataclasses import dataclass
from typing import Literal

from zoo.errors import UserError

OPERATIONS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}
MOST_PROBLEMS = 10**7


@dataclass(frozen=True)
class TaskConfig:
    """A generated task."""

    name: Literal["none", "arithmetic"] = "none"
    """none: documents are read from `data.paths`. arithmetic: sums and the like with whole numbers."""
    num_documents: int = 10_000
    """Problems, those that are held out included; at most as many as there are different ones."""
    largest: int = 99
    """Operands lie in 0 .. largest."""
    operations: str = "+"
    """Which of + - *, one after the other."""
    seed: int = 0
    """Seed of the order of the problems, and of the wrong answers."""

    def __post_init__(self):
        if self.name not in ("none", "arithmetic"):
            raise UserError(f"data.task.name must be 'none' or 'arithmetic', not {self.name!r}")
        if not self.operations or set(self.operations) - set(OPERATIONS):
            raise UserError(f"data.task.operations must be some of + - *, got {self.operations!r}")
        if len(set(self.operations)) < len(self.operations):
            raise UserError(f"data.task.operations={self.operations!r} names an operation twice")
        if not 1 <= self.largest < 10_000:
            raise UserError(f"data.task.largest must lie in 1 .. 9999, got {self.largest}")
        if self.num_problems > MOST_PROBLEMS:
            raise UserError(f"data.task: {self.num_problems:,} different problems; the most is {MOST_PROBLEMS:,}")
        if not 1 <= self.num_documents <= self.num_problems:
            raise UserError(
                f"data.task.num_documents must lie in 1 .. {self.num_problems}, the number of different problems, "
                f"got {self.num_documents}"
            )
        if not 0 <= self.seed < 2**31:
            raise UserError(f"data.task.seed must lie in 0 .. 2^31 - 1, got {self.seed}")

    @property
    def num_problems(self) -> int:
        """Different problems that there are."""
        return len(self.operations) * (self.largest + 1) ** 2
