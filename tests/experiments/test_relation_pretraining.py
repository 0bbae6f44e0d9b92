"""Pre-training of the relation study's own encoder, on short rows and then on long ones."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.relation_extraction import pretraining
from experiments.relation_extraction.arms import SIZES
from experiments.relation_extraction.made_up import made_up
from zoo.interop import load
from zoo.recipes.recipe import Recipe
from zoo.recipes.weights import check_init_from
from zoo.training.metrics import JsonLines

SIZE = replace(
    SIZES["quick"],
    mlm_counted_batches=0,
    mlm_steps=8,
    mlm_rows=6,
    mlm_tokens=16,
    mlm_long_steps=4,
    passage_tokens=48,
)


def test_long_rows_come_last_have_as_many_tokens_and_begin_with_the_weights_of_short_ones(tmp_path: Path) -> None:
    short, long = pretraining.stages_of(SIZE, tmp_path)
    assert (short.steps, short.rows, short.tokens, short.init_from) == (8, 6, 16, None)
    assert (long.steps, long.rows, long.tokens, long.init_from) == (4, 2, 48, short.run_dir)
    assert long.run_dir == tmp_path / "mlm"


def test_without_long_rows_there_is_one_stage_in_the_same_folder(tmp_path: Path) -> None:
    (only,) = pretraining.stages_of(replace(SIZE, mlm_long_steps=0), tmp_path)
    assert (only.run_dir, only.steps, only.tokens) == (tmp_path / "mlm", 8, 16)


def test_the_first_stage_begins_with_what_was_counted(tmp_path: Path) -> None:
    size = replace(SIZE, mlm_counted_batches=2)
    assert [stage.init_from for stage in pretraining.stages_of(size, tmp_path)] == [
        tmp_path / "counted",
        tmp_path / "mlm-short",
    ]


def test_counts_of_the_first_rows_go_into_a_folder_that_the_run_can_begin_with(tmp_path: Path) -> None:
    size, corpus = replace(SIZE, mlm_counted_batches=2), made_up(pairs=12)
    tokenizer, text = pretraining.vocabulary(corpus, size, tmp_path), tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": pretraining.document(bag)}) + "\n" for bag in corpus.train))
    stage = pretraining.stages_of(size, tmp_path)[0]
    chosen = pretraining.mlm_recipe(size, stage, tokenizer, text, tmp_path, ())
    folder = tmp_path / "counted"
    pretraining.count_first(chosen, tokenizer, 2, folder)
    check_init_from(chosen)
    bias = np.asarray(load(folder).model.head.bias[...])
    np.testing.assert_allclose(np.exp(bias).sum(), 1, rtol=1e-4)
    assert len(np.unique(bias)) > 2
    text.unlink()
    pretraining.count_first(chosen, tokenizer, 2, folder)  # Not again: nothing is there to be counted.


def test_steps_of_both_stages_are_counted_on_and_a_finished_pretraining_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Recipe] = []

    def train(recipe: Recipe) -> None:
        trained.append(recipe)
        Path(recipe.run_dir).mkdir()
        lines = JsonLines(Path(recipe.run_dir) / "metrics.jsonl", last_step=0)
        for step in range(1, recipe.loop.steps + 1):
            checked = {"validation_loss": 6.0, "validation_masked_accuracy": 0.25} if step == recipe.loop.steps else {}
            lines.write({"step": step, "step_tokens": recipe.data.batch_size} | checked)
        lines.close()

    def vocabulary(*_: object) -> SimpleNamespace:
        return SimpleNamespace(vocab_size=50, id_of=lambda name: 4)

    monkeypatch.setattr(pretraining, "train_to_the_end", train)
    monkeypatch.setattr(pretraining, "vocabulary", vocabulary)
    for _ in range(2):
        found = pretraining.pretrain(made_up(pairs=12), SIZE, tmp_path, with_novels=False)
        assert len(trained) == 2
    assert found.steps == 12
    assert found.tokens == 8 * 6 + 4 * 2
    assert found.validation == ((8, 6.0, 0.25), (12, 6.0, 0.25))
    assert trained[1].init_from == trained[0].run_dir
    assert [recipe.data.sequence_length for recipe in trained] == [16, 48]
