"""Recipes on the command line: every field of the dataclasses is an option; there is no other list of options."""

import contextlib
import dataclasses
import io
import re
import typing
from collections import Counter
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any

import tyro

from zoo.errors import UserError
from zoo.recipes.recipe import Recipe

SHORT_NAMES = {
    "--attention": "--execution.attention-implementation",
    "--data": "--data.paths",
    "--profile": "--profile-steps",
    "--teacher": "--distillation.teacher",
    "--teacher-cache": "--distillation.teacher-cache",
}
"""Options that may be written shorter than their field's full name."""

PROFILED_STEPS = "5"
"""What `--profile` without a number means."""


def parse_recipe(recipe: Recipe, arguments: Sequence[str], *, prog: str, description: str = "") -> Recipe:
    """The recipe with the fields changed that the arguments name (`--steps 10 --optimizer.learning-rate 1e-3`).

    `--help` prints all of them with their defaults and exits 0.

    Raises:
        UserError: an option is unknown (the nearest one is named), or a value cannot be read.
    """
    arguments = _full_names(arguments, recipe)
    if "--help" in arguments or "-h" in arguments:
        tyro.cli(type(recipe), default=recipe, args=["--help"], prog=prog, description=description)
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages), contextlib.redirect_stdout(messages):
            parsed, unknown = tyro.cli(
                type(recipe), default=recipe, args=arguments, prog=prog, return_unknown_args=True
            )
    except SystemExit:
        raise UserError(_plain(messages.getvalue())) from None
    if unknown:
        raise UserError(_unknown_message(unknown[0], recipe))
    return parsed


def option_names(config: Any, prefix: str = "") -> Iterator[str]:
    """The options that the fields of a dataclass's instance have on the command line, nested ones as `--outer.inner`.
    A part that the instance does not have (None) has none."""
    hints = typing.get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        marks = getattr(hints[field.name], "__metadata__", ())
        value, name = getattr(config, field.name), field.name.replace("_", "-")
        if tyro.conf.Fixed in marks or tyro.conf.Suppress in marks:
            continue
        if dataclasses.is_dataclass(value):
            yield from option_names(value, prefix if tyro.conf.OmitArgPrefixes in marks else f"{prefix}{name}.")
        elif not any(dataclasses.is_dataclass(part) for part in typing.get_args(hints[field.name])):
            yield f"--{prefix}{name}"


def _full_names(arguments: Sequence[str], recipe: Recipe) -> list[str]:
    """The arguments with short names spelled out. An option that is repeated or has lost its value is an error, where
    the parser would take the last one, or nothing for a list."""
    full: list[str] = []
    for argument, following in zip(arguments, [*arguments[1:], "--"], strict=False):
        name, equals, value = argument.partition("=")
        full.append(SHORT_NAMES.get(name, name) + equals + value)
        bare = not equals and following.startswith("--")
        if argument == "--profile" and (bare or not following.isdigit()):
            full.append(PROFILED_STEPS)
        elif full[-1] == "--data.paths" and bare:
            raise UserError(f"{name} needs at least one file, folder or glob")
    known = set(option_names(recipe))
    counts = Counter(argument.partition("=")[0] for argument in full if argument.startswith("--"))
    for name, count in counts.items():
        if name in known and count > 1:
            raise UserError(f"{name} is given {count} times; several values go after one {name}")
    return full


def _unknown_message(argument: str, recipe: Recipe) -> str:
    name = argument.partition("=")[0].replace("_", "-")
    if not name.startswith("--"):
        return f"unexpected argument {argument!r}: options are written --name value, and the recipe's name comes first"
    names = [*SHORT_NAMES, *option_names(recipe)]
    # A field's own name without the name of what it belongs to (--learning-rate) is the likeliest slip.
    close = [known for known in names if known.rsplit(".", 1)[-1] == name.lstrip("-").rsplit(".", 1)[-1]]
    close = close or get_close_matches(name, names, n=1, cutoff=0.5)
    return f"unknown option {name!r}; " + (f"did you mean {close[0]!r}? " if close else "") + "(--help lists all)"


def _plain(message: str) -> str:
    """A boxed message as one line: without its frame and title, and without the help text that follows a rule."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip(" │|") for line in message.splitlines()]
    rules = [number for number, line in enumerate(lines) if len(line) > 8 and set(line) <= set("-─╭╮╰╯ ")]
    boxed = lines[rules[0] + 1 : rules[1]] if len(rules) > 1 else lines
    kept = [line for line in boxed if line and not set(line) & set("╭╰") and "--help" not in line]
    return " ".join(kept) or "the command line cannot be read"


def take_flag(arguments: list[str], flag: str) -> bool:
    """Removes a flag from the arguments and says whether it was there."""
    present = flag in arguments
    arguments[:] = [argument for argument in arguments if argument != flag]
    return present
