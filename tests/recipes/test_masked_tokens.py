"""Runs whose model guesses masked tokens: what does not fit is refused, and a run ends with a table and a model."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

import zoo
import zoo.plan
import zoo.train
from tests.tiny_run import assert_same_run, losses, write_corpus
from zoo.data import DataConfig, NoText, train_wordpiece
from zoo.errors import UserError
from zoo.interop import save_huggingface
from zoo.models import preset
from zoo.parallel import MeshConfig, make_mesh
from zoo.recipes import recipe
from zoo.recipes.checks import check_recipe, check_tokenizer
from zoo.recipes.losses import is_stochastic
from zoo.recipes.weights import model_difference

SIZES = {
    "model.vocab-size": 200,
    "model.embed-dim": 16,
    "model.num-layers": 1,
    "model.num-heads": 2,
    "model.hidden-dim": 24,
    "model.num-positions": 32,
    "model.dropout": 0.1,
    "data.vocab-size": 200,
    "data.sequence-length": 32,
    "data.batch-size": 8,
    "data.validation-fraction": 0.2,
    "data.validation-batches": 2,
    "steps": 4,
    "log-every": 1,
    "evaluate-every": 2,
    "checkpoint-every": 2,
}


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def command(data, run, **options):
    words = [str(word) for name, value in (SIZES | options).items() for word in (f"--{name}", value)]
    return ["bert-tiny-mlm", "--data", str(data), "--run-dir", str(run), "--no-tensorboard", *words]


def test_the_recipe_fits_its_model_and_draws_masks_anew_in_every_step(mesh):
    found = recipe("bert-tiny-mlm")
    check_recipe(found, mesh)
    assert is_stochastic(found) and found.trains_masked and found.model == preset("bert-tiny")


@pytest.mark.slow
def test_a_run_that_was_killed_continues_bit_for_bit_and_ends_with_a_table_and_a_model(
    corpus, tmp_path, capsys, monkeypatch, mesh
):
    monkeypatch.setattr("zoo.train.make_mesh", lambda _: mesh)
    monkeypatch.setattr("zoo.recipes.report.goodput_picture", lambda *_, **__: None)  # half a second each
    zoo.train.main(command(corpus, tmp_path / "whole"))
    said = capsys.readouterr().out
    assert "masked tokens, held out" in said and "this model" in said and "token frequencies (unigram)" in said
    assert "accuracy" in said and "bits per byte" not in said and "zoo.generate" not in said
    assert (tmp_path / "whole" / "loss.png").stat().st_size
    # As after a kill between the steps 2 and 4.
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    zoo.train.main(command(corpus, tmp_path / "run"))
    assert "resuming after step 2" in capsys.readouterr().out
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert len(losses(tmp_path / "run")) == 4

    loaded = zoo.load(tmp_path / "run")
    assert loaded.tokenizer is not None
    ids = np.array([loaded.tokenizer.encode("the model", bos=True, eos=True)])
    hidden = loaded.model(ids)
    assert hidden.shape == (*ids.shape, 16) and loaded.model.logits(hidden).shape == (*ids.shape, 200)
    save_huggingface(loaded.model, tmp_path / "exported", tokenizer=loaded.tokenizer)
    again = zoo.load(tmp_path / "exported")
    np.testing.assert_array_equal(again.model(ids), hidden)
    assert again.tokenizer is not None and again.tokenizer.fingerprint == loaded.tokenizer.fingerprint
    with pytest.raises(UserError, match="holds a Bert, which is no language model"):
        _ = loaded.decoder


@pytest.mark.parametrize(
    ("name", "part", "fields", "problem"),
    [
        ("bert-tiny-mlm", "data", {"format": "text"}, "data.format='text' of bert-tiny-mlm must be 'masked'"),
        ("bert-tiny-mlm", "model", {"head": "pooler"}, "model.head='pooler' must be 'masked_lm'"),
        ("bert-tiny-mlm", "data", {"sequence_length": 512}, "sequence_length=512 is longer than .*=256"),
        ("gemma2-nano", "data", {"format": "masked"}, "data.format='masked' of gemma2-nano must be another"),
    ],
)
def test_a_model_and_data_that_do_not_belong_together_are_refused(mesh, name, part, fields, problem):
    found = recipe(name)
    changed = dataclasses.replace(found, **{part: dataclasses.replace(getattr(found, part), **fields)})
    with pytest.raises(UserError, match=problem):
        check_recipe(changed, mesh)


def test_a_tokenizer_with_another_mask_token_or_none_is_refused():
    found = recipe("bert-tiny-mlm")
    tokenizer = train_wordpiece(["a text"], 200)
    check_tokenizer(found, tokenizer, None, "")
    other = dataclasses.replace(found, model=dataclasses.replace(preset("bert-tiny"), mask_token_id=5))
    with pytest.raises(UserError, match="is token 103 of the tokenizer and model.mask_token_id=5: say"):
        check_tokenizer(other, tokenizer, None, "")
    with pytest.raises(UserError, match=r"the tokenizer has no \[MASK\]"):
        check_tokenizer(found, NoText(), None, "")


def test_a_plan_is_refused_by_name():
    with pytest.raises(UserError, match="bert-tiny-mlm trains a model that guesses masked tokens"):
        zoo.plan.main(["bert-tiny-mlm", "--topology", "v5e:2x2"])


def test_weights_may_be_taken_with_another_dropout_but_not_with_other_positions():
    saved = dataclasses.asdict(preset("bert-tiny"))
    assert model_difference(saved, saved | {"dropout": 0.3, "mask_token_id": 4}) is None
    assert model_difference(saved, saved | {"num_positions": 7}) == ("model.num_positions", 256, 7)


def test_the_data_of_masked_tokens_have_a_corpus_of_their_own():
    assert DataConfig(format="masked").paths == ()
    with pytest.raises(UserError, match="'prompts' or 'labelled_images', not 'other'"):
        DataConfig(format="other")  # type: ignore[arg-type]
