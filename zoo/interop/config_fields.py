"""Checked access to the fields of a foreign config.json: every refusal names the file, the key and the value."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from zoo.errors import UserError

LARGEST_SIZE = 2**31 - 1


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises `UserError` naming the file if it is unreadable, malformed or not an object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value


class ConfigFields:
    """Reads typed values out of a configuration and refuses, by name, what would change the function."""

    def __init__(self, values: Mapping[str, Any], source: str, family: str):
        self.values = values
        self.source = source
        self.family = family

    def refuse(self, key: str, why: str) -> NoReturn:
        """Raises `UserError` for a key."""
        raise UserError(f"{self.source}: {key} = {json.dumps(self.values.get(key))} {why}")

    def required(self, key: str) -> Any:
        """The value of a key that must be there."""
        if key not in self.values:
            raise UserError(f"{self.source}: key {key!r} is missing; {self.family} needs it")
        return self.values[key]

    def size(self, key: str, *, largest: int = LARGEST_SIZE) -> int:
        """A positive whole number."""
        value = self.required(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= largest:
            self.refuse(key, f"is not supported: it must be a whole number from 1 to {largest}")
        return value

    def positive(self, key: str) -> float:
        """A finite number above zero."""
        value = self.required(key)
        if not _is_number(value) or not value > 0:
            self.refuse(key, "is not supported: it must be a number above 0")
        return float(value)

    def fraction(self, key: str) -> float:
        """A number from 0 to below 1."""
        value = self.required(key)
        if not _is_number(value) or not 0 <= value < 1:
            self.refuse(key, "is not supported: it must be a number from 0 to below 1")
        return float(value)

    def positive_or_none(self, key: str) -> float | None:
        """A finite number above zero, or null."""
        return None if self.required(key) is None else self.positive(key)

    def token_id(self, key: str, default: int, vocab_size: int) -> int:
        """A token of the vocabulary."""
        value = self.values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < vocab_size:
            self.refuse(key, f"is not a token id below vocab_size = {vocab_size}")
        return value

    def only(self, key: str, accepted: Sequence[Any], default: Any) -> None:
        """Refuses every value but the accepted ones; `default` is what a missing key means."""
        value = self.values.get(key, default)
        if not any(value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in accepted):
            choices = " or ".join(json.dumps(choice) for choice in accepted)
            self.refuse(key, f"is not supported by {self.family} here: it must be {choices}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def smallest_pattern(items: Sequence[str]) -> tuple[str, ...]:
    """The shortest prefix whose repetition (cut off at the end) gives `items`: l g l g l -> (l, g)."""
    for length in range(1, len(items) + 1):
        if all(item == items[i % length] for i, item in enumerate(items)):
            return tuple(items[:length])
    return ()
