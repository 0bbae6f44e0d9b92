"""python -m zoo.generate: text after a prompt, a conversation, or new tokens for an array of prompts.

python -m zoo.generate --checkpoint runs/first --prompt "def main(" --temperature 0.8 --top-p 0.95
python -m zoo.generate --checkpoint gemma-2-2b-it --chat
python -m zoo.generate --checkpoint CKPT --tokens ids.npy --mask mask.npy --out new_ids.npy --max-new-tokens 32
python -m zoo.generate --checkpoint CKPT --prompt "..." --mesh context=4     # four devices share a long prompt
"""

import sys
import time
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
    compute_dtype: Literal["float32", "bfloat16"] | None = None
    """Dtype of weights and activations. Default: float32 on CPU, bfloat16 elsewhere."""
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
    if options.tokens is not None:
        if options.prompt or options.chat:
            raise UserError("--tokens cannot be combined with --prompt or --chat: give one of them")
        if options.out is None:
            raise UserError("--tokens needs --out: the .npy file for the new ids")
        return
    if options.mask is not None:
        raise UserError("--mask belongs to --tokens; prompts given as text are padded by themselves")
    if not options.prompt and not (options.chat and sys.stdin.isatty()):
        raise UserError("nothing to continue: give --prompt TEXT, or --tokens FILE, or --chat on a terminal")


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
    loaded = zoo.load(options.checkpoint, execution=execution, attention=options.attention, mesh=mesh, rules=rules)
    if not hasattr(loaded.model, "init_cache"):
        raise UserError(f"{options.checkpoint}: a {type(loaded.model).__name__} generates no text")
    if tokenizer_needed and loaded.tokenizer is None:
        raise UserError(f"{options.checkpoint}: has no tokenizer, so --prompt cannot be read; use --tokens ids.npy")
    return loaded


def _generate(options: Generate, loaded, tokens, mask, stop_tokens: Sequence[int], on_token):
    from zoo.inference import generate

    return generate(
        loaded.model,
        tokens,
        mask,
        max_new_tokens=_max_new_tokens(options, int(mask.sum(1).max()), loaded.config),
        sampling=_sampling(options),
        stop_tokens=stop_tokens,
        seed=options.seed,
        on_token=on_token,
        pad_id=loaded.config.pad_token_id,
        mesh=_mesh(options),
    )


def _max_new_tokens(options: Generate, longest_prompt: int, config) -> int:
    """How many tokens to generate; raises UserError where the model's context has no room for them."""
    context = config.max_position_embeddings
    room = context - longest_prompt
    if room < 1:
        raise UserError(f"a prompt of {longest_prompt} tokens fills the model's context of {context} tokens")
    if options.max_new_tokens is not None and options.max_new_tokens > room:
        raise UserError(
            f"--max-new-tokens {options.max_new_tokens} after a prompt of {longest_prompt} tokens exceeds the model's "
            f"context of {context} tokens: at most {room} fit"
        )
    return min(DEFAULT_NEW_TOKENS, room) if options.max_new_tokens is None else options.max_new_tokens


# ---- arrays of ids ----


def _generate_arrays(options: Generate) -> None:
    from zoo.inference.files import output_file, read_array
    from zoo.inference.prompts import check_mask, check_tokens

    assert options.tokens is not None
    name = str(options.tokens)
    tokens = check_tokens(read_array(options.tokens), name=name)
    mask = None if options.mask is None else read_array(options.mask)
    mask = check_mask(mask, tokens, str(options.mask), left=True)
    with output_file(options.out) as output:
        loaded = _load(options, tokenizer_needed=False)
        check_tokens(tokens, loaded.config.vocab_size, name)
        stop_tokens = _known_ids(options.stop_tokens or (), loaded.config)
        meter = Meter(len(tokens), stop_tokens)
        new_tokens = _generate(options, loaded, tokens, mask, stop_tokens, meter.count)
        assert output is not None
        output.write_array(new_tokens)
    meter.report()


# ---- text ----


def _generate_texts(options: Generate) -> None:
    from zoo.inference import left_pad
    from zoo.inference.files import output_file

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
                print(f"[{_title(text)}]\n{loaded.tokenizer.decode(_until_stop(row, stop_tokens))}\n")
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
    """Turns typed at the terminal; an empty line or end of input ends the conversation, Ctrl-C an answer."""
    from zoo.data import render_chat

    loaded = _load(options, tokenizer_needed=True)
    stop_tokens = _stop_tokens(options, loaded)
    print("Type a message; an empty one ends the conversation.", file=sys.stderr)
    messages: list[dict[str, str]] = []
    while True:
        try:
            said = input("you> ").strip()
        except (EOFError, KeyboardInterrupt):
            said = ""
        if not said:
            return
        messages.append({"role": "user", "content": said})
        prompt = render_chat(messages, loaded.tokenizer)
        meter = Meter(1, stop_tokens)
        answer = ""
        try:
            _, answer = _stream(options, loaded, prompt, stop_tokens, meter, CHAT_LENGTH_STEP)
        except KeyboardInterrupt:
            print("(stopped; your message was taken back)", file=sys.stderr)
        meter.report()
        if answer.strip():
            messages.append({"role": "model", "content": answer})
        else:
            messages.pop()


def _encode(text: str, options: Generate, tokenizer) -> list[int]:
    from zoo.data import render_chat

    if options.chat:
        return render_chat([{"role": "user", "content": text}], tokenizer)
    return tokenizer.encode(text, bos=True)


def _stop_tokens(options: Generate, loaded) -> tuple[int, ...]:
    if options.stop_tokens is not None:
        return _known_ids(options.stop_tokens, loaded.config)
    if not options.chat:
        return tuple(loaded.config.eos_token_ids)
    from zoo.data.chat import turn_tokens

    # A base model that was tuned on turns ends them, too, though its configuration names <eos> only.
    return tuple(sorted({*loaded.config.eos_token_ids, turn_tokens(loaded.tokenizer)[1]}))


def _known_ids(ids: Sequence[int], config) -> tuple[int, ...]:
    for token in ids:
        if not 0 <= token < config.vocab_size:
            raise UserError(f"--stop-tokens: {token} is outside the vocabulary (0 .. {config.vocab_size - 1})")
    return tuple(ids)


def _until_stop(row, stop_tokens: Sequence[int]) -> list[int]:
    ids = [int(token) for token in row]
    return ids[: next((i for i, token in enumerate(ids) if token in stop_tokens), len(ids))]


def _title(prompt: str) -> str:
    line = " ".join(prompt.split())
    return line if len(line) <= 60 else line[:57] + "..."


class Meter:
    """Counts new tokens, and the time from the first ones on (what comes before is mostly compilation)."""

    def __init__(self, rows: int, stop_tokens: Sequence[int]):
        self._stop_tokens = set(stop_tokens)
        self._running = [True] * rows
        self._start = time.perf_counter()
        self._first: float | None = None
        self._total = self._after_first = 0

    def count(self, tokens) -> None:
        """Takes one step's tokens [B]; rows that have stopped do not count."""
        new = sum(self._running)
        self._running = [on and int(t) not in self._stop_tokens for on, t in zip(self._running, tokens, strict=True)]
        self._total += new
        if self._first is None:
            self._first = time.perf_counter()
        else:
            self._after_first += new

    def report(self) -> None:
        """One line on standard error."""
        if self._first is None:
            return
        line = f"{self._total} new tokens, the first after {self._first - self._start:.2f} s (compilation included)"
        if self._after_first:
            line += f", then {self._after_first / (time.perf_counter() - self._first):.1f} tokens/s"
        print(line, file=sys.stderr)


if __name__ == "__main__":
    run_command(main)
