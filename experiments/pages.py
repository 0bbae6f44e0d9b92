"""What a study ends with: tables on the terminal, pictures, numbers as JSON, and the dated page in Markdown."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.aim import Aim
from experiments.speed.report import Rows, as_markdown, as_text

Table = tuple[str, Rows]
"""Title and rows, the first of which is the header."""


def aim_table(aims: Sequence[Aim]) -> Table:
    """Goals beside what was measured."""
    rows = [[aim.what, aim.aim, aim.measured, "reached" if aim.reached else "not reached"] for aim in aims]
    return "Aims", [["", "aim", "measured", ""], *rows]


def falls_short(aims: Sequence[Aim]) -> list[str]:
    """A section of the goals that were not reached."""
    lines = [f"* {aim.what}: {aim.measured}, aim {aim.aim}." for aim in aims if not aim.reached]
    return ["## What falls short", "\n".join(lines) or "Nothing of the aims."]


def write_page(
    beginning: Sequence[str],
    *,
    tables: Sequence[Table],
    pictures: Sequence[str],
    machine: Mapping[str, str],
    missing: Sequence[str] = (),
    notes: Sequence[str] = (),
    ending: Sequence[str] = (),
) -> str:
    """The page: title and protocol (`beginning`), which runs are missing, notes, a section for each table, `ending`,
    pictures by file name, and the machine."""
    parts = list(beginning)
    if missing:
        parts.append(f"Not done yet: {', '.join(missing)}.")
    parts += notes
    for title, rows in tables:
        parts += [f"## {title}", as_markdown(rows)]
    parts += ending
    parts += [f"![{name}]({name})" for name in pictures]
    parts += ["## Machine", as_markdown([["", ""], *([key, value] for key, value in machine.items())])]
    return "\n\n".join(parts) + "\n"


def publish(
    stem: str,
    out: Path,
    to: Path | None,
    *,
    tables: Sequence[Table],
    numbers: Mapping[str, Any],
    draw: Callable[[Path, str], list[str]],
    page: Callable[[list[str]], str],
    notes: Sequence[str] = (),
) -> None:
    """Prints tables and notes, and writes pictures and numbers: to `out` under `stem`, or, with the page, beside `to`.

    draw: of a folder and a stem; draws, and gives the pictures' file names. page: of these names. ValueError for a
    number that is not finite: JSON has none.
    """
    for title, rows in tables:
        print(f"\n{title}\n{as_text(rows)}")
    for note in notes:
        print(f"\n{note}")
    stem, folder = (to.stem, to.parent) if to else (stem, out)
    folder.mkdir(parents=True, exist_ok=True)
    names = draw(folder, stem)
    path = folder / f"{stem}.json"
    path.write_text(json.dumps(numbers, allow_nan=False) + "\n")
    written = [path, *(folder / name for name in names)]
    if to:
        to.write_text(page(names))
        written.append(to)
    print("\nwrote", ", ".join(map(str, written)))
