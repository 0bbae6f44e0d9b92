"""python -m zoo.export: a checkpoint in another format.

python -m zoo.export runs/first exported --format huggingface --dtype bfloat16
python -m zoo.export gemma-2-2b gemma-2-2b-orbax --format deepmind
python -m zoo.export runs/first packed --format quantised --bits 4
python -m zoo.export packed phone --format gguf
python -m zoo.export runs/a mean --average runs/b runs/c --format orbax
python -m zoo.export runs/lora lora --format peft
python -m zoo.export gemma-2-2b merged --merge-adapter lora --format huggingface
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from zoo.command_line import parse_command
from zoo.errors import UserError, run_command

_OPENING = {
    "huggingface": "transformers.AutoModelForCausalLM.from_pretrained({path!r})",
    "orbax": "zoo.load({path!r}), or --checkpoint / --init-from {path} of the commands",
    "deepmind": "gemma.gm.ckpts.load_params({path!r})",
    "quantised": "zoo.load({path!r}), or --checkpoint {path} of zoo.generate and zoo.score",
    "gguf": "llama-cli -m {path}/model.gguf",
    "peft": "peft.PeftModel.from_pretrained(base, {path!r}), or --adapter {path}",
    "adapter": "zoo.load(base, adapter={path!r}), or --adapter {path}",
}


@dataclass(frozen=True)
class Export:
    """Writes the weights of a checkpoint in another format, in one piece or not at all. Needs no accelerator."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """A run directory of zoo.train, a checkpoint in it, a Hugging Face folder, a google-deepmind/gemma tree, or packed
    weights (quantised)."""
    out: Annotated[Path, tyro.conf.Positional]
    """The new folder; must not exist or be empty."""
    format: Literal["huggingface", "orbax", "deepmind", "quantised", "gguf", "peft", "adapter"]
    """huggingface: opens in transformers. orbax: the zoo's own. deepmind: the google-deepmind/gemma tree (flat).
    quantised: the zoo's own, with packed weights. gguf: for llama.cpp and other on-device runtimes, packed or not.
    Of a run that trained an adapter: peft, the library's folder of a LoRA; adapter, the zoo's own of any kind. In the
    other formats the adapter is merged into its base."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Dtype of the weights that are not packed; default: as stored, bit for bit."""
    bits: Literal[4, 8] | None = None
    """Bits of a packed weight. Default: 4 for quantised; gguf packs nothing that is not packed already."""
    embedding_bits: Literal[4, 8] | None = None
    """Of the embedding, which is the output head as well; default: as --bits."""
    group: int = 32
    """Weights that share a scale (quantised); gguf knows 32 only."""
    average: tuple[Path, ...] = ()
    """Further checkpoints of the same architecture: the mean of all of them, CHECKPOINT included, is written."""
    ema: float | None = None
    """Instead of the newest weights of a run directory, a moving average over its saved steps is written, in which this
    part of the average so far is kept at each step (0.5: the newest counts half)."""
    merge_adapter: tuple[Path, ...] = ()
    """Adapters that become part of the checkpoint's weights: LoRA, bitfit and sparse ones."""
    adapter_weights: tuple[float, ...] = ()
    """What each of them is multiplied with; default 1."""
    max_shard_gb: float = 5.0
    """Largest size of one weight file (huggingface)."""
    overwrite: bool = False
    """Replace an earlier export."""


def main(argv: Sequence[str] | None = None) -> None:
    """The command; raises UserError for wrong input."""
    options = parse_command(Export, "zoo.export", argv)
    if not 0 < options.max_shard_gb < 1e6:
        raise UserError(f"--max-shard-gb must be above 0, got {options.max_shard_gb}")
    _check_packing(options)
    _check_average(options)
    _check_adapters(options)
    import jax

    jax.config.update("jax_platforms", "cpu")  # an export fills the host's memory, not an accelerator's
    from zoo.interop import load, read_config
    from zoo.interop.architectures import architecture_of, find_architecture
    from zoo.interop.new_folder import check_destination
    from zoo.models import Bert, Decoder

    for source in (options.checkpoint, *options.average):
        check_destination(options.out, overwrite=options.overwrite, source=source)
    if options.format in _ADAPTERS:
        _write_adapter(options)
        return
    config = read_config(options.checkpoint)
    known = architecture_of(config) if options.format == "huggingface" else find_architecture(config)
    tensors = None if known is None else len(known.places(config))
    checkpoints, weights = _chosen(options)
    with _Progress("reading", tensors and tensors * len(checkpoints)) as progress:
        if len(checkpoints) == 1:
            loaded = load(
                options.checkpoint,
                param_dtype="stored",
                on_tensor=progress.advance,
                adapter=options.merge_adapter,
                adapter_weights=options.adapter_weights or None,
                merge=True,
            )
        else:
            from zoo.recipes.averaging import load_average

            loaded = load_average(checkpoints, weights, on_tensor=progress.advance)
    if loaded.source == "quantised":
        if options.format not in _PACKED:
            raise UserError(
                f"{options.checkpoint} holds packed weights: they go to quantised or gguf, not {options.format}"
            )
        if options.bits:
            raise UserError(f"{options.checkpoint} is packed already: leave out --bits, or export what it was made of")
    with _Progress("writing", tensors) as progress:
        _write(loaded, options, progress)
    size = sum(file.stat().st_size for file in options.out.rglob("*") if file.is_file())
    source = f"{options.checkpoint} ({loaded.source})"
    if len(checkpoints) > 1:
        source = f"the {'mean' if options.ema is None else 'moving average'} of {', '.join(map(str, checkpoints))}"
    print(f"wrote {options.out} ({size / 1e6:.1f} MB, {options.format}) from {source}")
    opening = _OPENING[options.format].format(path=str(options.out))
    is_decoder = isinstance(loaded.model, Decoder)
    if not is_decoder:
        masked = isinstance(loaded.model, Bert) and loaded.config.head == "masked_lm"
        opening = opening.replace("AutoModelForCausalLM", "AutoModelForMaskedLM" if masked else "AutoModel")
    print(f"open it with {opening}")
    if is_decoder and loaded.tokenizer_folder is None:
        print("the checkpoint has no tokenizer, so the export has none", file=sys.stderr)


def _check_average(options: Export) -> None:
    if options.average and options.ema is not None:
        raise UserError(
            "--average is a mean of checkpoints, --ema a moving average of one run's steps: give one of them"
        )
    if options.ema is not None and not 0 <= options.ema < 1:
        raise UserError(f"--ema must be at least 0 and below 1, got {options.ema}")


def _check_adapters(options: Export) -> None:
    several = bool(options.average) or options.ema is not None
    if options.merge_adapter and (several or options.format in _ADAPTERS):
        what = "--average and --ema" if several else f"--format {options.format}"
        raise UserError(f"--merge-adapter and {what} do not go together: export one after the other")
    if options.adapter_weights and len(options.adapter_weights) != len(options.merge_adapter):
        raise UserError(f"--adapter-weights needs one number for each of {len(options.merge_adapter)} --merge-adapter")
    if options.format in _ADAPTERS and (several or options.dtype or options.bits or options.embedding_bits):
        raise UserError(
            f"--format {options.format} takes no options of whole models (--average, --ema, --dtype, --bits)"
        )


def _chosen(options: Export) -> tuple[list[Path], list[float] | None]:
    """The checkpoints that are read, and what each counts (None: all the same)."""
    if options.ema is None:
        return [options.checkpoint, *options.average], None
    from zoo.recipes.averaging import moving_average_weights, steps_to_average

    steps = steps_to_average(options.checkpoint)
    return steps, moving_average_weights(len(steps), options.ema)


_PACKED, _ADAPTERS = ("quantised", "gguf"), ("peft", "adapter")


def _check_packing(options: Export) -> None:
    if options.format not in _PACKED and (options.bits or options.embedding_bits or options.group != 32):
        raise UserError(
            f"--bits, --embedding-bits and --group belong to --format quantised or gguf, not {options.format}"
        )
    if options.format == "gguf" and options.embedding_bits and not options.bits:
        raise UserError("--embedding-bits needs --bits: otherwise nothing is packed")


def _write_adapter(options: Export) -> None:
    """The adapter that a run trained, as a folder of its own."""
    from zoo.interop.adapters import is_adapter_run, read_adapter_run, save_adapter, save_peft

    if not is_adapter_run(options.checkpoint):
        raise UserError(f"{options.checkpoint} is no run that trained an adapter (zoo.train --peft.method)")
    adapter, config = read_adapter_run(options.checkpoint)
    save = save_peft if options.format == "peft" else save_adapter
    save(adapter, options.out, config=config, overwrite=options.overwrite)
    print(
        f"wrote {options.out} ({adapter.config.method}, {adapter.num_parameters:,} numbers) from {options.checkpoint}"
    )
    print(f"open it with {_OPENING[options.format].format(path=str(options.out))}")


def _write_packed(loaded, options: Export, progress: "_Progress") -> None:
    from zoo.interop import Packing, save_gguf, save_quantised

    packing = Packing(options.bits or 4, options.embedding_bits, options.group)
    written = dict(
        tokenizer=loaded.tokenizer, dtype=options.dtype, overwrite=options.overwrite, on_tensor=progress.advance
    )
    if options.format == "quantised":
        save_quantised(loaded.model, options.out, packing, **written)
    else:
        name = options.checkpoint.resolve().name
        save_gguf(loaded.model, options.out, packing if options.bits else None, name=name, **written)


def _write(loaded, options: Export, progress: "_Progress") -> None:
    from zoo.interop import save_deepmind, save_huggingface, save_run
    from zoo.interop.huggingface import carried_files

    out, dtype, overwrite = options.out, options.dtype, options.overwrite
    if options.format in _PACKED:
        _write_packed(loaded, options, progress)
    elif options.format == "huggingface":
        save_huggingface(
            loaded.model,
            out,
            # What lies in a Hugging Face folder goes along byte for byte; a tokenizer of ours brings its own file.
            tokenizer=None if loaded.source == "huggingface" else loaded.tokenizer,
            carried=carried_files(loaded.path) if loaded.source == "huggingface" else (),
            max_shard_bytes=max(1, int(options.max_shard_gb * 1e9)),
            dtype=dtype,
            overwrite=overwrite,
            on_tensor=progress.advance,
        )
    elif options.format == "deepmind":
        save_deepmind(
            loaded.model,
            out,
            tokenizer=loaded.tokenizer,
            dtype=dtype,
            overwrite=overwrite,
            on_tensor=progress.advance,
        )
    else:
        save_run(loaded.model, out, tokenizer=loaded.tokenizer, dtype=dtype, overwrite=overwrite)


class _Progress:
    """One line on a terminal: what is done, and the tensor it is at; nothing where standard error is no terminal."""

    def __init__(self, title: str, total: int | None):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn(title),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
        )
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
        self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> "_Progress":
        self._bar.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._bar.stop()

    def advance(self, name: str) -> None:
        """One more tensor is done."""
        self._bar.update(self._task, advance=1, description=name)


def _silence_orbax() -> None:
    """A save that fails is reported by our own one line; Orbax adds log records, and its threads tracebacks."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    report = sys.unraisablehook
    sys.unraisablehook = lambda event: None if "Event loop is closed" in str(event.exc_value) else report(event)


if __name__ == "__main__":
    _silence_orbax()
    run_command(main)
