"""What README.md promises exists: its two commands, the modules and files it names, the sizes in its table."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text("utf-8")
CONTRIBUTING = (REPOSITORY / "CONTRIBUTING.md").read_text("utf-8")


def command_after_marker(name: str) -> str:
    """The one line of the fenced block that follows `<!-- command: NAME -->`, as .ci/run reads it."""
    (block,) = re.findall(rf"^<!-- command: {name} -->\n```bash\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    (line,) = block.splitlines()
    return line


def test_both_commands_set_up_with_the_pins_in_one_line() -> None:
    for name in ("train", "test"):
        assert re.match(
            r"python3 -m venv \.venv && \.venv/bin/pip install -c constraints\.txt ", command_after_marker(name)
        )
    assert command_after_marker("train").endswith("python -m zoo.train")
    assert ".venv/bin/python -m pytest" in command_after_marker("test")


def test_types_are_checked_in_one_line() -> None:
    assert command_after_marker("types") == ".venv/bin/python -m mypy"


def test_continuous_integration_holds_no_copy_of_the_commands() -> None:
    script = (REPOSITORY / ".ci" / "run").read_text("utf-8")
    assert "pip install" not in script and "pytest" not in script and "mypy" not in script
    assert "readme_command test" in script and "readme_command types" in script
    assert 'bash -c "$test_command"' in script and 'bash -c "$types_command"' in script


@pytest.mark.parametrize("text", [README, CONTRIBUTING], ids=["README", "CONTRIBUTING"])
def test_every_named_module_can_be_run(text: str) -> None:
    for module in set(re.findall(r"python -m ((?:zoo|experiments)\.[a-z_0-9]+)", text)):
        path = REPOSITORY.joinpath(*module.split("."))
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module


@pytest.mark.parametrize("text", [README, CONTRIBUTING], ids=["README", "CONTRIBUTING"])
def test_links_into_the_repository_resolve(text: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert "://" in target or (REPOSITORY / target).exists(), target


def test_the_folders_of_the_layout_exist() -> None:
    layout = README.split("## Where things are")[1].split("```")[1]
    for folder in re.findall(r"^  ([a-z]+)/ ", layout, re.MULTILINE):
        assert (REPOSITORY / "zoo" / folder).is_dir(), folder
    for folder in re.findall(r"^([a-z]+)/ ", layout, re.MULTILINE):
        assert (REPOSITORY / folder).is_dir(), folder


def test_the_table_of_presets_says_what_the_configs_count() -> None:
    import zoo

    presets = zoo.presets()
    rows = re.findall(r"^\| `(gemma2-[^`]+)` \|(.*)\|$", README, re.MULTILINE)
    assert [name for name, _ in rows] == ["gemma2-2b", "gemma2-9b", "gemma2-27b"]
    for name, cells in rows:
        total, embedding, layers, width, heads, head_size = (cell.strip().replace(",", "") for cell in cells.split("|"))
        config = presets[name]
        assert int(total) == config.num_parameters()
        assert int(embedding) == config.vocab_size * config.embed_dim
        assert (int(layers), int(width), int(head_size)) == (config.num_layers, config.embed_dim, config.head_dim)
        assert heads == f"{config.num_heads} / {config.num_kv_heads}"
    for name in re.findall(r"`(gemma2-[a-z0-9-]+)`", README):
        assert name in presets, name


def examples() -> dict[str, set[str]]:
    """The commands of README's shell blocks, each with the options that the examples give it."""
    found: dict[str, set[str]] = {}
    for block in re.findall(r"^```bash\n(.*?)^```$", README, re.DOTALL | re.MULTILINE):
        for module, arguments in re.findall(r"python -m (zoo\.[a-z]+)(.*)$", block, re.MULTILINE):
            found.setdefault(module, set()).update(re.findall(r"(?<=\s)--[a-z.-]+", arguments))
    return found


@pytest.mark.parametrize("module", sorted(examples()))
def test_the_options_of_the_examples_are_in_the_help(module: str, run_module) -> None:
    code, output, errors = run_module(module, "--help")
    assert code == 0, errors
    for option in examples()[module]:
        assert re.search(rf"{option}\b", output), option
