"""Every field is an option; what is wrong with an option is said in one line that names it."""

import pytest

from zoo.errors import UserError
from zoo.recipes import DEFAULT, recipe
from zoo.recipes.command_line import PROFILED_STEPS, option_names, parse_recipe, take_flag


def parse(*arguments):
    return parse_recipe(recipe(DEFAULT), arguments, prog="train")


def test_without_arguments_the_recipe_is_unchanged():
    assert parse() == recipe(DEFAULT)


def test_fields_are_options_nested_ones_with_a_dot():
    found = parse(
        "--steps", "7", "--optimizer.learning-rate", "0.25", "--execution.scan-layers", "--model.layer-types", "local"
    )
    assert (found.loop.steps, found.optimizer.learning_rate, found.execution.scan_layers) == (7, 0.25, True)
    assert found.model.layer_types == ("local",)


def test_underscores_and_equals_signs_are_understood():
    assert parse("--optimizer.learning_rate=0.25", "--run_dir=there").optimizer.learning_rate == 0.25


def test_data_is_short_for_data_paths():
    assert parse("--data", "a.txt", "b").data.paths == ("a.txt", "b")
    assert parse("--data=a.txt").data.paths == ("a.txt",)


def test_attention_is_short_for_the_execution_that_names_it():
    assert parse("--attention", "pallas_tpu").execution.attention_implementation == "pallas_tpu"
    with pytest.raises(UserError, match="invalid choice 'flash'"):
        parse("--attention", "flash")


def test_profile_needs_no_number():
    assert parse("--profile").loop.profile_steps == int(PROFILED_STEPS)
    assert parse("--profile", "--steps", "3").loop.profile_steps == int(PROFILED_STEPS)
    assert parse("--profile", "2").loop.profile_steps == 2


def test_no_cap_can_be_asked_for():
    assert parse("--model.attn-logit-soft-cap", "None").model.attn_logit_soft_cap is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stpes", "3"], r"unknown option '--stpes'; did you mean '--steps'\?"),
        (["--learning-rate", "3"], r"did you mean '--optimizer.learning-rate'\?"),
        (["--model.num-layer", "3"], r"did you mean '--model.num-layers'\?"),
        (["--steps", "many"], "Error parsing --steps: invalid literal"),
        (["--steps"], "--steps"),
        (["--steps", "0"], "steps must lie in"),
        (["--steps", "-4"], "steps"),
        (["--data"], "--data needs at least one"),
        (["--data", "--steps", "3"], "--data needs at least one"),
        (["--data", "a", "--data", "b"], "--data.paths is given 2 times"),
        (["--data.packing", "tight"], "invalid choice 'tight' for argument '--data.packing'"),
        (["--data.batch-size", "-1"], "batch_size"),
        (["--data.sequence-length", "99999999999"], "sequence_length"),
        (["--model.num-layers", "-2"], "model.num_layers"),
        (["--optimizer.learning-rate", "nan"], "learning_rate"),
        (["--optimizer.accumulation-steps", "0"], "accumulation_steps"),
        (["gemma2-2b"], "unexpected argument 'gemma2-2b'"),
    ],
)
def test_a_wrong_option_is_one_line_that_names_it(arguments, message, capsys):
    with pytest.raises(UserError, match=message) as caught:
        parse(*arguments)
    assert "\n" not in str(caught.value) and "─" not in str(caught.value) and "---" not in str(caught.value)
    assert capsys.readouterr() == ("", "")


def test_help_lists_every_option(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    assert not [name for name in option_names(recipe(DEFAULT)) if f"{name} " not in shown and f"{name}," not in shown]


def test_a_flag_is_taken_from_the_arguments():
    arguments = ["--a", "--print-config"]
    assert take_flag(arguments, "--print-config") and arguments == ["--a"]
    assert not take_flag(arguments, "--print-config")
