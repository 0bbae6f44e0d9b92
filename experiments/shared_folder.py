"""The optional folder `shared`: real data that is not in the repository, and what several experiments read there."""

import os
from pathlib import Path

TRAINING_NOVELS = "data/eltec_eng_novels/train.txt.xz"
"""32 English novels, 20 MB."""
LONG_NOVELS = "data/eltec_eng_novels/long.txt.xz"
"""Three long novels, in no training split."""


def default_shared() -> Path | None:
    """$ZOO_SHARED, or `shared` beside the repository; None where there is no such folder."""
    folder = Path(os.environ.get("ZOO_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    return folder if folder.is_dir() else None


def named(entry: str) -> str:
    """A path as a report names it: the file and its folder, not where that lies on this machine."""
    return "/".join(Path(entry).parts[-2:])


def training_novels() -> tuple[str, ...]:
    """The file to train on, as paths; none where it is not there."""
    shared = default_shared()
    return () if shared is None or not (shared / TRAINING_NOVELS).is_file() else (str(shared / TRAINING_NOVELS),)


def long_novels() -> tuple[str, ...]:
    """The file to measure on, as paths; none where it is not there."""
    shared = default_shared()
    return () if shared is None or not (shared / LONG_NOVELS).is_file() else (str(shared / LONG_NOVELS),)
