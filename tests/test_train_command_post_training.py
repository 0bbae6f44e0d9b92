"""`python -m zoo.train` after pretraining: conversations, pairs, a reward model, rewards; resumed bit for bit."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

import zoo
from tests.tiny_run import assert_same_run
from zoo.errors import UserError, run_command
from zoo.interop import save_run
from zoo.models import build
from zoo.parallel import make_mesh
from zoo.train import main
from zoo.training.metrics import read_metrics

MODEL = {
    "embed-dim": 16,
    "num-layers": 2,
    "num-heads": 4,
    "num-kv-heads": 2,
    "head-dim": 8,
    "hidden-dim": 64,
    "query-pre-attn-scalar": 8,
}
SHARED = {
    "data.task.largest": 4,
    "data.task.num-documents": 25,
    "data.validation-fraction": 0.2,
    "data.batch-size": 8,
    "optimizer.warmup-steps": 0,
    "steps": 4,
    "log-every": 1,
    "evaluate-every": 2,
    "checkpoint-every": 2,
}


def command(recipe, run, **options):
    part = "model.decoder" if recipe == "arithmetic-reward" else "model"
    chosen = {f"{part}.{name}": value for name, value in MODEL.items()} | SHARED | {"run-dir": run}
    chosen |= {name.replace("__", ".").replace("_", "-"): value for name, value in options.items()}
    words = [str(word) for name, value in chosen.items() for word in (f"--{name}", value)]
    return [recipe, "--no-tensorboard", *words]


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Without pictures of what the time went into, half a second each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zoo.recipes.report.goodput_picture", lambda *_, **__: None)
        yield


@pytest.fixture
def devices(monkeypatch):
    """A function that sets how many devices runs get."""
    return lambda count: monkeypatch.setattr(
        "zoo.train.make_mesh", lambda config: make_mesh(config, jax.devices()[:count])
    )


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A run of supervised fine-tuning, long enough for answers that are numbers and end."""
    run = tmp_path_factory.mktemp("tuned") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zoo.train.make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))
        main(
            command(
                "arithmetic-sft",
                run,
                steps=30,
                evaluate_every=30,
                checkpoint_every=30,
                data__vocab_size=274,
                optimizer__learning_rate=0.01,
            )  # fmt: skip
        )
    return run


def killed_and_resumed(whole, run, again):
    """What a run is after a kill between its last two checkpoints, and the same command."""
    shutil.copytree(whole, run)
    shutil.rmtree(run / "checkpoints" / "4")
    main(again)
    assert_same_run(run, whole)


def test_a_run_on_conversations_ends_with_the_share_of_right_answers(tuned, capsys):
    lines = read_metrics(tuned / "metrics.jsonl")
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"] and 0 <= lines[-1]["validation_accuracy"] <= 1
    before = json.loads((tuned / "before.json").read_text())
    assert before["validation_accuracy"] == 0 and before["validation_loss"] > lines[-1]["validation_loss"]
    assert (tuned / "loss.png").stat().st_size


PREFERRED = {"optimizer__learning_rate": 0.003}


@pytest.fixture(scope="module")
def preferred(tuned, tmp_path_factory):
    """A run on pairs, on two devices that share the parameters."""
    run = tmp_path_factory.mktemp("preferred") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zoo.train.make_mesh", lambda config: make_mesh(config, jax.devices()[:2]))
        main(command("arithmetic-dpo", run, init_from=tuned, **PREFERRED))
    return run


def test_pairs_begin_at_log_2(preferred):
    lines = read_metrics(preferred / "metrics.jsonl")
    assert lines[0]["loss"] == pytest.approx(np.log(2), abs=1e-5) and lines[-1]["loss"] < lines[0]["loss"]
    assert json.loads((preferred / "before.json").read_text())["validation_loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert {"validation_accuracy", "validation_preference_accuracy"} <= lines[-1].keys() and lines[0]["weight"] >= 8


def test_a_sharded_run_on_pairs_goes_on_bit_for_bit(tuned, preferred, tmp_path, devices, capsys):
    devices(2)
    killed_and_resumed(
        preferred, tmp_path / "run", command("arithmetic-dpo", tmp_path / "run", init_from=tuned, **PREFERRED)
    )
    said = capsys.readouterr().out
    assert f"reference  {tuned}: dpo, beta 0.1" in said and "preference accuracy" in said and "2 x cpu (fsdp=2)" in said


def test_a_policy_that_is_rewarded_goes_on_bit_for_bit(tuned, tmp_path, devices, capsys):
    devices(1)
    options = {"init_from": tuned, "policy__samples_per_prompt": 2, "policy__reward": "number"}
    options |= {"policy__kl_penalty": "k3", "optimizer__accumulation_steps": 2}
    whole = tmp_path / "whole"
    main(command("arithmetic-rl", whole, **options))
    said = capsys.readouterr().out
    assert "reward     number; 2 answers to each prompt" in said and "KL penalty beta 0.02 (k3)" in said
    lines = read_metrics(whole / "metrics.jsonl")
    assert all(0 <= line["reward"] <= 1 and line["weight"] == 16 for line in lines)
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-4) and lines[-1]["kl_k3"] > lines[0]["kl_k3"]
    killed_and_resumed(whole, tmp_path / "run", command("arithmetic-rl", tmp_path / "run", **options))


@pytest.mark.slow
def test_a_reward_model_begins_with_a_decoder_and_rewards_the_samples_of_a_sharded_policy(
    tuned, tmp_path, devices, capsys
):
    devices(1)
    rewards = tmp_path / "rewards"
    main(command("arithmetic-reward", rewards, init_from=tuned))
    lines = read_metrics(rewards / "metrics.jsonl")
    assert lines[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)  # the new vector is zero
    loaded = zoo.load(rewards)
    ids = np.array([loaded.tokenizer.encode("1+1=", bos=True)])
    assert loaded.model(ids).shape == ids.shape
    with pytest.raises(UserError, match="holds a RewardModel, which is no language model"):
        _ = loaded.decoder

    devices(8)
    options = {"init_from": tuned, "mesh__fsdp": 4, "mesh__tensor": 2, "policy__reward": "model"}
    options |= {"policy__reward_model": rewards, "policy__samples_per_prompt": 2, "policy__kl_coefficient": 0.1}
    options |= {"policy__unfinished_reward": -1.0}
    whole = tmp_path / "whole"
    capsys.readouterr()
    main(command("arithmetic-rl", whole, **options))
    said = capsys.readouterr().out
    assert f"reward     {rewards}; 2 answers to each prompt" in said and "KL penalty beta 0.1 (reward)" in said
    lines = read_metrics(whole / "metrics.jsonl")
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-4) and lines[0]["weight"] == 16
    assert lines[-1]["kl_k3"] > lines[0]["kl_k3"] >= 0 and lines[0]["entropy"] > 0
    assert {"validation_reward", "validation_accuracy", "validation_finished"} <= lines[-1].keys()
    assert set(json.loads((whole / "reference.json").read_text())) == {"reference", "reward_model"}
    killed_and_resumed(whole, tmp_path / "run", command("arithmetic-rl", tmp_path / "run", **options))


@pytest.mark.slow
def test_rewards_rise_with_training_and_not_without(tuned, tmp_path, devices, capsys):
    devices(1)
    start, found = tmp_path / "start", {}
    main(command("arithmetic-sft", start, init_from=tuned, steps=30, optimizer__learning_rate=0.01))
    for rate, steps in ((0.003, 40), (0.0, 12)):
        run = tmp_path / str(rate)
        options = {"steps": steps, "evaluate_every": 40, "checkpoint_every": 40, "policy__kl_coefficient": 0.01}
        options |= {"optimizer__learning_rate": rate, "optimizer__warmup_steps": 5, "init_from": start}
        main(command("arithmetic-rl", run, **options))
        found[rate] = np.array([line["reward"] for line in read_metrics(run / "metrics.jsonl")])
    late, still = found[0.003][-12:], found[0.0]
    # Means of 64 samples a step: the difference is many times its standard error.
    error = np.sqrt(late.var(ddof=1) / len(late) + still.var(ddof=1) / len(still))
    assert late.mean() - still.mean() > max(0.1, 5 * error)


@pytest.mark.parametrize(
    ("recipe", "options", "problem"),
    [
        ("arithmetic-dpo", {}, "arithmetic-dpo is held near to a reference: say --init-from CKPT"),
        ("arithmetic-rl", {}, "arithmetic-rl is held near to a reference: say --init-from CKPT"),
        (
            "arithmetic-dpo",
            {"init_from": "TUNED", "policy__kl_penalty": "k2"},
            "policy.kl_penalty=k2 needs data.format",
        ),
        ("arithmetic-sft", {"preference__beta": 0.5}, "preference.beta=0.5 needs data.format=preference"),
        ("arithmetic-reward", {"preference__beta": 0.5}, "preference.beta=0.5 needs a model that answers"),
        ("arithmetic-dpo", {"init_from": "TUNED", "preference__centering": 0.1}, "is for reward models: leave it out"),
        ("arithmetic-dpo", {"init_from": "TUNED", "z_loss": 1e-4}, "z_loss=0.0001 has no meaning for data.format"),
        ("arithmetic-dpo", {"init_from": "TUNED", "teacher": "TUNED"}, "learning from preference has no teacher"),
        ("arithmetic-rl", {"init_from": "TUNED", "policy__max_new_tokens": 28}, "leaves no room for a prompt in a row"),
        ("arithmetic-rl", {"init_from": "TUNED", "policy__max_new_tokens": 10}, r"0..4 .*: the prompt has 2\d tokens"),
        (
            "arithmetic-rl",
            {"init_from": "TUNED", "policy__reward": "model", "policy__reward_model": "TUNED"},
            "holds a Gemma2, no reward model",
        ),
        (
            "arithmetic-dpo",
            {"init_from": "TUNED", "preference__reference": "TUNED/tokenizer"},
            "the reference: .*holds no checkpoint",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(recipe, options, problem, tuned, tmp_path, devices, capsys):
    devices(1)
    named = {name: str(value).replace("TUNED", str(tuned)) for name, value in options.items()}
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run_command(lambda: main(command(recipe, tmp_path / "run", **named)))
    [line] = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("attention")]
    assert stop.value.code == 2 and line.startswith("error: ")
    assert re.search(problem, line), line
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_run_is_not_resumed_near_another_reference(tuned, preferred, tmp_path, devices):
    devices(2)
    loaded, other = zoo.load(tuned), tmp_path / "other"
    save_run(build(loaded.config, rngs=nnx.Rngs(1)), other, tokenizer=loaded.tokenizer)
    with pytest.raises(UserError, match="the reference .*other has other weights"):
        main(command("arithmetic-dpo", preferred, init_from=other, **PREFERRED))
