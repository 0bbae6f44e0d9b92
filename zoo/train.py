"""Trains a model: `python -m zoo.train [RECIPE] [--data PATH ...] [--steps N] [--run-dir DIR] [--init-from CKPT]
[--teacher CKPT | --teacher-cache DIR] ...`

Without arguments: a small Gemma 2 on the source text of Python's standard library, in about three minutes on two CPU
cores. Every field of a recipe is an option (`--help`). A run directory that exists is resumed, bit for bit; Ctrl-C,
SIGTERM and SIGUSR1 finish the step and save first.
"""

import contextlib
import functools
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax

from zoo.data import baselines, epochs_begun, open_corpus, train_batches, validation_dataset
from zoo.errors import TRY_AGAIN, UserError, run_command
from zoo.parallel import activation_sharding, batch_sharding, make_mesh, rows_by_process, start_distributed
from zoo.recipes import DEFAULT, Recipe, description, recipe, recipe_to_dict, recipes
from zoo.recipes.adapters import (
    begin_adapter,
    check_same_base,
    describe_adapter,
    evaluation_of,
    load_fixed,
    whole_model,
)
from zoo.recipes.answer_report import answer_report, step_and_evaluation, write_before
from zoo.recipes.cached_batches import cached_batches, open_cache
from zoo.recipes.checks import check_recipe
from zoo.recipes.classification import classification_report
from zoo.recipes.command_line import parse_recipe, take_flag
from zoo.recipes.console import replay_mismatch_in_one_line, say, show_logs
from zoo.recipes.image_report import image_report
from zoo.recipes.image_tokens import image_encoder
from zoo.recipes.masked_tokens import masked_report
from zoo.recipes.on_policy import OnPolicyDistillation
from zoo.recipes.post_training import (
    check_post_training_data,
    check_same_frozen,
    describe_frozen,
    frozen_flops_per_token,
    load_frozen,
)
from zoo.recipes.program import training_program
from zoo.recipes.recipe import same_on_all_processes
from zoo.recipes.report import comparison, draw_losses, opening, sample_text, show_goodput, what_next
from zoo.recipes.run import (
    begin_run,
    check_same_data,
    choose_streams,
    choose_tokenizer,
    describe_run,
    how_to_go_on,
    resolve_model,
    saved_run,
)
from zoo.recipes.teacher import check_same_teacher, describe_teacher, flops_per_token, load_teacher
from zoo.recipes.weights import check_init_from, restore_or_begin
from zoo.training.checkpoints import disk_is_full
from zoo.training.evaluation import make_evaluation
from zoo.training.goodput import Goodput
from zoo.training.loop import open_checkpoints, run_loop
from zoo.training.metrics import last_step, open_record
from zoo.training.run_directory import RunLock, run_description

HELP = """{description}
RECIPE is one of: {names}. Ends with exit code 0 when done or stopped on request (Ctrl-C, --stop-at-step), 2 when the
input is wrong, 75 when a machine asked it to stop (SIGTERM, SIGUSR1): run the same command again to go on; else 1.
--print-config prints the recipe as it would be run, and trains nothing."""


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line and trains."""
    began = time.time()
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else DEFAULT
    print_config = take_flag(arguments, "--print-config")
    help_text = HELP.format(description=description(recipe(name).name), names=", ".join(recipes()))
    chosen = parse_recipe(recipe(name), arguments, prog="python -m zoo.train [RECIPE]", description=help_text)
    if print_config:
        print(json.dumps(recipe_to_dict(chosen), indent=2))
        return
    same, go_on = same_on_all_processes(chosen), functools.partial(how_to_go_on, chosen)
    with start_distributed(chosen.distributed, same=same, how_to_go_on=go_on):
        show_logs()
        try:
            train(chosen, began)
        except OSError as error:
            if not disk_is_full(error):
                raise
            raise UserError(f"the disk is full ({error}); free some space and run the same command again") from error


def train(recipe: Recipe, began: float) -> None:
    """One run, from its beginning or from its newest checkpoint, to its end; `began` is when the command started."""
    # ---- run: what is already in its folder must belong to this recipe
    recipe = choose_streams(resolve_model(recipe))
    run = Path(recipe.run_dir)
    saved = saved_run(recipe)
    if saved is None:
        check_init_from(recipe)

    # ---- mesh
    mesh = make_mesh(recipe.mesh)
    check_recipe(recipe, mesh)
    sharding = batch_sharding(mesh, recipe.rules)

    # ---- data
    corpus = open_corpus(recipe.data)
    tokenizer = choose_tokenizer(recipe, corpus, saved)
    check_same_data(corpus, tokenizer, saved)
    check_post_training_data(recipe, corpus, tokenizer)
    rows = rows_by_process(sharding, recipe.data.batch_size, recipe.data.sequence_length)
    encode_image = image_encoder(recipe)
    batches = train_batches(corpus, tokenizer, recipe.data, rows, jax.process_index(), encode_image=encode_image)
    cache = open_cache(recipe, batches)
    held_out = validation_dataset(corpus, tokenizer, recipe.data, encode_image=encode_image)

    # ---- step: shapes and shardings only, nothing is allocated yet
    program = training_program(recipe, mesh)

    # ---- restore: from here on the run directory is written to
    info = describe_run(recipe, tokenizer)
    with RunLock(run), open_checkpoints(run, recipe.loop) as checkpoints, contextlib.closing(batches):
        teacher, frozen = load_teacher(recipe, mesh), load_frozen(recipe, mesh)
        fixed = load_fixed(recipe, mesh, program.adapter, teacher)
        begin_run(info, tokenizer, new=saved is None)
        check_same_teacher(recipe, teacher, new=saved is None, cached=None if cache is None else cache.layout.teacher)
        check_same_frozen(recipe, frozen, new=saved is None)
        check_same_base(recipe, program.adapter, fixed, new=saved is None)
        state, data_position = restore_or_begin(
            recipe,
            mesh,
            program.model,
            program.optimizer,
            checkpoints,
            batches.parts,
            None if program.adapter is None else functools.partial(begin_adapter, recipe, program.adapter),
        )
        if data_position is not None:
            batches.set_state(data_position)
        first_step = int(state.step)
        say(
            opening(recipe, mesh, corpus, tokenizer, first_step)
            + describe_teacher(recipe)
            + describe_frozen(recipe)
            + describe_adapter(recipe, program.adapter, state)
        )

        # ---- loop
        step = program.step if fixed is None else functools.partial(program.step, teacher=fixed)
        token_bytes = None if recipe.trains_masked or not recipe.reads_text else tokenizer.token_bytes()
        evaluate = make_evaluation(program.model.graphdef, program.loss, held_out, sharding, token_bytes)
        evaluate = evaluation_of(program.adapter, evaluate, fixed)
        if recipe.distillation.on_policy:
            step = OnPolicyDistillation(recipe, mesh, program, tokenizer, step).step
        if recipe.post_trains:
            step, evaluate = step_and_evaluation(recipe, mesh, program, corpus, tokenizer, held_out, frozen)
        goodput = Goodput(run, first_step=first_step, began=began, last_written=last_step(run / "metrics.jsonl"))
        record = open_record(
            run,
            first_step=first_step,
            steps=recipe.loop.steps,
            log_every=recipe.loop.log_every,
            flops_per_token=flops_per_token(recipe) + frozen_flops_per_token(recipe),
            devices=mesh.devices.flat,
            tensorboard=recipe.tensorboard,
            wandb=recipe.wandb,
            config=recipe_to_dict(recipe),
        )
        with record, activation_sharding(mesh, recipe.rules), replay_mismatch_in_one_line():
            if recipe.post_trains and first_step == 0:
                write_before(recipe, evaluate(state.params))
            outcome = run_loop(
                state,
                step,
                cached_batches(batches, cache, first_step),
                config=recipe.loop,
                run=run,
                sharding=sharding,
                checkpoints=checkpoints,
                evaluate=evaluate,
                record=record,
                meta={"run": run_description(info)},
                epochs=functools.partial(epochs_begun, corpus=corpus, config=recipe.data),
                goodput=goodput,
                spike_limit=recipe.optimizer.spike_limit,
            )

    # ---- report
    say(f"\n{show_goodput(recipe, goodput)}")
    if len(corpus.left_out):
        say(f"{len(corpus.left_out)} documents were left out because of their media (data.media.bad_media=skip)")
    if outcome.stopped:
        say(f"stopped after step {outcome.step} of {recipe.loop.steps}; saved: the same command resumes from {run}")
        if outcome.preempted:
            sys.exit(TRY_AGAIN)
        return
    graphdef, params = whole_model(program.adapter, program.model, outcome.state.params, fixed)
    if recipe.trains_images:
        say(f"\n{image_report(recipe, graphdef, params, held_out, mesh)}")
        return
    if recipe.classifies:
        say(f"\n{classification_report(recipe, graphdef, params, held_out, mesh)}")
        return
    if recipe.trains_masked:
        found = outcome.validation or evaluate(outcome.state.params)
        say(f"\n{masked_report(recipe, found, corpus, tokenizer, held_out)}")
        return
    if recipe.post_trains:
        say(f"\n{answer_report(recipe, outcome.validation or evaluate(outcome.state.params))}")
        return
    frequencies = baselines(corpus, tokenizer, held_out) if held_out else None
    say(f"\n{comparison(outcome.validation or evaluate(outcome.state.params), frequencies)}")
    say(draw_losses(recipe, frequencies))
    if recipe.sample_tokens:
        say(f"\na sample:\n{sample_text(recipe, graphdef, params, tokenizer)}")
    say(f"\n{what_next(recipe)}")


if __name__ == "__main__":
    run_command(main)
