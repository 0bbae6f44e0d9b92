"""python -m zoo.generate: text after a prompt, a conversation, or new tokens for an array of prompts.

python -m zoo.generate --checkpoint runs/first --prompt "def main(" --temperature 0.8 --top-p 0.95
python -m zoo.generate --checkpoint gemma-2-2b-it --chat
python -m zoo.generate --checkpoint CKPT --tokens ids.npy --mask mask.npy --out new_ids.npy --max-new-tokens 32
python -m zoo.generate --checkpoint CKPT --prompt "..." --mesh context=4     # four devices share a long prompt
python -m zoo.generate --checkpoint RUN --interleaved prompts.jsonl --images-out drawn/     # media in, images out
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from zoo.command_line import AttentionName, parse_command
from zoo.errors import UserError, run_command

DEFAULT_NEW_TOKENS = 128

CHAT_LENGTH_STEP = 64
"""Prompts of a conversation are padded to a multiple of this: most turns then reuse a compiled program."""


@dataclass(frozen=True)
class Generate:
    """Continues prompts with a trained model. Text goes to standard output, everything else to standard error."""

    checkpoint: Path
    """A run directory of zoo.train, a checkpoint in it, a Hugging Face folder or a google-deepmind/gemma tree."""
    prompt: tuple[str, ...] = ()
    """One or more prompts; several are generated as one batch."""
    chat: bool = False
    """Put each prompt into Gemma's turn template; without --prompt, an interactive conversation."""
    interleaved: Path | None = None
    """.jsonl file of prompts, instead of --prompt: each line is a record as in training, of texts, images, recordings
    and videos ({"text": ...}, {"image": "a.png"}, ...). One that ends in {"image": "", "output": true} is continued by
    an image. All records are generated as one batch."""
    images_out: Path | None = None
    """New folder for the images that are drawn after --interleaved, prompt-N-image-M.png; the text names them where
    they stand. Without it no images are drawn."""
    image_tokenizer: Path | None = None
    """Run of `zoo.train image-vq` whose codes the images are. Default: data.media.image_tokenizer of the checkpoint's
    recipe."""
    tokens: Path | None = None
    """int [B, T] .npy file of token ids, instead of --prompt; nothing is added to them."""
    mask: Path | None = None
    """int [B, T] .npy file for --tokens: 1 = token, 0 = padding (on the left)."""
    out: Path | None = None
    """.npy file for the new ids, int32 [B, N]; needed with --tokens."""
    max_new_tokens: int | None = None
    """New tokens per prompt, at most where a stop token is in force. Default: 128, or what the context has room for."""
    temperature: float = 0.0
    """0 = greedy; 1 = the model's own distribution."""
    top_k: int | None = None
    """Draw from the K most probable tokens only."""
    top_p: float | None = None
    """Draw from the fewest tokens that together have probability P only."""
    seed: int = 0
    """The same seed and prompt give the same text."""
    stop_tokens: tuple[int, ...] | None = None
    """Ids that end a row. Default: the model's end tokens for --prompt and --chat, none for --tokens."""
    adapter: tuple[Path, ...] = ()
    """Adapters that are put into the model: folders of zoo.export or of the library peft, or runs that trained them."""
    adapter_weights: tuple[float, ...] = ()
    """What each of them is multiplied with; default 1."""
    compute_dtype: Literal["float32", "bfloat16"] | None = None
    """Dtype of weights and activations. Default: float32 on CPU, bfloat16 elsewhere."""
    cache_dtype: Literal["float32", "bfloat16", "int8"] | None = None
    """Dtype of the keys and values that are kept. Default: the compute dtype."""
    attention: AttentionName | None = None
    """Which attention kernels. Default: the best ones for the back end."""
    mesh: str | None = None
    """Devices that share the work, such as context=4 (tokens of a prompt, and the cache), tensor=2 (heads, vocabulary)
    or fsdp=2 (rows); together all devices. Default: one device."""


def main(argv: Sequence[str] | None = None) -> None:
    """The command; raises UserError for wrong input."""
    options = parse_command(Generate, "zoo.generate", argv)
    _check(options)
    if options.tokens is not None:
        _generate_arrays(options)
    elif options.interleaved is not None:
        _generate_interleaved(options)
    elif options.prompt:
        _generate_texts(options)
    else:
        _converse(options)


def _check(options: Generate) -> None:
    """What can be said without loading anything."""
    from zoo.inference.prompts import check_seed

    _sampling(options)
    check_seed(options.seed)
    _mesh(options)
    if options.max_new_tokens is not None and options.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens must be at least 1, got {options.max_new_tokens}")
    if options.interleaved is not None and (options.prompt or options.chat or options.tokens is not None):
        raise UserError("--interleaved cannot be combined with --prompt, --chat or --tokens: give one of them")
    if options.interleaved is None and (options.images_out is not None or options.image_tokenizer is not None):
        raise UserError("--images-out and --image-tokenizer belong to --interleaved")
    if options.tokens is not None:
        if options.prompt or options.chat:
            raise UserError("--tokens cannot be combined with --prompt or --chat: give one of them")
        if options.out is None:
            raise UserError("--tokens needs --out: the .npy file for the new ids")
        return
    if options.mask is not None:
        raise UserError("--mask belongs to --tokens; prompts given as text are padded by themselves")
    if options.interleaved is None and not options.prompt and not (options.chat and sys.stdin.isatty()):
        raise UserError(
            "nothing to continue: give --prompt TEXT, --interleaved FILE, --tokens FILE, or --chat on a terminal"
        )


def _sampling(options: Generate):
    from zoo.inference import Sampling

    return Sampling(options.temperature, options.top_k, options.top_p)


def _mesh(options: Generate):
    """The mesh that was asked for, or None."""
    from zoo.parallel import make_mesh
    from zoo.parallel.mesh import parse_mesh

    return None if options.mesh is None else make_mesh(parse_mesh(options.mesh))


def _load(options: Generate, *, tokenizer_needed: bool):
    import zoo
    from zoo.inference import INFERENCE_RULES
    from zoo.nn import Execution

    dtype = options.compute_dtype
    execution = None if dtype is None else Execution(compute_dtype=dtype, param_dtype=dtype)
    mesh = _mesh(options)
    rules = None if mesh is None else INFERENCE_RULES
    loaded = zoo.load(
        options.checkpoint,
        execution=execution,
        attention=options.attention,
        mesh=mesh,
        rules=rules,
        adapter=options.adapter,
        adapter_weights=options.adapter_weights or None,
    )
    if mesh is not None and mesh.shape["context"] > 1:
        for adapter in loaded.adapters:
            if adapter.config.method == "prefix":
                raise UserError(
                    f"{adapter.source} is a prefix, which is not supported where devices share the tokens of a "
                    "sequence: leave context out of --mesh"
                )
    if not hasattr(loaded.model, "init_cache"):
        raise UserError(f"{options.checkpoint}: a {type(loaded.model).__name__} generates no text")
    if tokenizer_needed and loaded.tokenizer is None:
        raise UserError(f"{options.checkpoint}: has no tokenizer, so text cannot be read; use --tokens ids.npy")
    return loaded


def _generate(options: Generate, loaded, tokens, mask, stop_tokens: Sequence[int], on_token, media=None, images=None):
    """images: the ImageOutput; None = words only."""
    from zoo.inference import generate
    from zoo.inference.limits import max_new_tokens

    default = DEFAULT_NEW_TOKENS + (0 if images is None else images.image_length)
    context = loaded.config.max_position_embeddings
    return generate(
        loaded.model,
        tokens,
        mask,
        max_new_tokens=max_new_tokens(options.max_new_tokens, int(mask.sum(1).max()), context, default),
        sampling=_sampling(options),
        stop_tokens=stop_tokens,
        seed=options.seed,
        on_token=on_token,
        pad_id=loaded.config.pad_token_id,
        mesh=_mesh(options),
        media=media,
        image_output=images or _words_only(loaded),
        cache_dtype=options.cache_dtype,
    )


def _words_only(loaded):
    """What keeps markers and image codes from being drawn as if they were words; None for a model that has none."""
    from zoo.data import MediaVocabulary
    from zoo.inference import ImageOutput

    if loaded.media_config is None:
        return None
    if loaded.tokenizer is None:
        raise UserError(
            f"{loaded.path}: was trained with media; which tokens are words cannot be told without a tokenizer"
        )
    return ImageOutput(MediaVocabulary(loaded.tokenizer.vocab_size, loaded.media_config.image_codes))


# ---- arrays of ids ----


def _generate_arrays(options: Generate) -> None:
    from zoo.inference.files import output_file, read_array
    from zoo.inference.limits import check_stop_tokens
    from zoo.inference.meter import Meter
    from zoo.inference.prompts import check_mask, check_tokens

    assert options.tokens is not None
    name = str(options.tokens)
    tokens = check_tokens(read_array(options.tokens), name=name)
    mask = None if options.mask is None else read_array(options.mask)
    mask = check_mask(mask, tokens, str(options.mask), left=True)
    with output_file(options.out) as output:
        loaded = _load(options, tokenizer_needed=False)
        check_tokens(tokens, loaded.config.vocab_size, name)
        stop_tokens = check_stop_tokens(options.stop_tokens or (), loaded.config.vocab_size)
        meter = Meter(len(tokens), stop_tokens)
        new_tokens = _generate(options, loaded, tokens, mask, stop_tokens, meter.count)
        assert output is not None
        output.write_array(new_tokens)
    meter.report()


# ---- interleaved records ----


def _generate_interleaved(options: Generate) -> None:
    from zoo.inference import stack_prompts
    from zoo.inference.drawn_images import Painter, image_output_of, images_folder, write_answer
    from zoo.inference.files import output_file
    from zoo.inference.interleaved import read_records
    from zoo.inference.limits import until_stop
    from zoo.inference.meter import Meter

    assert options.interleaved is not None
    with output_file(options.out) as output, images_folder(options.images_out) as folder:
        loaded = _load(options, tokenizer_needed=True)
        config, tokenizer = loaded.media_config, loaded.tokenizer
        if config is None:
            raise UserError(
                f"{options.checkpoint}: --interleaved needs a run that was trained on interleaved documents, which "
                "records how media become tokens"
            )
        painter = Painter(options.image_tokenizer or config.image_tokenizer, options.checkpoint)
        images = None if folder is None else image_output_of(painter.model.config, tokenizer, config)
        records = read_records(options.interleaved, tokenizer, config, painter.encode)
        if images is None and (asking := next((record for record in records if record.opens_image), None)):
            raise UserError(f"{asking.where}: asks for an image: say --images-out FOLDER")
        tokens, mask, media = stack_prompts([record.prompt for record in records], loaded.config.pad_token_id)
        stop_tokens = _stop_tokens(options, loaded)
        meter = Meter(len(records), stop_tokens)
        new_tokens = _generate(options, loaded, tokens, mask, stop_tokens, meter.count, media, images)
        for number, (record, row) in enumerate(zip(records, new_tokens, strict=True), 1):
            text, cut = tokenizer.decode(ids := until_stop(row, stop_tokens)), 0
            if folder is not None and images is not None:
                prefix = folder / f"prompt-{number}"
                inside = record.opens_image
                text, cut = write_answer(ids, images, tokenizer.decode, painter.paint, prefix, inside=inside)
            print(f"[{record.where}]\n{text}\n" if len(records) > 1 else text)
            if cut:
                print(f"{record.where}: --max-new-tokens ended inside of an image; it is not written", file=sys.stderr)
        if output is not None:
            output.write_array(new_tokens)
    meter.report()


# ---- text ----


def _generate_texts(options: Generate) -> None:
    from zoo.inference import left_pad
    from zoo.inference.files import output_file
    from zoo.inference.limits import until_stop
    from zoo.inference.meter import Meter

    with output_file(options.out) as output:
        loaded = _load(options, tokenizer_needed=True)
        prompts = [_encode(text, options, loaded.tokenizer) for text in options.prompt]
        stop_tokens = _stop_tokens(options, loaded)
        meter = Meter(len(prompts), stop_tokens)
        if len(prompts) == 1:
            new_tokens, _ = _stream(options, loaded, prompts[0], stop_tokens, meter, 1)
        else:
            tokens, mask = left_pad(prompts, loaded.config.pad_token_id)
            new_tokens = _generate(options, loaded, tokens, mask, stop_tokens, meter.count)
            for text, row in zip(options.prompt, new_tokens, strict=True):
                print(f"[{_title(text)}]\n{loaded.tokenizer.decode(until_stop(row, stop_tokens))}\n")
        if output is not None:
            output.write_array(new_tokens)
    meter.report()


def _stream(options: Generate, loaded, prompt: list[int], stop_tokens, meter, length_step: int):
    """(new tokens [1, N], text) of one prompt, printed as it arrives."""
    from zoo.inference import TextStream, left_pad

    stream, shown = TextStream(loaded.tokenizer), []

    def show(text: str) -> None:
        shown.append(text)
        sys.stdout.write(text)
        sys.stdout.flush()

    def on_token(tokens) -> None:
        meter.count(tokens)
        if tokens[0] not in stop_tokens:
            show(stream.push(tokens))

    tokens, mask = left_pad([prompt], loaded.config.pad_token_id, length_step)
    try:
        new_tokens = _generate(options, loaded, tokens, mask, stop_tokens, on_token)
    except KeyboardInterrupt:
        print()
        raise
    show(stream.flush() + "\n")
    return new_tokens, "".join(shown)


def _converse(options: Generate) -> None:
    from zoo.data import render_chat
    from zoo.inference.conversation import converse
    from zoo.inference.meter import Meter

    loaded = _load(options, tokenizer_needed=True)
    stop_tokens = _stop_tokens(options, loaded)

    def answer(messages: list[dict[str, str]]) -> str:
        meter = Meter(1, stop_tokens)
        try:
            prompt = render_chat(messages, loaded.tokenizer)
            return _stream(options, loaded, prompt, stop_tokens, meter, CHAT_LENGTH_STEP)[1]
        finally:
            meter.report()

    converse(answer)


def _encode(text: str, options: Generate, tokenizer) -> list[int]:
    from zoo.data import render_chat

    if options.chat:
        return render_chat([{"role": "user", "content": text}], tokenizer)
    return tokenizer.encode(text, bos=True)


def _stop_tokens(options: Generate, loaded) -> tuple[int, ...]:
    from zoo.inference.limits import check_stop_tokens

    if options.stop_tokens is not None:
        return check_stop_tokens(options.stop_tokens, loaded.config.vocab_size)
    if not options.chat:
        return tuple(loaded.config.eos_token_ids)
    from zoo.data.chat import turn_tokens

    # A base model that was tuned on turns ends them, too, though its configuration names <eos> only.
    return tuple(sorted({*loaded.config.eos_token_ids, turn_tokens(loaded.tokenizer)[1]}))


def _title(prompt: str) -> str:
    line = " ".join(prompt.split())
    return line if len(line) <= 60 else line[:57] + "..."


if __name__ == "__main__":
    run_command(main)
