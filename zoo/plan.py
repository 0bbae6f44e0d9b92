"""Says what a recipe would do on machines that are not there: `python -m zoo.plan RECIPE --topology v5p:8x24x32 ...`

The recipe's real training step is compiled for the chips of the topology, and its memory, FLOPs, bytes, collectives and
time are read off the result. docs/plan.md explains every figure.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax

from zoo.errors import UserError, nearest_name, run_command
from zoo.parallel.mesh import parse_mesh
from zoo.planning.program import PROGRAMS
from zoo.recipes import Recipe, recipe, recipes
from zoo.recipes.command_line import parse_recipe, take_flag
from zoo.recipes.run import resolve_model

HELP = """What the recipe needs and how long its step takes on chips that are not there.

  python -m zoo.plan RECIPE --topology v5p:8x24x32 [--slices 2] [--mesh data=1,fsdp=768,tensor=8]
                     [--program {programs}] [--search] [--search-limit 6] [--json FILE] [--hlo FILE]
                     [--options NAME=VALUE,...]

RECIPE is one of: {names}. --mesh is short for the recipe's mesh.* options (axes that are not named are 1), and every
other field of the recipe is an option, as for zoo.train. --options are added to the compiler's usual ones; "none"
switches those off. Ends with exit code 0 when done, 2 when the input is wrong."""


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line, compiles, prints."""
    # The machine's own accelerator, if it has one, is left alone.
    jax.config.update("jax_platforms", "cpu")
    arguments = list(sys.argv[1:] if argv is None else argv)
    help_text = HELP.format(programs="|".join(PROGRAMS), names=", ".join(recipes()))
    if not arguments or arguments[0].startswith("-"):
        if set(arguments) & {"-h", "--help"}:
            print(help_text)
            return
        raise UserError(f"name a recipe first: one of {', '.join(recipes())}")
    chosen = recipe(arguments.pop(0))
    topology_name, slices = take_option(arguments, "--topology"), take_option(arguments, "--slices") or "1"
    mesh, program = take_option(arguments, "--mesh"), take_option(arguments, "--program") or "train"
    json_file, options = take_option(arguments, "--json"), take_option(arguments, "--options")
    hlo_file = take_option(arguments, "--hlo")
    search, limit = take_flag(arguments, "--search"), take_option(arguments, "--search-limit") or "6"
    chosen = parse_recipe(chosen, arguments, prog="python -m zoo.plan RECIPE", description=help_text)
    chosen = replace(resolve_model(chosen), needs_data=False)
    if chosen.trains_images:
        raise UserError(f"{chosen.name} trains a tokenizer of images; plans are made of decoders")
    if chosen.classifies:
        raise UserError(f"{chosen.name} trains a classifier of images; plans are made of decoders")
    if chosen.trains_masked:
        raise UserError(f"{chosen.name} trains a model that guesses masked tokens; plans are made of decoders")
    if chosen.data.format in ("preference", "prompts"):
        raise UserError(f"{chosen.name} learns from pairs of answers or from rewards; plans are made of text alone")
    if chosen.distillation.teacher_cache is not None:
        raise UserError(
            f"--teacher-cache {chosen.distillation.teacher_cache}: plans are made without one; leave it out"
        )
    if chosen.teacher is not None:
        raise UserError(f"--teacher {chosen.teacher}: plans are made without a teacher; leave it out")
    if program not in PROGRAMS:
        raise UserError(f"unknown --program {program!r}: {nearest_name(program, PROGRAMS)}")
    if program != "train" and chosen.peft.trains_adapter:
        raise UserError(
            f"--program {program} is planned of a model without an adapter, and peft.method={chosen.peft.method}: "
            "name a recipe without one"
        )
    if chosen.peft.method == "sparse":
        raise UserError("peft.method=sparse: its mask is read off trained weights, which a plan has not")
    if topology_name is None:
        raise UserError("name the chips: --topology v5p:8x24x32, v5e:16x16, v4:8x16x32, v6e:16x16, tpu7x:4x4x4, h200:8")
    if mesh is not None:
        chosen = replace(chosen, mesh=parse_mesh(mesh))
    for name, file in (("--json", json_file), ("--hlo", hlo_file)):
        if file and not Path(file).absolute().parent.is_dir():
            raise UserError(f"{name} {file}: the folder {Path(file).parent} does not exist")
    if search and program != "train":
        raise UserError(f"--search looks for the fastest training step; leave out --program {program}")
    if search and mesh is not None:
        raise UserError("--search chooses the mesh itself; leave out --mesh")
    most = _count(limit, "--search-limit") if search else None
    plan(chosen, topology_name, _count(slices, "--slices"), program, json_file, hlo_file, options, most)


def plan(
    recipe: Recipe,
    topology: str,
    slices: int,
    program: str,
    json_file: str | None,
    hlo_file: str | None,
    options: str | None,
    search_limit: int | None,
) -> None:
    """Compiles one program, or those of a search, and prints the report."""
    from zoo.planning.estimate import make_plan
    from zoo.planning.program import compile_recipe
    from zoo.planning.search import candidates, describe_search, search
    from zoo.planning.table import describe
    from zoo.planning.topology import open_topology

    machine = open_topology(topology, slices)
    chosen_options = parse_options(options, machine.platform)
    if search_limit is None:
        compiled = compile_recipe(recipe, machine, program, chosen_options)
        if hlo_file:
            Path(hlo_file).write_text(compiled.text)
        found = make_plan(recipe, machine, compiled, program)
        text, result = describe(found), found.to_dict()
    else:
        ranked = search(recipe, machine, search_limit, chosen_options)
        best = ranked[0].plan
        text = describe_search(ranked, len(candidates(recipe, machine)))
        if best is not None and best.fits:
            text += f"\n\n{describe(best)}"
        plans = [None if one.plan is None else one.plan.to_dict() for one in ranked]
        result = {
            "ranked": [
                {"candidate": one.candidate.label, "refused": one.refused, "plan": plan}
                for one, plan in zip(ranked, plans, strict=True)
            ]
        }
    if json_file:
        Path(json_file).write_text(json.dumps(result, indent=1))
    print(text)


def take_option(arguments: list[str], name: str) -> str | None:
    """Removes `name VALUE` or `name=VALUE` and returns the value; None where it is not given."""
    for index, argument in enumerate(arguments):
        head, equals, value = argument.partition("=")
        if head != name:
            continue
        if not equals:
            if index + 1 == len(arguments) or arguments[index + 1].startswith("--"):
                raise UserError(f"{name} needs a value")
            value = arguments.pop(index + 1)
        arguments.pop(index)
        if any(other.partition("=")[0] == name for other in arguments):
            raise UserError(f"{name} is given twice")
        return value
    return None


def parse_options(text: str | None, platform: str) -> dict[str, str | bool] | None:
    """Changes of the usual compiler options, which "none" switches off; None = no change."""
    from zoo.parallel.compiler_options import DEFAULT_VMEM_KIB, compiler_options

    if text is None:
        return None
    found: dict[str, str | bool] = {}
    for part in text.split(","):
        if part == "none":
            found = dict.fromkeys(compiler_options(platform), False)
            if platform == "tpu":
                found["xla_tpu_scoped_vmem_limit_kib"] = DEFAULT_VMEM_KIB
            continue
        name, equals, value = part.partition("=")
        if not equals:
            raise UserError(f"--options {part!r}: options are NAME=VALUE, separated by commas")
        found[name] = {"true": True, "false": False}.get(value.lower(), value)
    return found


def _count(text: str, name: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise UserError(f"{name} needs a whole number of at least 1, got {text!r}")
    return int(text)


if __name__ == "__main__":
    run_command(main)
