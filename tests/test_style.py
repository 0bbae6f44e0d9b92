"""Lint and format, as pyproject.toml configures them. Types are checked by `mypy`, a step of its own in .ci/run."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def run_tool(repository: Path, *arguments: str) -> None:
    """Runs `python -m ARGUMENTS` in the repository; the tool's own output is the failure message."""
    if importlib.util.find_spec(arguments[0]) is None and "CI" not in os.environ:
        pytest.skip(f"{arguments[0]} is not installed (it comes with the extra `test`)")
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=repository, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def test_ruff_finds_nothing(repository: Path) -> None:
    run_tool(repository, "ruff", "check", "--output-format=concise", ".")


def test_files_are_formatted(repository: Path) -> None:
    run_tool(repository, "ruff", "format", "--check", "--output-format=concise", ".")


@pytest.mark.parametrize("script", ["tpu_setup.sh", ".ci/run"])
def test_shell_scripts_are_clean(repository: Path, script: str) -> None:
    subprocess.run(["bash", "-n", script], cwd=repository, check=True)
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed: only the syntax was checked")
    done = subprocess.run(["shellcheck", script], cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
