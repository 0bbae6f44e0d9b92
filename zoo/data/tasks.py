"""Documents that a seeded generator makes: problems whose answers can be computed, for post-training without files.

    arithmetic    "37+45=" -> "82", every problem once, in an order that the seed decides

One problem is a conversation of two turns (format "chat"), a pair of a right and a wrong answer ("preference"), or a
question with its answer beside it ("prompts"). It has the same number in all formats, so that what is held out from
supervised fine-tuning is held out from whatever follows it.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from zoo.data.chat import Message
from zoo.data.preferences import Preference
from zoo.data.prompted import Prompted
from zoo.data.sources import File
from zoo.data.task_config import OPERATIONS, TaskConfig


class GeneratedDocuments:
    """The problems of a task, as documents of one format."""

    def __init__(self, task: TaskConfig, format: str):
        self._task, self._format = task, format
        name = f"{task.name} {task.operations} 0..{task.largest} seed {task.seed}"
        self.file = File(Path(name), name, ".jsonl")
        self.num_skipped = 0
        self._order = np.random.default_rng(task.seed).permutation(task.num_problems)[: task.num_documents]

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> Any:
        question, answer = self.problem(index)
        prompt, where = (Message("user", question),), f"{self.file.name}:{index + 1}"
        if self._format == "preference":
            draw = np.random.default_rng((self._task.seed, int(self._order[index])))
            return Preference(prompt, answer, wrong_answer(answer, draw), where)
        if self._format == "prompts":
            return Prompted(prompt, answer, where)
        return (*prompt, Message("model", answer))

    def problem(self, index: int) -> tuple[str, str]:
        """(question, answer) of a problem."""
        width = self._task.largest + 1
        rest, b = divmod(int(self._order[index]), width)
        operation, a = divmod(rest, width)
        sign = self._task.operations[operation]
        return f"{a}{sign}{b}=", str(OPERATIONS[sign](a, b))

    @cached_property
    def sizes(self) -> Int64[np.ndarray, " documents"]:
        """Bytes of question and answer."""
        return np.array([sum(map(len, self.problem(index))) for index in range(len(self))], np.int64)


def wrong_answer(answer: str, draw: np.random.Generator) -> str:
    """The number with one of its digits, all equally likely, replaced by another; no leading zero appears."""
    digits = [place for place, character in enumerate(answer) if character.isdigit()]
    place = int(draw.choice(digits))
    smallest = 1 if place == digits[0] and len(digits) > 1 else 0
    others = [digit for digit in "0123456789"[smallest:] if digit != answer[place]]
    return answer[:place] + str(draw.choice(others)) + answer[place + 1 :]
