"""`python -m zoo.score --top-k-logits`: the cache has the teacher's probabilities of the batches that a run reads."""

import jax
import numpy as np
import pytest
from flax import nnx

from tests import tiny_run
from zoo.data import open_corpus, train_batches, train_tokenizer
from zoo.errors import UserError
from zoo.interop import load, save_run
from zoo.models import Gemma2Config, build
from zoo.recipes import DEFAULT, recipe, teacher_cache
from zoo.recipes.command_line import parse_recipe
from zoo.recipes.teacher_cache import TeacherCache
from zoo.score import main

K, STEPS = 7, 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A corpus, and a teacher with a tokenizer of it."""
    folder = tmp_path_factory.mktemp("scores")
    data = tiny_run.write_corpus(folder / "corpus", 20)
    texts = [file.read_text() for file in sorted(data.glob("*.txt"))]
    config = Gemma2Config(
        vocab_size=320,
        embed_dim=8,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=4,
        hidden_dim=16,
        query_pre_attn_scalar=4.0,
        sliding_window=8,
        max_position_embeddings=64,
        final_logit_soft_cap=2.0,
    )
    save_run(build(config, rngs=nnx.Rngs(0)), folder / "teacher", tokenizer=train_tokenizer(texts, 320))
    return folder


def command(folder, out, **changes):
    """Two steps a part, with the sizes of the tiny run."""
    options = tiny_run.arguments(folder / "corpus", folder / "run", steps=STEPS, **changes)
    return ["--checkpoint", str(folder / "teacher"), "--top-k-logits", str(K), "--out", str(out), "--", *options]


@pytest.fixture(scope="module", autouse=True)
def two_steps_a_part():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teacher_cache, "PART_BYTES", 2 * 8 * 32 * (6 * K + 4))
        yield


@pytest.fixture(scope="module")
def whole(folder):
    out = folder / "whole"
    main(command(folder, out))
    return out


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_cache_has_the_largest_log_probabilities_of_the_batches_that_a_run_reads(folder, whole):
    cache, loaded = TeacherCache(whole), load(folder / "teacher")
    assert cache.steps == STEPS and cache.layout.vocab_size == 320
    options = tiny_run.arguments(folder / "corpus", folder / "run", steps=STEPS)
    chosen = parse_recipe(recipe(DEFAULT), options, prog="test")
    batches = train_batches(open_corpus(chosen.data), loaded.tokenizer, chosen.data)
    forward = jax.jit(lambda b: loaded.model(b.tokens, positions=b.positions, segment_ids=b.segment_ids))
    for step in range(STEPS):
        batch = next(batches)
        kept = cache.read(step, batch)
        expected = np.asarray(jax.nn.log_softmax(forward(batch), axis=-1))
        np.testing.assert_allclose(np.float32(kept.log_probabilities), -np.sort(-expected)[..., :K], atol=5e-3)
        at_ids = np.take_along_axis(expected, kept.ids, axis=-1)
        np.testing.assert_allclose(np.float32(kept.log_probabilities), at_ids, atol=5e-3)
        np.testing.assert_allclose(np.exp(kept.log_tail) + np.exp(at_ids).sum(-1), 1, atol=1e-5)
    batches.close()


def test_writing_that_was_interrupted_goes_on_and_ends_with_the_same_bytes(folder, whole, monkeypatch):
    out, add, added = folder / "interrupted", teacher_cache.CacheWriter.add, []

    def interrupted(self, *arguments):
        if len(added) == 3:
            raise KeyboardInterrupt
        added.append(arguments)
        add(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(teacher_cache.CacheWriter, "add", interrupted)
        main(command(folder, out))
    assert TeacherCache(out).steps == 2
    main(command(folder, out))
    assert contents(out) == contents(whole)


def test_a_cache_that_is_there_is_left_as_it_is_and_another_stream_is_refused(folder, whole, capsys):
    before = contents(whole)
    main(command(folder, whole))
    assert f"{STEPS} steps of gemma2-nano, {K} of 320 words" in capsys.readouterr().out
    with pytest.raises(UserError, match="holds a cache with seed=0, not 4: choose another --out"):
        main(command(folder, whole, data__seed=4))
    assert contents(whole) == before


def test_what_cannot_be_meant_is_refused(folder, tmp_path):
    given = command(folder, tmp_path / "out")
    with pytest.raises(UserError, match="--top-k-logits must lie in 1 .. 320"):
        main([*given[:3], "321", *given[4:]])
    with pytest.raises(UserError, match="--text does not go with --top-k-logits"):
        main(["--text", "a.txt", *given])
    with pytest.raises(UserError, match="needs a folder: --out DIR"):
        main([*given[:4], *given[6:]])
    with pytest.raises(UserError, match="belong to --top-k-logits"):
        main([*given[:2], "--text", "a.txt", "--out", str(tmp_path / "out")])
    with pytest.raises(UserError, match="has a vocabulary of 320 and this run model.vocab_size=321"):
        main(command(folder, tmp_path / "out", model__vocab_size=321))
    assert not (tmp_path / "out").exists()
