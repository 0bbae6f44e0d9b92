"""python -m experiments.long_context_recall: models of ours that find needles, trained, examined and compared; or any
checkpoint's recall by depth and length, as heat map, table and JSON.

python -m experiments.long_context_recall --arms main --seeds 0           # a part of the study; the rest another day
python -m experiments.long_context_recall --report docs/benchmarks/2026-12-01-recall.md
python -m experiments.long_context_recall --media video audio              # models of video and speech instead
python -m experiments.long_context_recall --checkpoint RUN --tasks needle needle-made-up --lengths 1024,4096,16384
python -m experiments.long_context_recall --checkpoint RUN --lengths 131072 --depths 1 --cache-dtype int8
python -m experiments.long_context_recall --quick
"""

import datetime
import json
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from experiments.choosing import command_line
from zoo.command_line import parse_command
from zoo.errors import UserError, run_command


@dataclass(frozen=True)
class LongContextRecall:
    """Examines a checkpoint cell by cell, or without one trains models and examines those, and reports. It may be
    stopped at any time: what is done is not done again."""

    checkpoint: Path | None = None
    """Anything that `zoo.load` takes. None: the study of our own models, which --arms, --seeds and --results belong to;
    the tasks, lengths and all that is about samples belong to a checkpoint."""
    arms: tuple[str, ...] = ()
    """Of the study, by name; default all of training/arms.py."""
    media: tuple[str, ...] = ()
    """The study of models that find a word in a long video or a keyword in long speech, instead of that of text:
    video, audio or both (media_training/sizes.py)."""
    seeds: str = ""
    """Of each arm, with commas between them; default 0,1,2."""
    results: Path | None = None
    """Folder of the study's results, one JSON for each run, small enough to be committed: a study goes on from them
    on any machine. Default docs/benchmarks/long-context-recall, of media long-context-recall-media, with --quick a
    folder in --out."""
    only_report: bool = False
    """Trains nothing: reports what the folder of results has."""
    tasks: tuple[str, ...] = ("needle",)
    """Names of tasks, see README.md; also video, audio-keyword and audio-time for a model that was trained on media."""
    lengths: str = "1024,2048,4096,8192"
    """Tokens of prompt and answer, with commas between them."""
    media_lengths: str = "8,16,32"
    """Frames of a video or recordings of a stream, for media tasks."""
    depths: int = 11
    """How many, from 0 to 100 percent."""
    samples: int = 5
    """Of each cell."""
    seed: int = 0
    """Of everything that is drawn."""
    cache_dtype: Literal["float32", "bfloat16", "int8"] | None = None
    """Of keys and values, int8 with a scale for each token and head; default: the compute dtype."""
    chunk: int = 1024
    """Tokens that go through the model at a time."""
    memory: float | None = None
    """GiB that may be used; a length that needs more is refused before anything starts. Default: what there is."""
    text: Literal["novels", "made-up"] | None = None
    """What the haystack is; default: the novels where the folder `shared` is, else text that is made here."""
    quick: bool = False
    """A minute: a tiny model that has learnt nothing, up to 1,024 tokens, then a study of one run of a few steps; shows
    that it works and nothing else."""
    out: Path | None = None
    """Folder of the results, one JSON for each cell; default runs/long_context_recall/NAME-OF-CHECKPOINT. Of the study:
    tokenizer, text, checkpoints and logs; default runs/long_context_recall/study, of media .../media."""
    report: Path | None = None
    """Also writes the dated report (Markdown) to this file, with the pictures and all results beside it."""


QUICK = dict(
    tasks=("needle", "needle-made-up", "needle-numbers"), lengths="256,512,1024", depths=3, samples=2, chunk=256
)


def main() -> None:
    options = parse_command(LongContextRecall, "experiments.long_context_recall")
    if options.quick:
        if options.checkpoint is not None:
            raise UserError("--quick makes a model of its own: leave --checkpoint out, or --quick")
        options = replace(options, **QUICK)  # type: ignore[arg-type]
    if options.samples < 1:
        raise UserError(f"--samples must be at least 1, got {options.samples}")
    of_study = options.arms or options.media or options.seeds or options.results is not None or options.only_report
    if options.arms and options.media:
        raise UserError("--arms are models of text, --media those of video and speech: give one of the two")
    if options.checkpoint is not None and of_study:
        raise UserError(
            "--arms, --media, --seeds, --results and --only-report belong to the study: leave them or --checkpoint out"
        )
    if options.checkpoint is None and not options.quick:
        check_is_study(options)
    if (options.quick and not options.media) or options.checkpoint is not None:
        examine(options)
    if options.checkpoint is None and not options.media:
        study_of(options)
    if options.checkpoint is None and (options.media or options.quick):
        study_of_media(options)


OF_A_CHECKPOINT = (
    "tasks", "lengths", "media_lengths", "depths", "samples", "seed", "cache_dtype", "chunk", "memory", "text",
)  # fmt: skip
"""Options that the study has no use for: its grid is in training/sizes.py."""


def check_is_study(options: LongContextRecall) -> None:
    """Raises `UserError` where a checkpoint was forgotten: the study takes hours."""
    for name in OF_A_CHECKPOINT:
        if getattr(options, name) != getattr(LongContextRecall, name):
            option = name.replace("_", "-")
            raise UserError(f"--checkpoint is missing: name a checkpoint, or leave --{option} out for the study")


def study_of(options: LongContextRecall) -> None:
    """Our own models of text."""
    from experiments.long_context_recall.training.study import RESULTS, study

    run_study(options, study, options.arms, "study", RESULTS)


def study_of_media(options: LongContextRecall) -> None:
    """Our own models of video and speech."""
    from experiments.long_context_recall.media_training.study import RESULTS, study

    run_study(options, study, options.media, "media", RESULTS)


def run_study(
    options: LongContextRecall, study: Callable[..., None], arms: tuple[str, ...], name: str, results: Path
) -> None:
    """A study of either kind in a folder of its own; `results` is where those that are committed lie."""
    from experiments.long_context_recall.grid import whole_numbers

    runs = Path("runs/long_context_recall")
    if options.quick:
        out = (options.out or runs / "quick") / name
        study("quick", out, options.results or out / "results", arms, (), None, False)
        return
    seeds, kept = whole_numbers(options.seeds, "--seeds"), options.results or results
    study("full", options.out or runs / name, kept, arms, seeds, options.report, options.only_report)


def examine(options: LongContextRecall) -> None:
    """Everything after the command line."""
    from experiments.long_context_recall import cells, prediction, report
    from experiments.long_context_recall.grid import MEDIA_TASKS, grid, whole_numbers
    from experiments.sparse_vs_dense.report import describe

    lengths = whole_numbers(options.lengths, "--lengths")
    media_lengths = whole_numbers(options.media_lengths, "--media-lengths")
    wanted = grid(options.tasks, lengths, media_lengths, options.depths)
    if not wanted:
        raise UserError("no lengths to examine: give --lengths")
    machine = describe()  # before this command puts a load on it
    subject = subject_of(options, any(cell.task in MEDIA_TASKS for cell in wanted))
    name = "quick" if options.quick else options.checkpoint.resolve().name  # type: ignore[union-attr]
    out = options.out or Path("runs/long_context_recall") / name
    folder = out / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = "made for --quick, untrained" if options.quick else str(options.checkpoint)
    setting = cells.setting_of(subject, checkpoint, options.samples)
    cells.check_setting(out, setting)
    missing = [cell for cell in wanted if not (folder / f"{cell.name}.json").is_file()]
    check_samples(subject, missing)
    text_lengths = sorted({cell.length for cell in wanted if cell.task not in MEDIA_TASKS})
    memory = [prediction.memory_of(subject, length) for length in text_lengths]
    prediction.check_memory(memory, prediction.allowed_bytes(options.memory))
    if memory:
        show("Memory, predicted", report.memory_rows(memory))
    timing, predicted = predict(subject, missing, options.samples)
    began = time.perf_counter()
    fill(subject, missing, options.samples, folder, predicted)
    results = report.Results(
        date=datetime.date.today().isoformat(),
        command=command_line("experiments.long_context_recall"),
        machine=machine,
        setting=setting,
        trained_context=subject.model.config.max_position_embeddings,
        memory=memory,
        timing=timing,
        predicted_seconds=sum(predicted),
        measured_seconds=time.perf_counter() - began if missing else 0.0,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        cells=[result for cell in wanted if (result := cells.read_cell(folder, cell)) is not None],
        only_shows_that_it_works=options.quick,
    )
    publish(results, out, options.report)


def check_samples(subject, missing) -> None:
    """Makes a sample of every task and length: what cannot be made is refused before anything runs."""
    for cell in {(cell.task, cell.length): cell for cell in missing}.values():
        with tempfile.TemporaryDirectory() as scratch:
            try:
                subject.sample(cell, 0, Path(scratch))
            except UserError as error:
                raise UserError(f"length {cell.length}: {error}") from None


def predict(subject, missing, samples: int):
    """(timing or None, seconds of each missing cell), said on the terminal."""
    from experiments.long_context_recall import prediction
    from experiments.long_context_recall.grid import MEDIA_TASKS
    from experiments.long_context_recall.report import duration

    text = [cell for cell in missing if cell.task not in MEDIA_TASKS]
    if not text:
        return None, [0.0] * len(missing)
    longest = max(cell.length for cell in text)
    timing = prediction.time_chunks(subject, longest)
    predicted = prediction.seconds_of(timing, missing, samples)
    work = prediction.flops_of(subject.model.config, text, samples)
    print(
        f"\n{len(text)} cells of text to do: about {duration(sum(predicted))} and {work:.3g} FLOPs; a prompt of "
        f"{longest:,} tokens is read in about {duration(timing.prefill(timing.length))}",
        flush=True,
    )
    return timing, predicted


def fill(subject, missing, samples: int, folder: Path, predicted: list[float]) -> None:
    """Does the missing cells, each written as soon as it is done."""
    from experiments.long_context_recall.cells import chunk_of, run_cell, write_cell
    from experiments.long_context_recall.progress import Progress

    # Media are not predicted: they count as much as a cell of text does on average.
    mean = sum(predicted) / max(sum(seconds > 0 for seconds in predicted), 1) or 1.0
    predicted = [seconds or mean for seconds in predicted]
    progress = Progress(sum(predicted))
    for position, (cell, seconds) in enumerate(zip(missing, predicted, strict=True), start=1):
        what, chunk = f"cell {position} of {len(missing)}, {cell.name}", chunk_of(subject, cell.length)

        def on_chunk(number: int, read: int, tokens: int, seconds=seconds, what=what, chunk=chunk) -> None:
            place = f"sample {number + 1} of {samples}, chunk {-(-read // chunk)} of {-(-tokens // chunk)}"
            progress.show(f"{what}: {place}", seconds * (number + read / tokens) / samples)

        with tempfile.TemporaryDirectory() as scratch:
            result = run_cell(subject, cell, samples, Path(scratch), on_chunk)
        write_cell(result, folder)
        right = sum(sample.score for sample in result.samples) / len(result.samples)
        progress.finish(f"{what}: {right:.0%}", seconds)


def subject_of(options: LongContextRecall, media: bool):
    """The model with its tokenizer, haystack and, for media tasks, frames and recordings."""
    import zoo
    from experiments.long_context_recall.cells import Subject
    from experiments.long_context_recall.haystacks import haystack
    from experiments.long_context_recall.media import media_sources
    from experiments.long_context_recall.quick_model import quick_model
    from experiments.shared_folder import default_shared

    shared = None if options.text == "made-up" else default_shared()
    media_config = None
    if options.quick:
        model, tokenizer, hay = quick_model()
    else:
        loaded = zoo.load(options.checkpoint)  # type: ignore[arg-type]
        model, tokenizer = loaded.decoder, loaded.tokenizer
        if tokenizer is None:
            raise UserError(f"{options.checkpoint} has no tokenizer: recall needs one")
        if options.text == "novels" and shared is None:
            raise UserError("--text novels: there is no folder `shared`: set ZOO_SHARED, or give --text made-up")
        hay, media_config = haystack(tokenizer, shared), loaded.media_config
    sources = media_sources(shared) if media and media_config is not None else None
    return Subject(
        model, tokenizer, hay, options.seed, options.chunk, options.cache_dtype, media_config, sources
    )  # fmt: skip


def publish(results, out: Path, to: Path | None) -> None:
    """Tables on the terminal; results and pictures in the output folder, or beside the report if one is asked for."""
    from experiments.long_context_recall import heat_map, report
    from experiments.long_context_recall.findings import ranked

    for title, rows in report.tables(results):
        show(title, rows)
    if results.only_shows_that_it_works:
        print(f"\n{report.WORKS}")
    stem, folder = (to.stem, to.parent) if to else ("long-context-recall", out)
    folder.mkdir(parents=True, exist_ok=True)
    title = f"{results.setting['checkpoint']}: answers written, percent"
    pictures = {f"{stem}.png": (results.cells, title, "written")}
    if with_candidates := [result for result in results.cells if ranked([result]) is not None]:
        title = f"{results.setting['checkpoint']}: right answer the most likely, percent"
        pictures[f"{stem}-ranked.png"] = (with_candidates, title, "ranked")
    for name, (cells, title, choice) in pictures.items():
        heat_map.draw(cells, title, folder / name, choice, results.trained_context)
    numbers = folder / f"{stem}.json"
    numbers.write_text(json.dumps(asdict(results)) + "\n")
    written = [numbers, *(folder / name for name in pictures)]
    if to:
        to.write_text(report.write_report(results, list(pictures)))
        written.append(to)
    print("\nwrote", ", ".join(map(str, written)))


def show(title: str, rows) -> None:
    """A table on the terminal."""
    from experiments.long_context_recall.report import as_text

    print(f"\n{title}\n{as_text(rows)}", flush=True)


if __name__ == "__main__":
    run_command(main)
