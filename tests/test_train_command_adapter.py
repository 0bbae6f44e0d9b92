"""`python -m zoo.train --peft.method ...`: from a base to an adapter, resumed, exported, used, and what is refused."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

import zoo
from tests import tiny_run
from tests.tiny_run import arguments, assert_same_run, losses, saved_params
from zoo.data import open_corpus, tokenizer_for
from zoo.errors import UserError, run_command
from zoo.export import main as export
from zoo.generate import main as generate
from zoo.interop import save_huggingface, save_run
from zoo.models import build
from zoo.parallel import make_mesh
from zoo.recipes import DEFAULT, recipe
from zoo.score import main as score
from zoo.train import main
from zoo.training.run_directory import saved_steps

TINY = {"data__batch_size": 4, "steps": 4, "evaluate_every": 4, "optimizer__learning_rate": 0.02}
LORA = TINY | {"peft__method": "lora", "peft__rank": 4, "peft__dropout": 0.1}
SIZES = {"num_heads": 2, "num_kv_heads": 1, "head_dim": 8, "hidden_dim": 32, "sliding_window": 8}
CONFIG = dataclasses.replace(
    recipe(DEFAULT).model, **SIZES, vocab_size=320, embed_dim=16, num_layers=2, max_position_embeddings=64
)


@pytest.fixture(scope="module", autouse=True)
def two_devices():
    """Runs take two of the devices, which share the parameters."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zoo.train.make_mesh", lambda config: make_mesh(config, jax.devices()[:2]))
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny_run.write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def base(corpus, tmp_path_factory):
    """A model with random weights and a tokenizer, as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("base") / "folder"
    data = dataclasses.replace(recipe(DEFAULT).data, paths=(str(corpus),), vocab_size=320)
    save_huggingface(build(CONFIG, rngs=nnx.Rngs(1)), folder, tokenizer=tokenizer_for(open_corpus(data), data))
    return folder


@pytest.fixture(scope="module")
def whole(corpus, base, tmp_path_factory):
    """An uninterrupted run that trains a LoRA, and what it printed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        lines = []
        patch.setattr("builtins.print", lambda *words, **_: lines.append(" ".join(map(str, words))))
        main(arguments(corpus, run, init_from=base, **LORA))
    return run, "\n".join(lines)


TOKENS = np.random.default_rng(0).integers(3, 300, (2, 12)).astype(np.int32)


@functools.partial(jax.jit, static_argnums=0)
def computed(graphdef, state):
    return nnx.merge(graphdef, state)(TOKENS)


def logits(*path, **options):
    return np.asarray(computed(*nnx.split(zoo.load(*path, **options).model)))


def assert_close(found, wanted):
    assert np.linalg.norm(found - wanted) < 1e-6 * np.linalg.norm(wanted)


def test_a_run_saves_its_adapter_alone_and_the_optimizer_keeps_nothing_else(whole, base):
    run, output = whole
    numbers = 2 * (16 * 4 + 4 * 2 * 8 + 16 * 4 + 4 * 8)  # layers x (A and B of query, of value)
    params = saved_params(run)
    assert sum(value.size for value in params.values()) == numbers
    assert all("_lora_" in name for name in params)
    moments = 2 * 4 * numbers + 8  # two moments in float32, two counters of steps
    assert f"{numbers:,} trained beside {CONFIG.num_parameters():,}" in output
    assert f"optimizer state {moments / 2**10:,.1f} KiB" in output
    assert json.loads((run / "base.json").read_text())["path"] == str(base)


def test_training_moves_the_adapter_and_a_killed_run_goes_on_bit_for_bit(whole, corpus, base, tmp_path):
    first, last = losses(whole[0])[0], losses(whole[0])[-1]
    assert last[1] < first[1] and all(line[2] > 0 for line in losses(whole[0]))
    run = tmp_path / "run"
    shutil.copytree(whole[0], run)
    shutil.rmtree(run / "checkpoints" / "4")
    main(arguments(corpus, run, init_from=base, **LORA))
    assert saved_steps(run / "checkpoints") == (2, 4)
    assert_same_run(run, whole[0])


def test_the_run_its_base_with_the_run_and_every_export_compute_the_same(whole, base, tmp_path):
    run, _ = whole
    wanted = logits(run)
    assert np.abs(wanted - logits(base)).max() > 1e-3
    np.testing.assert_array_equal(logits(base, adapter=run), wanted)
    for name in ("peft", "adapter"):
        export([str(run), str(tmp_path / name), "--format", name])
        np.testing.assert_array_equal(logits(base, adapter=tmp_path / name), wanted)
    half = logits(base, adapter=[tmp_path / "peft", run], adapter_weights=[0.25, 0.75])
    assert_close(half, wanted)
    export([str(run), str(tmp_path / "merged"), "--format", "huggingface"])
    export([str(base), str(tmp_path / "also"), "--merge-adapter", str(tmp_path / "peft"), "--format", "orbax"])
    for name in ("merged", "also"):
        assert_close(logits(tmp_path / name), wanted)


def test_score_takes_an_adapter(whole, base, tmp_path):
    np.save(tmp_path / "ids.npy", TOKENS)
    for name, options in (("with", ["--adapter", whole[0]]), ("run", [])):
        checkpoint = base if options else whole[0]
        words = ["--checkpoint", checkpoint, "--tokens", tmp_path / "ids.npy", "--json", tmp_path / name, *options]
        score([str(word) for word in words])
    with_adapter, of_run = (json.loads((tmp_path / name).read_text())["total"] for name in ("with", "run"))
    assert with_adapter == of_run


def test_generate_takes_an_adapter(whole, base, tmp_path):
    np.save(tmp_path / "ids.npy", TOKENS)
    for name, options in (("with", [base, "--adapter", whole[0]]), ("run", [whole[0]]), ("base", [base])):
        words = ["--checkpoint", *options, "--tokens", tmp_path / "ids.npy", "--out", tmp_path / f"{name}.npy"]
        generate([str(word) for word in (*words, "--max-new-tokens", 8)])
    of_base, with_adapter, of_run = (np.load(tmp_path / f"{name}.npy") for name in ("base", "with", "run"))
    np.testing.assert_array_equal(with_adapter, of_run)
    assert (with_adapter != of_base).any()


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(
            {"peft__method": "bottleneck", "peft__bottleneck_dim": 4, "execution__scan_layers": "True"},
            id="bottleneck",
            marks=pytest.mark.slow,
        ),
        pytest.param({"peft__method": "prefix", "peft__prefix_length": 3}, id="prefix"),
    ],
)
def test_other_adapters_are_trained_and_loaded(options, corpus, base, tmp_path):
    options = dict(options)
    scan = ["--execution.scan-layers"] if options.pop("execution__scan_layers", None) else []
    run = tmp_path / "run"
    main(arguments(corpus, run, init_from=base, **TINY | {"steps": 2, "sample_tokens": 3} | options) + scan)
    assert all(line[2] > 0 for line in losses(run))
    export([str(run), str(tmp_path / "adapter"), "--format", "adapter"])
    loaded = logits(base, adapter=tmp_path / "adapter")
    np.testing.assert_array_equal(loaded, logits(run))
    assert np.abs(loaded - logits(base)).max() > 1e-4
    with pytest.raises(UserError, match="cannot be merged"):
        export([str(run), str(tmp_path / "merged"), "--format", "orbax"])
    if options["peft__method"] == "prefix":
        words = ["--checkpoint", base, "--adapter", run, "--prompt", "def ", "--mesh", f"context={jax.device_count()}"]
        with pytest.raises(UserError, match="is a prefix, .* leave context out of --mesh"):
            generate([str(word) for word in words])


@pytest.mark.slow
def test_a_sparse_adapter_trains_what_another_run_changed_most(corpus, base, tmp_path):
    tuned, run = tmp_path / "tuned", tmp_path / "run"
    main(arguments(corpus, tuned, init_from=base, **TINY | {"steps": 2}))
    sparse = TINY | {"peft__method": "sparse", "peft__density": 0.02, "peft__mask_from": tuned}
    main(arguments(corpus, run, init_from=base, **sparse))
    changed, before = (dict(nnx.to_flat_state(nnx.state(zoo.load(path).model))) for path in (run, base))
    after = dict(nnx.to_flat_state(nnx.state(zoo.load(tuned).model)))
    names = [path for path in before if path[-1] in ("query", "key", "value", "output", "gate", "up", "down")]
    moved = {path: np.asarray(changed[path][...] != before[path][...]) for path in before}
    entries = sum(before[path][...].size for path in names)
    assert sum(m.sum() for path, m in moved.items() if path not in names) == 0
    count = -(-entries * 2 // 100)
    assert count - 2 <= sum(m.sum() for m in moved.values()) <= count  # one may not have moved
    sizes = np.concatenate([np.abs(np.asarray(after[p][...] - before[p][...])).ravel() for p in names])
    least = np.sort(sizes)[-count]
    for path in names:
        assert (np.abs(np.asarray(after[path][...] - before[path][...]))[moved[path]] >= least).all()
    mask = safetensors.numpy.load_file(run / "mask.safetensors")
    assert sum(len(index) for index in mask.values()) == count
    main(arguments(corpus, run, init_from=base, **sparse | {"steps": 5}))  # goes on with the mask that it began with


def test_what_does_not_fit_is_refused_in_one_line_and_nothing_is_written(capsys, corpus, base, whole, tmp_path):
    run = tmp_path / "run"

    def line(directory=run, **changes):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            run_command(lambda: main(arguments(corpus, directory, **LORA | {"init_from": base} | changes)))
        [line] = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("attention")]
        assert stop.value.code == 2
        return line

    assert "say --init-from" in line(init_from=None)
    assert "leave out --freeze" in line(freeze="embedder")
    assert "names no matrix of a layer; this model has query, key, value" in line(peft__target="q_proj")
    assert "has no biases; --peft.norm-scales" in line(
        peft__method="bitfit", peft__rank=None, peft__dropout=None, peft__target=None
    )
    assert "peft.rank=4 has no meaning for peft.method=prefix" in line(peft__method="prefix", peft__dropout=None)
    prefix = dict(peft__method="prefix", peft__rank=None, peft__dropout=None, mesh__fsdp=1, mesh__context=2)
    assert "share the tokens of a sequence (context=2): set mesh.context to 1" in line(**prefix)
    assert not run.exists()
    other = tmp_path / "other"
    save_run(build(CONFIG, rngs=nnx.Rngs(2)), other, tokenizer=zoo.load(base).tokenizer)
    assert "has other weights" in line(whole[0], init_from=other, steps=5)
    assert "peft.rank=4, and this one has peft.rank=2" in line(whole[0], peft__rank=2)
    with pytest.raises(UserError, match="was trained on another base model"):
        zoo.load(other, adapter=whole[0])
