"""python -m zoo.score: logits and log-probabilities of token arrays, perplexity and bits per byte of text files.

python -m zoo.score --checkpoint CKPT --tokens ids.npy --logits out.npy
python -m zoo.score --checkpoint runs/first --text book.txt notes/ --json score.json
python -m zoo.score --checkpoint runs/teacher --top-k-logits 64 --out cache -- gemma2-nano --data books --steps 800
"""

import contextlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from zoo.command_line import AttentionName, parse_command
from zoo.errors import UserError, run_command

MOST_ROWS_SHOWN = 20


@dataclass(frozen=True)
class Score:
    """Scores tokens or text under a trained model: a table on standard output, and files where asked for."""

    checkpoint: Path
    """A run directory of zoo.train, a checkpoint in it, a Hugging Face folder or a google-deepmind/gemma tree."""
    tokens: Path | None = None
    """int [B, T] .npy file of token ids."""
    mask: Path | None = None
    """int [B, T] .npy file for --tokens: 1 = token, 0 = padding (on the left or on the right)."""
    logits: Path | None = None
    """.npy file for the float32 logits [B, T, V]; [b, t] predicts token t + 1; at padding they mean nothing."""
    text: tuple[str, ...] = ()
    """Text files, folders or globs, instead of --tokens: .txt, .jsonl (also .gz, .xz, .zst), .parquet; any other file
    that is named is read as plain text."""
    text_field: str = "text"
    """Field of .jsonl and column of .parquet that holds the text."""
    context: int | None = None
    """Tokens per window of a long text. Default: the context the model was trained for."""
    overlap: int | None = None
    """Tokens of a window that only serve as context, scored in the window before. Default: half of the context."""
    top_k_logits: int | None = None
    """Instead: for every token of a run's training stream the so many largest log-probabilities, and what is left, are
    written to the folder --out. Which stream: after --, the recipe and options of zoo.train, --steps among them."""
    out: Path | None = None
    """Folder for --top-k-logits; one that is there is gone on with."""
    batch_size: int = 8
    """Rows (or windows) that go through the model at a time."""
    json: Path | None = None
    """File for the same figures as JSON."""
    adapter: tuple[Path, ...] = ()
    """Adapters that are put into the model: folders of zoo.export or of the library peft, or runs that trained them."""
    adapter_weights: tuple[float, ...] = ()
    """What each of them is multiplied with; default 1."""
    compute_dtype: Literal["float32", "bfloat16"] | None = None
    """Dtype of weights and activations. Default: float32 on CPU, bfloat16 elsewhere."""
    attention: AttentionName | None = None
    """Which attention kernels. Default: the best ones for the back end."""


def main(argv: Sequence[str] | None = None) -> None:
    """The command; raises UserError for wrong input."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options, stream = parse_command(Score, "zoo.score", arguments[:end]), arguments[end + 1 :]
    if options.top_k_logits is not None:
        _write_cache(options, options.top_k_logits, stream)
        return
    _check(options)
    if options.out is not None or stream:
        raise UserError("--out and what comes after -- belong to --top-k-logits")
    from zoo.inference.files import output_file

    with output_file(options.json) as json_output:
        figures = _score_arrays(options) if options.tokens is not None else _score_texts(options)
        if json_output is not None:
            json_output.write_text(json.dumps(_without_nan(figures), indent=2) + "\n")
    _print_table(figures)


def _check(options: Score) -> None:
    """What can be said without loading anything."""
    if (options.tokens is None) == (not options.text):
        raise UserError("give either --tokens FILE or --text FILE ...")
    if options.tokens is None and (options.logits or options.mask):
        raise UserError("--logits and --mask belong to --tokens")
    if options.batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, got {options.batch_size}")
    if options.logits is not None and options.logits == options.json:
        raise UserError(f"--logits and --json name the same file: {options.json}")


def _write_cache(options: Score, k: int, stream: list[str]) -> None:
    """What the checkpoint says of the training stream of a recipe, for runs that learn from it."""
    default = Score(options.checkpoint)
    arrays = ("tokens", "mask", "logits", "text", "context", "overlap", "json", "compute_dtype", "attention")
    for name in (*arrays, "adapter", "adapter_weights"):
        if getattr(options, name) != getattr(default, name):
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} does not go with --top-k-logits, which takes the recipe's settings (after --)")
    if options.out is None:
        raise UserError("--top-k-logits needs a folder: --out DIR")
    from zoo.recipes import DEFAULT, recipe
    from zoo.recipes.command_line import parse_recipe
    from zoo.recipes.teacher_scores import cached_recipe, write_cache

    name = stream.pop(0) if stream and not stream[0].startswith("-") else DEFAULT
    prog = "python -m zoo.score --checkpoint TEACHER --top-k-logits K --out DIR -- [RECIPE]"
    chosen = cached_recipe(parse_recipe(recipe(name), stream, prog=prog), options.checkpoint)
    with _progress("steps", chosen.loop.steps) as advance:
        cache = write_cache(chosen, k, options.out, advance)
    size = sum(file.stat().st_size for file in options.out.iterdir())
    print(
        f"{options.out}: {cache.steps:,} steps of {chosen.name}, {cache.layout.k} of {cache.layout.vocab_size:,} words"
    )
    print(f"{size / 1e6:,.1f} MB, from {options.checkpoint}")


def _load(options: Score, *, tokenizer_needed: bool):
    import zoo
    from zoo.nn import Execution

    dtype = options.compute_dtype
    execution = None if dtype is None else Execution(compute_dtype=dtype, param_dtype=dtype)
    loaded = zoo.load(
        options.checkpoint,
        execution=execution,
        attention=options.attention,
        adapter=options.adapter,
        adapter_weights=options.adapter_weights or None,
    )
    if not hasattr(loaded.model, "logits"):
        raise UserError(f"{options.checkpoint}: a {type(loaded.model).__name__} predicts no tokens")
    if tokenizer_needed and loaded.tokenizer is None:
        raise UserError(f"{options.checkpoint}: has no tokenizer, so --text cannot be read; use --tokens ids.npy")
    return loaded


# ---- arrays of ids ----


def _score_arrays(options: Score) -> dict[str, Any]:
    import numpy as np

    from zoo.inference import token_log_probabilities
    from zoo.inference.files import output_file, read_array
    from zoo.inference.prompts import check_mask, check_tokens
    from zoo.inference.scoring import pair_mask

    assert options.tokens is not None
    name = str(options.tokens)
    tokens = check_tokens(read_array(options.tokens), name=name)
    mask = None if options.mask is None else read_array(options.mask)
    mask = check_mask(mask, tokens, str(options.mask))
    with output_file(options.logits) as output:
        loaded = _load(options, tokenizer_needed=False)
        vocab_size = loaded.config.vocab_size
        check_tokens(tokens, vocab_size, name)
        longest = int(mask.sum(1).max())
        if longest > loaded.config.max_position_embeddings:
            print(
                f"warning: {longest} tokens, but the model was trained for a context of "
                f"{loaded.config.max_position_embeddings}",
                file=sys.stderr,
            )
        logits = None if output is None else output.map_array((*tokens.shape, vocab_size), np.float32)
        with _progress("rows", len(tokens)) as advance:
            scores = token_log_probabilities(
                loaded.model, tokens, mask, batch_size=options.batch_size, logits_out=logits, on_rows=advance
            )
        if logits is not None:
            logits.flush()
    counts = pair_mask(mask).sum(1)
    rows = [_figures(f"row {i}", int(counts[i]), float(scores[i].sum(dtype=np.float64))) for i in range(len(tokens))]
    total = _figures("total", int(counts.sum()), float(scores.sum(dtype=np.float64)))
    return {"checkpoint": str(options.checkpoint), "tokens": name, "rows": rows, "total": total}


# ---- text ----


def _score_texts(options: Score) -> dict[str, Any]:
    from zoo.inference import TextScore, score_text

    documents = [(entry, _read_documents(entry, options.text_field)) for entry in options.text]
    num_bytes = sum(len(text.encode()) for _, texts in documents for text in texts)
    loaded = _load(options, tokenizer_needed=True)
    rows, total = [], TextScore(0, 0, 0.0)
    with _progress("bytes", num_bytes) as advance:
        for entry, texts in documents:
            score = TextScore(0, 0, 0.0)
            for text in texts:
                score += score_text(
                    loaded.model,
                    loaded.tokenizer,
                    text,
                    context=options.context,
                    overlap=options.overlap,
                    batch_size=options.batch_size,
                    on_part=lambda part, text=text: advance(part * len(text.encode())),  # type: ignore[misc]
                )
            rows.append(_figures(entry, score.tokens, score.log_probability, score.bytes))
            total += score
    summary = _figures("total", total.tokens, total.log_probability, total.bytes)
    return {"checkpoint": str(options.checkpoint), "rows": rows, "total": summary}


def _read_documents(entry: str, text_field: str) -> list[str]:
    from zoo.data.readers import open_documents, text_of
    from zoo.data.sources import File, find_files, kind_of

    path = Path(entry)
    if path.is_file() and kind_of(path) is None:
        files = [File(path, path.name, ".txt")]
    else:
        files, _ = find_files(entry)
    readers = [open_documents(file, text_of(text_field), text_field, whole=True) for file in files]
    texts = [reader[i] for reader in readers for i in range(len(reader))]
    if not texts:
        raise UserError(f"{entry}: holds no text")
    return texts


# ---- figures ----


def _figures(name: str, tokens: int, log_probability: float, num_bytes: int | None = None) -> dict[str, Any]:
    from zoo.inference import TextScore

    score = TextScore(tokens, num_bytes or 0, log_probability)
    figures = {"name": name, "tokens": tokens}
    if num_bytes is not None:
        figures |= {"bytes": num_bytes, "bits_per_byte": score.bits_per_byte}
    return figures | {"mean_log_probability": score.mean_log_probability, "perplexity": score.perplexity}


def _print_table(figures: dict[str, Any]) -> None:
    rows = figures["rows"]
    shown = rows[:MOST_ROWS_SHOWN] + [figures["total"]]
    columns = [key for key in figures["total"] if key != "name"]
    width = max(len(row["name"]) for row in shown)
    print(" " * width, *(f"{column.replace('_', ' '):>20}" for column in columns))
    for row in shown:
        if row is figures["total"] and len(rows) > MOST_ROWS_SHOWN:
            print(f"... {len(rows) - MOST_ROWS_SHOWN} more")
        cells = (f"{row[c]:>20,}" if isinstance(row[c], int) else f"{row[c]:>20.4f}" for c in columns)
        print(f"{row['name']:<{width}}", *cells)


def _without_nan(value: Any) -> Any:
    """JSON has no nan and no infinity: null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def _progress(unit: str, total: int) -> Iterator[Callable[[float], None]]:
    """A progress bar on a terminal's standard error, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"scoring {total:,} {unit}", total=total)
        yield lambda count: bar.advance(task, count)


if __name__ == "__main__":
    run_command(main)
