"""The cells of a run: task x length x depth, each with a name that stays."""

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.long_context_recall.registry import task_named
from zoo.errors import UserError

MEDIA_TASKS = {
    "video": "Gemini's word on one frame of a video; a length is its frames",
    "audio-keyword": "the one keyword in a recording of many; a length is its recordings",
    "audio-time": "what is said at a time; a length is the recordings",
}
"""Tasks whose prompts are media, and what they ask for."""


@dataclass(frozen=True)
class Cell:
    """One place of the grid."""

    task: str
    """Name of a text task (`registry.tasks`) or of a media task."""
    length: int
    """Tokens of prompt and answer; of a media task frames or recordings."""
    depth: float | None
    """Percent of the context before what is asked for; None where the task has no depth."""

    @property
    def name(self) -> str:
        """File name: unique in a grid and the same in every run."""
        return f"{self.task}-{self.length}" + ("" if self.depth is None else f"-depth-{self.depth:g}")


def grid(tasks: Sequence[str], lengths: Sequence[int], media_lengths: Sequence[int], depths: int) -> list[Cell]:
    """All cells, the short ones first, so that an early end leaves whole lengths.

    `depths` = how many from 0 to 100 percent, evenly; one is the middle. Raises `UserError` for an unknown task,
    nothing to do, or sizes below 1."""
    if depths < 1:
        raise UserError(f"--depths must be at least 1, got {depths}")
    if not tasks:
        raise UserError("--tasks: name at least one")
    for length in (*lengths, *media_lengths):
        if length < 1:
            raise UserError(f"a length must be at least 1, got {length}")
    found = []
    for task in dict.fromkeys(tasks):
        chosen = media_lengths if task in MEDIA_TASKS else lengths
        places = depths_of(depths) if has_depth(task) else [None]
        found += [Cell(task, length, depth) for length in sorted(set(chosen)) for depth in places]
    return sorted(found, key=lambda cell: cell.length)


def has_depth(task: str) -> bool:
    """Whether what the task asks for is put at a depth. Raises `UserError` for an unknown task."""
    if task in MEDIA_TASKS:
        return True
    return task_named(task).has_depth


def depths_of(count: int) -> list[float | None]:
    """`count` depths from 0 to 100."""
    return [50.0] if count == 1 else [round(100 * i / (count - 1), 2) for i in range(count)]


def whole_numbers(text: str, option: str) -> tuple[int, ...]:
    """The numbers of "1024,2048". Raises `UserError` naming the option."""
    try:
        return tuple(int(part.replace("_", "")) for part in text.split(",") if part.strip())
    except ValueError:
        raise UserError(f"{option} must be whole numbers with commas between them, got {text!r}") from None
