"""The drawing of the house is true: imports go downwards, in no circle, and no file holds two subjects."""

import ast
import statistics
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

FLOORS = {
    "zoo.errors": 0,
    "zoo.command_line": 0,
    "zoo.kernels": 1,
    "zoo.parallel": 1,
    "zoo.ahead_of_time": 1,
    "zoo.data": 1,
    "zoo.nn": 2,
    "zoo.training": 2,
    "zoo.models": 3,
    "zoo.peft": 3,
    "zoo.inference": 4,
    "zoo.interop": 4,
    "zoo.recipes": 4,
    "zoo.planning": 4,
}
COMMANDS = 5  # zoo/train.py, zoo/export.py, ... and zoo/__init__.py, the public face
EXPERIMENTS = 6


def module_name(path: Path) -> str:
    """The dotted name under which the file `path` is imported."""
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): path for top in ("zoo", "experiments") for path in sorted((REPOSITORY / top).rglob("*.py"))
}


def room(module: str) -> str:
    """What stands on a floor: a package of zoo (`zoo.nn`), a command (`zoo.train`), an experiment."""
    return ".".join(module.split(".")[:2])


def floor(module: str) -> int:
    """The floor of a module; a new folder of zoo must be given one here."""
    if module.split(".")[0] == "experiments":
        return EXPERIMENTS
    if room(module) in FLOORS:
        return FLOORS[room(module)]
    is_command = module == "zoo" or MODULES[module] == REPOSITORY / "zoo" / f"{module.split('.')[-1]}.py"
    assert is_command, f"{module}: a package without a floor"
    return COMMANDS


def is_for_types_only(node: ast.AST) -> bool:
    """Whether `node` is an `if TYPE_CHECKING:` block, which imports nothing when the program runs."""
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def import_nodes(node: ast.AST, *, inside_functions: bool) -> list[ast.Import | ast.ImportFrom]:
    """The import statements below `node`; those in function bodies only if asked for."""
    found: list[ast.Import | ast.ImportFrom] = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            found.append(child)
        elif is_for_types_only(child) and not inside_functions:
            continue
        elif inside_functions or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            found += import_nodes(child, inside_functions=inside_functions)
    return found


def imported_modules(module: str, *, inside_functions: bool = True) -> set[str]:
    """The project's own modules that `module` imports (`from zoo.nn import rope` means zoo.nn.rope)."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    for node in import_nodes(ast.parse(path.read_text("utf-8")), inside_functions=inside_functions):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            origin = ".".join(part for part in (base, node.module) if part)
            names = [f"{origin}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else origin for name in names]
        own = [name for name in names if name.split(".")[0] in ("zoo", "experiments")]
        for name in own:
            assert name in MODULES, f"{path}: imports {name}, which is no file of this project"
        found.update(own)
    return found - {module}


@pytest.mark.parametrize("module", MODULES)
def test_a_file_imports_only_from_its_own_floor_and_below(module: str) -> None:
    above = {name for name in imported_modules(module) if floor(name) > floor(module)}
    assert not above, f"{module} (floor {floor(module)}) imports from above: {sorted(above)}"


def test_no_circle_of_packages() -> None:
    graph: dict[str, set[str]] = {}
    for module in MODULES:
        if module not in ("zoo", "experiments"):  # the public faces re-export, lazily, what stands below
            rooms = {room(name) for name in imported_modules(module) if name != "zoo"}
            graph.setdefault(room(module), set()).update(rooms - {room(module)})
    assert_no_circle(graph)


def test_no_circle_of_modules() -> None:
    assert_no_circle({module: imported_modules(module, inside_functions=False) for module in MODULES})


def assert_no_circle(graph: dict[str, set[str]]) -> None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("imports go in a circle: " + " -> ".join(error.args[1]))


def test_commands_do_not_import_each_other() -> None:
    started = [module for module, path in MODULES.items() if 'if __name__ == "__main__":' in path.read_text("utf-8")]
    commands = {module for module in started if floor(module) == COMMANDS}
    for module in commands:
        assert not imported_modules(module) & commands, module


def test_files_are_short() -> None:
    tests = sorted((REPOSITORY / "tests").rglob("*.py"))
    lengths = {path: len(path.read_text("utf-8").splitlines()) for path in [*MODULES.values(), *tests]}
    too_long = {str(path.relative_to(REPOSITORY)): length for path, length in lengths.items() if length > 1000}
    assert not too_long, f"over 1,000 lines: {too_long}"
    assert statistics.median(lengths.values()) < 200
