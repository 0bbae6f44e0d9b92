"""The package as an installer sees it: dependencies, extras, pins, and an import that costs nothing."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
PINS = [Requirement(line) for line in (REPOSITORY / "constraints.txt").read_text("utf-8").splitlines()]


def direct_dependencies(extra: str | None = None) -> list[Requirement]:
    """The requirements of the core (None) or of an extra, without the extras of this project that it includes."""
    lines = PROJECT["dependencies"] if extra is None else EXTRAS[extra]
    return [requirement for requirement in map(Requirement, lines) if requirement.name != PROJECT["name"]]


def test_import_zoo_is_cheap(repository: Path) -> None:
    heavy = ("jax", "flax", "numpy", "orbax", "grain", "matplotlib", "sentencepiece", "torch", "transformers")
    program = f"import sys, zoo; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_extras_parse_and_include_only_known_ones() -> None:
    assert {"tpu", "cuda", "data", "hf", "test", "verify", "wandb"} <= EXTRAS.keys()
    for lines in EXTRAS.values():
        for requirement in map(Requirement, lines):
            if requirement.name == PROJECT["name"]:
                assert requirement.extras <= EXTRAS.keys()


def test_constraints_hold_no_address() -> None:
    text = (REPOSITORY / "constraints.txt").read_text("utf-8")
    assert "://" not in text and "@" not in text and not re.search(r"^\s*-", text, re.MULTILINE)
    for pin in PINS:
        assert pin.url is None and re.fullmatch(r"==[^*,]+", str(pin.specifier)), pin


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_every_direct_dependency_is_pinned_within_its_range(python: str) -> None:
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    pins = {canonicalize_name(pin.name): pin for pin in PINS if pin.marker is None or pin.marker.evaluate(environment)}
    for extra in (None, *(EXTRAS.keys() - {"verify"})):
        for requirement in direct_dependencies(extra):
            pin = pins[canonicalize_name(requirement.name)]
            (version,) = pin.specifier
            assert requirement.specifier.contains(version.version, prereleases=True), f"{requirement}: pinned to {pin}"


def third_party_imports(path: Path) -> dict[str, bool]:
    """The top-level names that a file imports from elsewhere; True where the import is outside of any function."""
    found: dict[str, bool] = {}

    def visit(node: ast.AST, at_import: bool) -> None:
        for child in ast.iter_child_nodes(node):
            names: list[str] = []
            if isinstance(child, ast.Import):
                names = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom) and child.module and not child.level:
                names = [child.module]
            for name in names:
                top = name.split(".")[0]
                if top not in sys.stdlib_module_names and top not in ("zoo", "experiments"):
                    found[top] = found.get(top, False) or at_import
            visit(child, at_import and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))

    visit(ast.parse(path.read_text("utf-8")), True)
    return found


@pytest.mark.parametrize("folder", ["zoo", "experiments"])
def test_imports_are_declared_dependencies(folder: str) -> None:
    """At module level only what every installation has; in functions also what an extra brings."""
    distributions = importlib.metadata.packages_distributions()
    core = {canonicalize_name(requirement.name) for requirement in direct_dependencies()}
    extras = {canonicalize_name(requirement.name) for extra in EXTRAS for requirement in direct_dependencies(extra)}
    undeclared = []
    for path in sorted((REPOSITORY / folder).rglob("*.py")):
        for name, at_import in third_party_imports(path).items():
            known = {canonicalize_name(distribution) for distribution in distributions.get(name, [name])}
            # A file torch_*.py is the program of a subprocess that is started only where torch is installed.
            optional = not at_import or path.name.startswith("torch_")
            if not known & (core | extras if optional else core):
                where = "at module level" if at_import else "in a function"
                undeclared.append(f"{path.relative_to(REPOSITORY)} imports {name} {where}")
    assert not undeclared, "not among the dependencies of pyproject.toml: " + "; ".join(undeclared)
