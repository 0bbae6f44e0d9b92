"""`python -m zoo.train --teacher-cache DIR`: the curve of the online teacher, killed and resumed, and what is refused;
and distillation on the student's own samples."""

import shutil

import jax
import numpy as np
import pytest
from flax import nnx

from tests import tiny_run
from tests.tiny_run import arguments, assert_same_run
from zoo.data import Batch, train_tokenizer
from zoo.errors import UserError
from zoo.interop import save_run
from zoo.models import Gemma2Config, build
from zoo.parallel import make_mesh
from zoo.recipes.on_policy import prompts_of, samples_at
from zoo.score import main as score
from zoo.train import main
from zoo.training.metrics import read_metrics

TINY = {"model__num_layers": 1, "data__batch_size": 4, "steps": 4, "evaluate_every": 2}
V = 320


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zoo.train.make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A corpus, a teacher with a tokenizer of it, and two caches: of the whole vocabulary, and of 6 words."""
    folder = tmp_path_factory.mktemp("cached")
    data = tiny_run.write_corpus(folder / "corpus", 20)
    tokenizer = train_tokenizer([file.read_text() for file in sorted(data.glob("*.txt"))], V)
    sizes = {"num_heads": 2, "num_kv_heads": 1, "head_dim": 4, "hidden_dim": 16, "query_pre_attn_scalar": 4.0}
    config = Gemma2Config(
        vocab_size=V, embed_dim=8, num_layers=1, sliding_window=8, max_position_embeddings=64, **sizes
    )
    save_run(build(config, rngs=nnx.Rngs(0)), folder / "teacher", tokenizer=tokenizer)
    tokenizer.save(folder / "tokenizer")
    for k in (V, 6):
        words = ["--checkpoint", str(folder / "teacher"), "--top-k-logits", str(k), "--out", str(folder / f"cache{k}")]
        score([*words, "--", *arguments(data, folder / "run", **TINY)])
    return folder


def cached(folder, run, k=6, **changes):
    given = TINY | {"teacher_cache": folder / f"cache{k}", "data__tokenizer": folder / "tokenizer"}
    return arguments(folder / "corpus", run, **given | changes)


@pytest.fixture(scope="module")
def whole(folder):
    main(cached(folder, folder / "whole"))
    return folder / "whole"


def test_with_the_whole_vocabulary_the_curve_is_that_of_the_online_teacher(folder):
    main(cached(folder, folder / "offline", V))
    main(arguments(folder / "corpus", folder / "online", **TINY, teacher=folder / "teacher"))
    offline, online = (read_metrics(folder / name / "metrics.jsonl") for name in ("offline", "online"))
    for name in ("loss", "distillation_loss"):
        found, expected = ([line[name] for line in lines] for lines in (offline, online))
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert offline[-1]["validation_loss"] == pytest.approx(online[-1]["validation_loss"], rel=1e-5)


def test_a_killed_run_goes_on_bit_for_bit(folder, whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "checkpoints" / "4")
    main(cached(folder, run))
    assert_same_run(run, whole)


def test_fewer_words_are_another_loss(folder, whole, tmp_path):
    main(cached(folder, tmp_path / "run", distillation__top_k=1, stop_at_step=1))
    few, all_kept = (read_metrics(run / "metrics.jsonl")[0] for run in (tmp_path / "run", whole))
    assert few["loss"] == all_kept["loss"] and few["teacher_tail"] > all_kept["teacher_tail"]


def test_what_does_not_fit_is_refused_and_nothing_is_written(folder, tmp_path):
    def refused(words, **changes):
        with pytest.raises(UserError, match=words):
            main(cached(folder, tmp_path / "run", **changes))

    refused("^--teacher-cache .*missing is no cache", teacher_cache=tmp_path / "missing")
    refused("^--teacher-cache .* was written with seed=0 and this run has seed=4", data__seed=4)
    refused("was written with batch_size=4 and this run has batch_size=8", data__batch_size=8)
    refused("was written with temperature=1.0 and this run has temperature=2.0", distillation__temperature=2.0)
    refused("holds 4 steps and this run has 9", steps=9)
    refused("holds 6 words of each distribution, distillation.top_k=7 is more", distillation__top_k=7)
    refused("takes the place of --teacher", teacher=folder / "teacher")
    refused("distillation.on_policy needs --teacher", distillation__on_policy=0.5)
    refused("top_k=3 needs a cache", teacher_cache=None, distillation__top_k=3)
    texts = [file.read_text() for file in sorted((folder / "corpus").glob("*.txt"))]
    train_tokenizer(texts, 300).save(tmp_path / "other")
    refused("was written with tokenizer=", data__tokenizer=tmp_path / "other")
    assert not (tmp_path / "run").exists()


ON_POLICY = TINY | {
    "distillation__on_policy": 0.5,
    "distillation__kind": "jensen_shannon",
    "distillation__beta": 0.3,
    "distillation__prompt_tokens": 8,
    "distillation__max_new_tokens": 16,
}


def test_a_run_on_its_own_samples_goes_on_bit_for_bit(folder, tmp_path):
    command = ON_POLICY | {"teacher": folder / "teacher"}
    main(arguments(folder / "corpus", tmp_path / "a", **command))
    lines = read_metrics(tmp_path / "a" / "metrics.jsonl")
    sampled = [samples_at(0, step, 0.5) for step in range(4)]
    assert [bool(line["on_policy"]) for line in lines] == sampled and 0 < sum(sampled) < 4
    full = [line["weight"] for line in lines if not line["on_policy"]]
    assert all(0 < line["weight"] <= 4 * 16 < min(full) for line in lines if line["on_policy"])
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / "checkpoints" / "4")
    main(arguments(folder / "corpus", tmp_path / "b", **command))
    assert_same_run(tmp_path / "b", tmp_path / "a")
    with pytest.raises(UserError, match="samples of the model have no real labels"):
        main(arguments(folder / "corpus", tmp_path / "c", **command | {"distillation__hard_label_weight": 0.5}))
    with pytest.raises(UserError, match="do not fit in a row of data.sequence_length=32"):
        main(arguments(folder / "corpus", tmp_path / "c", **command | {"distillation__max_new_tokens": 30}))


def test_prompts_are_the_beginnings_of_documents_and_of_conversations():
    tokens = np.arange(12, dtype=np.int32).reshape(2, 6)
    segments = np.array([[1, 1, 2, 2, 2, 0], [1, 1, 0, 0, 0, 0]], np.int32)
    weights = np.array([[0, 0, 0, 1, 1, 0], [1, 1, 0, 0, 0, 0]], np.float32)
    batch = Batch(tokens, tokens, tokens, segments, weights)
    assert prompts_of(batch, 4) == [[2, 3], [6, 7]]
    assert prompts_of(batch, 3, "chat") == [[2, 3], [6]]


def test_a_part_of_the_steps_samples():
    assert not any(samples_at(1, step, 0.0) for step in range(50)) and all(samples_at(1, s, 1.0) for s in range(50))
    assert 0.25 < np.mean([samples_at(1, step, 0.3) for step in range(2000)]) < 0.35
