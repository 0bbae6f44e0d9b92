import functools

import chex
import jax
import numpy as np
import pytest
from flax import nnx

from tests.marks import slow
from zoo.errors import UserError
from zoo.inference import Sampling, generate, left_pad
from zoo.inference import generation as generation_module
from zoo.inference.model import take_apart
from zoo.inference.prompts import positions_of
from zoo.nn import Execution
from zoo.parallel import MeshConfig, ShardingRules, make_mesh, state_shardings

WINDOW = 8  # of the fixture `model`


def random_prompts(*lengths: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 96, length).tolist() for length in lengths]


@pytest.fixture(scope="module", params=["unrolled", "scanned"])
def any_layout(request, make_model):
    scanned = request.param == "scanned"
    return make_model(execution=Execution(scan_layers=scanned), num_layers=4 if scanned else 3)


@functools.cache
def step_of(structure):
    """One program for each shape of the tokens, whichever test asks."""

    @jax.jit
    def step(arrays, cache, tokens, positions, segment_ids=None):
        return structure.restore(arrays)(tokens, positions=positions, segment_ids=segment_ids, cache=cache)

    return step


@pytest.mark.parametrize(
    "lengths",
    [(1, 1, 1), (WINDOW - 1,) * 3, (WINDOW, WINDOW, 2), (WINDOW + 1, 1, 4), (1, 2 * WINDOW + 3, WINDOW)],
    ids=str,
)
def test_prefill_and_decode_give_the_logits_of_the_full_forward_pass(any_layout, full_logits, lengths):
    """Teacher-forced through the cache to three windows behind the longest prompt, rows padded on the left."""
    model, new = any_layout, 3 * WINDOW
    rows = random_prompts(*(length + new for length in lengths))
    prompts, mask = left_pad([row[:-new] for row in rows])
    structure, arrays = take_apart(model)
    step = step_of(structure)
    logits, cache = step(arrays, model.init_cache(3, 48), prompts, positions_of(mask), mask)
    pieces = [logits]
    for i in range(new):
        newest = np.asarray([row[i - new] for row in rows])[:, None]
        logits, cache = step(arrays, cache, newest, mask.sum(1, keepdims=True) + i)
        pieces.append(logits)
    cached = np.concatenate(pieces, axis=1)
    for row, row_logits in zip(rows, cached, strict=True):
        chex.assert_trees_all_close(row_logits[-len(row) :], full_logits(model, row), atol=2e-5)


@pytest.mark.parametrize("lengths", [(1,), (WINDOW - 3, 2 * WINDOW, 1)], ids=str)
def test_greedy_tokens_are_the_argmax_of_the_full_forward_pass(any_layout, full_logits, lengths):
    prompts = random_prompts(*lengths)
    new = generate(any_layout, *left_pad(prompts), max_new_tokens=3 * WINDOW)
    assert new.shape == (len(lengths), 3 * WINDOW)
    assert new.dtype == np.int32
    for prompt, row in zip(prompts, new.tolist(), strict=True):
        logits = full_logits(any_layout, prompt + row)
        assert row == logits[len(prompt) - 1 : -1].argmax(-1).tolist()


def test_one_new_token_needs_no_decode_step(model):
    prompts = np.asarray(random_prompts(5))
    assert (
        generate(model, prompts, max_new_tokens=1).tolist()
        == generate(model, prompts, max_new_tokens=4)[:, :1].tolist()
    )


@pytest.mark.parametrize("sampling", [Sampling(), *slow(Sampling(1.0)), Sampling(0.9, top_k=40, top_p=0.95)], ids=str)
def test_a_prompts_continuation_does_not_depend_on_its_batch(model, sampling):
    prompts = random_prompts(5, 11, 1)
    options = dict(max_new_tokens=12, sampling=sampling, seed=7)
    together = generate(model, *left_pad(prompts, multiple=16), **options)
    reversed_order = generate(model, *left_pad(prompts[::-1], multiple=16), **options)
    assert together.tolist() == reversed_order[::-1].tolist()
    for prompt, row in zip(prompts, together, strict=True):
        assert generate(model, *left_pad([prompt], multiple=16), **options)[0].tolist() == row.tolist()


def test_the_seed_decides_what_is_drawn(model):
    prompts = np.asarray(random_prompts(6) * 3)
    draw = lambda seed: generate(model, prompts, max_new_tokens=16, sampling=Sampling(1.0), seed=seed).tolist()  # noqa: E731
    assert draw(0) == draw(0) != draw(1)
    assert len({tuple(row) for row in draw(0)}) == 3, "equal prompts of a batch are drawn differently"


def test_after_its_stop_token_a_row_holds_padding_while_the_others_go_on(model):
    prompts, mask = left_pad(random_prompts(4, 9, 6))
    options = dict(max_new_tokens=20, sampling=Sampling(1.5), seed=3)
    free = generate(model, prompts, mask, **options)
    stop = int(free[0, 5])
    first = [row.index(stop) if stop in row else None for row in free.tolist()]
    stopped = generate(model, prompts, mask, stop_tokens=(stop, 95_000), pad_id=77, **options)
    assert first[0] is not None
    assert None in first, "one row is meant to go on"
    for row, expected, end in zip(stopped.tolist(), free.tolist(), first, strict=True):
        kept = len(expected) if end is None else end + 1
        assert row == expected[:kept] + [77] * (len(expected) - kept)


def test_generation_ends_early_when_all_rows_have_stopped(model):
    prompts = np.asarray(random_prompts(4))
    free = generate(model, prompts, max_new_tokens=40)
    steps = []
    stopped = generate(model, prompts, max_new_tokens=40, stop_tokens=(int(free[0, 2]),), on_token=steps.append)
    end = free[0].tolist().index(free[0, 2])
    assert len(steps) == end + 1
    assert stopped[0].tolist() == free[0, : end + 1].tolist() + [0] * (39 - end)


def test_every_step_is_handed_to_the_callback_as_it_is_returned(model):
    prompts, mask = left_pad(random_prompts(3, 5))
    steps: list[np.ndarray] = []
    new = generate(model, prompts, mask, max_new_tokens=9, on_token=lambda tokens: steps.append(tokens.copy()))
    assert np.stack(steps, axis=1).tolist() == new.tolist()


def test_programs_are_compiled_once_for_models_of_equal_structure(make_model):
    generation_module._programs.cache_clear()
    prompts = np.asarray(random_prompts(5, 5))
    outputs = [generate(make_model(seed=seed), prompts, max_new_tokens=6).tolist() for seed in (0, 1, 0)]
    assert outputs[0] == outputs[2] != outputs[1], "weights are arguments, not constants"
    assert generation_module._programs.cache_info().misses == 1
    structure, _ = take_apart(make_model())
    programs = generation_module._programs(structure, Sampling(), 0, None, None)
    assert generation_module._programs.cache_info().misses == 1
    assert programs.prefill._cache_size() == programs.decode._cache_size() == 1


def test_a_decode_step_updates_the_cache_in_place(model):
    structure, arrays = take_apart(model)
    programs = generation_module._programs(structure, Sampling(), 0, None)
    prompts = np.asarray(random_prompts(5), np.int32)
    ones, stops = np.ones_like(prompts), np.zeros(0, np.int32)
    keys = generation_module.row_keys(0, prompts, ones)
    cache, last = programs.prefill(arrays, prompts, positions_of(ones), None, keys, stops, cache_length=20)
    before = [array.unsafe_buffer_pointer() for array in jax.tree.leaves(cache) if array.ndim == 4]
    after, _, _ = programs.decode(arrays, cache, last, keys, stops, 3)
    assert sorted(array.unsafe_buffer_pointer() for array in jax.tree.leaves(after) if array.ndim == 4) == sorted(
        before
    )
    assert all(array.is_deleted() for array in jax.tree.leaves(cache) if array.ndim == 4)


def test_local_layers_keep_the_window_and_global_layers_the_whole_sequence(model):
    slots = [layer.slots for layer in model.init_cache(1, 50)]
    assert slots == [WINDOW, 50, WINDOW]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (dict(max_new_tokens=0), "max-new-tokens"),
        (dict(max_new_tokens=-3), "max-new-tokens"),
        (dict(max_new_tokens=1, seed=-1), "seed"),
        (dict(max_new_tokens=1, seed=2**31), "seed"),
        (dict(max_new_tokens=1, mask=np.array([[1, 1, 0]])), "padded on the left"),
        (dict(max_new_tokens=1, mask=np.ones((1, 2), int)), "shape"),
        (dict(max_new_tokens=1, tokens=np.array([[1, 96]])), "outside the vocabulary"),
    ],
    ids=str,
)
def test_input_without_meaning_is_refused(model, arguments, said):
    tokens = arguments.pop("tokens", np.array([[5, 6, 7]]))
    with pytest.raises(UserError, match=said):
        generate(model, tokens, **arguments)


def test_bfloat16_models_generate(make_model):
    model = make_model(execution=Execution(compute_dtype="bfloat16", param_dtype="bfloat16"))
    new = generate(model, np.asarray(random_prompts(2 * WINDOW)), max_new_tokens=4)
    assert new.shape == (1, 4)


def test_a_model_whose_parameters_are_spread_over_devices_generates_the_same(model):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    graphdef, state = nnx.split(model)
    spread = nnx.merge(graphdef, jax.device_put(state, state_shardings(state, mesh, ShardingRules())))
    assert len(spread.embedder.embedding[...].sharding.device_set) == 8
    prompts = left_pad(random_prompts(5, 11))
    new = [generate(m, *prompts, max_new_tokens=12).tolist() for m in (model, spread)]
    assert new[0] == new[1]
