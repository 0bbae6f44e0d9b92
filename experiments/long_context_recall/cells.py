"""One cell of the grid: its samples are made, read in chunks and scored; it is kept as one JSON file."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.long_context_recall.grid import Cell
from experiments.long_context_recall.haystacks import Haystack
from experiments.long_context_recall.media import MediaSources, media_sample
from experiments.long_context_recall.registry import tasks
from experiments.long_context_recall.samples import Sample, Setting, candidate_ids
from experiments.long_context_recall.scores import likelihood_rank, score
from experiments.runs import write_json
from zoo.data import MediaConfig, Tokenizer, load_media_prompt
from zoo.errors import UserError
from zoo.inference import (
    continuation_log_probabilities,
    generate_after,
    left_pad,
    prefill_in_chunks,
    stack_prompts,
)
from zoo.inference.limits import until_stop

ROOM_STEP, SHORT_STEP = 16, 64
"""Caches have room for a multiple of so many new tokens; prompts below a chunk are padded to a multiple of so many."""

MOST_CLIPS = 10**6
"""No prompt has more."""

OnChunk = Callable[[int, int, int], None]
"""(number of the sample, tokens read, tokens of its prompt)."""


@dataclass(frozen=True)
class SampleResult:
    """What a model made of one sample."""

    number: int
    """Of the sample in its cell."""
    score: float
    """By the task's metric, 0 .. 1."""
    rank: int | None
    """How many candidates are at least as likely as the right answer; None where there are none."""
    candidates: int
    """How many answers were ranked."""
    output: str
    """What the model wrote."""
    answer: str
    """A right answer."""
    tokens: int
    """Of the prompt."""
    prefill_seconds: float
    """Reading it."""
    answer_seconds: float
    """Ranking and writing."""
    facts: dict[str, Any]
    """Of the sample."""


@dataclass(frozen=True)
class CellResult:
    """A finished cell."""

    cell: Cell
    """Which one."""
    samples: tuple[SampleResult, ...]
    """All of its samples."""


@dataclass(frozen=True)
class Subject:
    """The model that is examined, and how."""

    model: Any
    """A decoder."""
    tokenizer: Tokenizer
    """Its own."""
    haystack: Haystack
    """Tokenised by it."""
    seed: int = 0
    """Of everything that is drawn."""
    chunk: int = 1024
    """Tokens of a piece of the prefill."""
    cache_dtype: str | None = None
    """Of keys and values, int8 among them; None: the compute dtype."""
    media_config: MediaConfig | None = None
    """How media become tokens; None: the model reads text only."""
    sources: MediaSources | None = None
    """Frames and recordings for media tasks."""

    def sample(self, cell: Cell, number: int, folder: Path) -> Sample:
        """Sample `number` of a cell; media are written below `folder`."""
        if cell.task in tasks():
            setting = Setting(self.tokenizer, self.haystack, cell.length, self.seed)
            return tasks()[cell.task].make(setting, number, cell.depth)
        if self.media_config is None or self.sources is None:
            raise UserError(f"{cell.task}: this checkpoint was not trained on media: leave the task out")
        return media_sample(cell, self.seed, self.sources, folder, number)


def run_cell(
    subject: Subject, cell: Cell, samples: int, folder: Path, on_chunk: OnChunk = lambda *_: None
) -> CellResult:
    """All samples of a cell, one after the other; media go to `folder`."""
    found = []
    for number in range(samples):
        sample = subject.sample(cell, number, folder)
        examine = examine_media if sample.parts else examine_text
        found.append(replace(examine(subject, sample, folder, lambda *at, n=number: on_chunk(n, *at)), number=number))
    return CellResult(cell, tuple(found))


def chunk_of(subject: Subject, length: int) -> int:
    """Tokens of a piece where prompt and answer have `length` tokens; not more than they need."""
    return min(subject.chunk, -(-length // SHORT_STEP) * SHORT_STEP)


def room_of(max_new_tokens: int) -> int:
    """Slots for the new tokens."""
    return -(-max_new_tokens // ROOM_STEP) * ROOM_STEP


def examine_text(subject: Subject, sample: Sample, _: Path, on_chunk: Callable[[int, int], None]) -> SampleResult:
    """Reads the prompt once, ranks the candidates after it, then writes."""
    began = time.perf_counter()
    chunk = chunk_of(subject, len(sample.prompt) + sample.max_new_tokens)
    tokens, mask = left_pad([sample.prompt.tolist()], multiple=chunk)
    return _examine(subject, sample, (tokens, mask, None), chunk, began, on_chunk)


def examine_media(subject: Subject, sample: Sample, folder: Path, on_chunk: Callable[[int, int], None]) -> SampleResult:
    """As `examine_text` with a prompt of media, of which each chunk encodes its own."""
    began = time.perf_counter()
    config = subject.media_config
    assert config is not None
    # A row of training bounds its media; a prompt has as many as it has.
    most_frames = max(config.video_frames, int(sample.facts.get("frames", 1)))
    config = replace(config, video_frames=most_frames, clips_per_row=MOST_CLIPS if config.clips_per_row else 0)
    prompt = load_media_prompt(sample.parts, subject.tokenizer, config, folder, sample.task)
    chunk = chunk_of(subject, prompt[0].shape[1] + sample.max_new_tokens)
    padded = stack_prompts([prompt], subject.tokenizer.pad_id, multiple=chunk)
    return _examine(subject, sample, padded, chunk, began, on_chunk)


def _examine(
    subject: Subject, sample: Sample, prompt: Any, chunk: int, began: float, on_chunk: Callable[[int, int], None]
) -> SampleResult:
    """prompt: (tokens, mask, media) of one row, a multiple of `chunk` long."""
    tokens, mask, media = prompt
    read = prefill_in_chunks(
        subject.model,
        tokens,
        mask,
        chunk=chunk,
        room=room_of(sample.max_new_tokens),
        cache_dtype=subject.cache_dtype,
        on_chunk=on_chunk,
        media=media,
    )
    jax.block_until_ready(read.logits)
    between = time.perf_counter()
    likelihoods = None
    if sample.candidates:
        likelihoods = continuation_log_probabilities(
            subject.model, read, [ids.tolist() for ids in candidate_ids(sample, subject.tokenizer)]
        )
    new = generate_after(subject.model, read, max_new_tokens=sample.max_new_tokens, stop_tokens=_stops(subject))
    return _result(subject, sample, int(mask.sum()), likelihoods, new[0], began, between)


def _stops(subject: Subject) -> tuple[int, ...]:
    return tuple(getattr(subject.model.config, "eos_token_ids", (subject.tokenizer.eos_id,)))


def _result(subject: Subject, sample: Sample, tokens: int, likelihoods, new, began: float, between: float):
    output = subject.tokenizer.decode(until_stop(new.tolist(), _stops(subject)))
    return SampleResult(
        number=0,
        score=score(sample, output),
        rank=None if likelihoods is None else likelihood_rank(sample, likelihoods),
        candidates=len(sample.candidates),
        output=output,
        answer=sample.answer,
        tokens=tokens,
        prefill_seconds=round(between - began, 4),
        answer_seconds=round(time.perf_counter() - between, 4),
        facts=dict(sample.facts),
    )


def write_cell(result: CellResult, folder: Path) -> Path:
    """One JSON file named after the cell."""
    path = folder / f"{result.cell.name}.json"
    write_json(asdict(result), path)
    return path


def read_cell(folder: Path, cell: Cell) -> CellResult | None:
    """The inverse; None if the cell is not done."""
    path = folder / f"{cell.name}.json"
    if not path.is_file():
        return None
    fields = json.loads(path.read_text())
    return CellResult(Cell(**fields["cell"]), tuple(SampleResult(**sample) for sample in fields["samples"]))


def setting_of(subject: Subject, checkpoint: str, samples: int) -> dict[str, Any]:
    """What cells of one folder share; a chunk's length changes no result and is not among it."""
    return {
        "checkpoint": checkpoint,
        "weights": fingerprint(subject.model),
        "haystack": f"{subject.haystack.name}, {hashlib.sha256(subject.haystack.ids.tobytes()).hexdigest()[:16]}",
        "seed": subject.seed,
        "samples": samples,
        "cache dtype": str(subject.cache_dtype or subject.model.execution.compute_dtype),
    }


def check_setting(out: Path, described: dict[str, Any]) -> None:
    """Raises `UserError` if the folder's cells are of another checkpoint, text or number of samples."""
    setting = out / "setting.json"
    if not setting.is_file():
        setting.write_text(json.dumps(described, indent=1) + "\n")
    before = json.loads(setting.read_text())
    for name, value in described.items():
        if name != "checkpoint" and before.get(name) != value:
            raise UserError(
                f"{out} holds cells of another {name} ({before.get(name)}, not {value}): give another --out"
            )


def fingerprint(model: Any, numbers: int = 4096) -> str:
    """Of the architecture and the first numbers of every parameter."""
    from flax import nnx

    digest = hashlib.sha256(repr(model.config).encode())
    for leaf in jax.tree.leaves(nnx.state(model)):
        digest.update(f"{leaf.shape} {leaf.dtype}".encode())
        digest.update(np.asarray(leaf.reshape(-1)[:numbers]).tobytes())
    return digest.hexdigest()[:16]
