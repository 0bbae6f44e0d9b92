"""tpu_setup.sh on this machine: a stand-in for Python records what it was asked to do, so nothing is installed."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

TOOLS = ("bash", "cat", "cksum", "cp", "dirname", "env", "id", "ls", "mkdir", "tar", "timeout", "touch")

# Answers as the Python of a TPU VM would: `-m venv DIR` makes a folder with a Python in it, the rest is written down.
PYTHON = """#!/usr/bin/env bash
case "$*" in
  *"version_info < (3, 11)"*) exit {too_old} ;;
  *"import ensurepip"* | *"import pip"*) exit 0 ;;
  "-m venv "*) mkdir -p "$3/bin" && touch "$3/pyvenv.cfg" && cp "$0" "$3/bin/python" ;;
  "-m pip install"*) if [[ -e "$HOME/no_network" ]]; then exit 1; fi ;;
esac
echo "$*" >>"$HOME/calls"
"""


class Machine:
    """A home folder, and a PATH with nothing on it but the shell's tools and what a test adds."""

    def __init__(self, folder: Path, repository: Path):
        self.home, self.bin, self.repository = folder / "home", folder / "bin", repository
        self.home.mkdir()
        self.bin.mkdir()
        for tool in TOOLS:
            path = shutil.which(tool)
            assert path is not None, tool
            (self.bin / tool).symlink_to(path)

    def add_command(self, name: str, text: str) -> None:
        # Written through the link of a tool of the machine, the text would replace that tool.
        (self.bin / name).unlink(missing_ok=True)
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": str(self.bin), "HOME": str(self.home), "TMPDIR": str(self.home)}
        command = [str(self.bin / "bash"), str(self.repository / "tpu_setup.sh"), *arguments]
        return subprocess.run(command, env=environment, cwd=self.home, capture_output=True, text=True, timeout=60)

    @property
    def calls(self) -> list[str]:
        """What the stand-in for Python was asked to do, a line each."""
        path = self.home / "calls"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def machine(tmp_path: Path, repository: Path) -> Machine:
    return Machine(tmp_path, repository)


@pytest.fixture
def machine_with_python(machine: Machine) -> Machine:
    machine.add_command("python3.12", PYTHON.format(too_old=0))
    return machine


def commands_of(output: str) -> list[str]:
    return [line.removeprefix("+ ") for line in output.splitlines() if line.startswith("+ ")]


def test_a_dry_run_prints_the_commands_and_changes_nothing(machine_with_python: Machine) -> None:
    done = machine_with_python.run("--dry-run")
    assert done.returncode == 0, done.stderr
    venv, install, check = commands_of(done.stdout)
    assert venv.endswith(f"python3.12 -m venv {machine_with_python.home}/zoo-venv")
    assert "--constraint" in install and install.endswith("[tpu]'")
    assert check.startswith("env JAX_PLATFORMS=tpu timeout 300 ")
    assert machine_with_python.calls == []
    assert list(machine_with_python.home.iterdir()) == []


def test_it_is_safe_to_run_twice(machine_with_python: Machine) -> None:
    first = machine_with_python.run("--skip-device-check")
    assert first.returncode == 0, first.stderr
    calls = machine_with_python.calls
    assert [call.split()[:2] for call in calls] == [["-m", "venv"], ["-m", "pip"]]
    second = machine_with_python.run("--skip-device-check")
    assert second.returncode == 0, second.stderr
    assert machine_with_python.calls == calls
    assert second.stdout.count("already there") == 2


def test_an_interrupted_install_is_done_again(machine_with_python: Machine) -> None:
    (machine_with_python.home / "no_network").touch()
    assert machine_with_python.run("--skip-device-check").returncode != 0
    (machine_with_python.home / "no_network").unlink()
    assert machine_with_python.run("--skip-device-check").returncode == 0
    assert machine_with_python.calls[-1].startswith("-m pip install")


def test_the_device_check_of_a_slice_starts_jax_on_all_workers(machine_with_python: Machine) -> None:
    alone, together = machine_with_python.run("--dry-run"), machine_with_python.run("--dry-run", "--distributed")
    assert "jax.distributed.initialize()" not in alone.stdout
    assert "jax.distributed.initialize()" in together.stdout


def test_all_workers_get_the_checkout_and_run_it_together(machine: Machine) -> None:
    done = machine.run(
        "--all-workers", "my-slice", "--zone", "us-east5-a", "--project", "lab", "--venv", "env", "--dry-run"
    )
    assert done.returncode == 0, done.stderr
    pack, copy, start = commands_of(done.stdout)
    assert pack.startswith("tar ") and " scp " in copy and " ssh my-slice " in start
    for command in (copy, start):
        assert command.startswith("gcloud compute tpus tpu-vm ")
        assert "--worker=all" in command and "--zone=us-east5-a" in command and "--project=lab" in command
    assert "bash zoo/tpu_setup.sh --distributed --venv env" in start


def test_several_slices_are_set_up_at_the_same_time(machine: Machine) -> None:
    done = machine.run("--all-workers", "pair-0,pair-1", "--zone", "us-east5-a", "--dry-run")
    assert done.returncode == 0, done.stderr
    pack, *copies_and_starts = commands_of(done.stdout)
    assert pack.startswith("tar ")
    for kind in (" scp ", " ssh "):
        commands = [command for command in copies_and_starts if kind in command]
        assert len(commands) == 2
        for name in ("pair-0", "pair-1"):
            assert sum(name in command for command in commands) == 1


def test_a_slice_that_could_not_be_set_up_is_named(machine: Machine) -> None:
    machine.add_command("gcloud", '#!/usr/bin/env bash\n[[ "$* " != *" ssh pair-1 "* ]]\n')
    machine.add_command("tar", "#!/usr/bin/env bash\n")
    done = machine.run("--all-workers", "pair-0,pair-1", "--zone", "us-east5-a")
    assert done.returncode == 1
    assert done.stderr == "error: not set up (see above): pair-1\n"


def test_without_a_new_python_one_is_installed(machine: Machine) -> None:
    machine.add_command("python3", PYTHON.format(too_old=1))
    done = machine.run("--dry-run")
    assert done.returncode == 0, done.stderr
    assert commands_of(done.stdout)[:2] == ["python3 -m pip install --user uv", "python3 -m uv python install 3.12"]


def test_an_older_virtual_environment_is_refused_in_one_line(machine_with_python: Machine) -> None:
    old = machine_with_python.home / "old" / "bin" / "python"
    old.parent.mkdir(parents=True)
    old.write_text(PYTHON.format(too_old=1))
    old.chmod(0o755)
    done = machine_with_python.run("--venv", "old")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "older than 3.11" in done.stderr


def test_a_folder_with_something_else_in_it_is_left_alone(machine_with_python: Machine) -> None:
    thesis = machine_with_python.home / "work" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("mine")
    done = machine_with_python.run("--venv", "work")
    assert done.returncode == 1 and "no virtual environment" in done.stderr
    assert [path.name for path in thesis.parent.iterdir()] == ["thesis.txt"]


def test_help_names_every_option(machine: Machine) -> None:
    done = machine.run("--help")
    assert done.returncode == 0
    for option in ("--venv", "--dry-run", "--all-workers", "--zone", "--project", "--skip-device-check"):
        assert option in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["--fast"],
        ["v5e-8"],
        ["--venv"],
        ["--venv", "--dry-run"],
        ["--all-workers", "my-slice"],
        ["--all-workers", "pair-0,", "--zone", "us-east5-a"],
        ["--zone", "us-east5-a"],
        ["--project", "lab"],
    ],
)
def test_wrong_arguments_get_one_line_and_exit_code_2(machine: Machine, arguments: list[str]) -> None:
    done = machine.run(*arguments)
    assert done.returncode == 2
    assert done.stdout == "" and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not list(machine.home.iterdir())


def test_the_script_can_be_executed(repository: Path) -> None:
    for script in ("tpu_setup.sh", ".ci/run"):
        assert os.access(repository / script, os.X_OK), script
