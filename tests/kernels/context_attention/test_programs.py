"""What the compiled programs of a divided length exchange, and what they keep."""

import re

import jax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.kernels.context_attention.cases import mesh_of, rows
from zoo.kernels.context_attention import context_attention
from zoo.parallel import ShardingRules, activation_sharding


def program(length, context, window, *, exchange="auto", gradient=False, **arrays) -> str:
    """The compiled program for queries, keys and values that lie divided, and whole positions."""
    mesh = mesh_of(context)
    qkv, positions, segments = rows(length, **arrays)
    qkv = [jax.device_put(x, NamedSharding(mesh, PartitionSpec(None, "context"))) for x in qkv]
    places = [jax.device_put(x, NamedSharding(mesh, PartitionSpec())) for x in (positions, segments)]

    def attend(qkv, positions, segments):
        return context_attention(
            *qkv,
            positions=positions,
            segment_ids=segments,
            scale=0.3,
            sliding_window=window,
            logits_soft_cap=30.0,
            implementation="xla",
        )

    if gradient:
        function = jax.value_and_grad(lambda *x: (attend(*x) ** 2).sum())
    else:
        function = attend
    with activation_sharding(mesh, ShardingRules(context_exchange=exchange)):
        return jax.jit(function).lower(qkv, *places).compile().as_text()


def count(text: str, name: str) -> int:
    return len(re.findall(rf" {name}(?:-start)?\(", text))


@pytest.mark.parametrize(
    ("window", "permutes"),
    # 8 tokens per device: ceil((W - 1) / 8), and at most one for each of the 7 other devices.
    [(8, 1), (9, 1), (10, 2), (1, 0), (100, 7)],
)
def test_a_local_layer_permutes_its_halo_only(window, permutes):
    text = program(64, 8, window)
    assert count(text, "collective-permute") == permutes
    assert not re.search(r" all-(gather|to-all|reduce)", text)


def test_the_halo_of_a_local_layer_is_no_larger_than_its_window():
    """W - 1 = 9 keys and values of 2 heads: all 8 of the nearest device, and the last of the one before."""
    sizes = re.findall(r"= f32\[2,(\d+),4,16\]\S* collective-permute", program(64, 8, 10))
    assert sorted(map(int, sizes)) == [1, 8]


def test_its_gradient_goes_back_by_as_many_permutes():
    text = program(64, 8, 17, gradient=True)
    assert count(text, "collective-permute") == 2 * 2
    assert count(text, "all-gather") == 0


@pytest.mark.parametrize("gradient", [False, True])
def test_a_ring_moves_one_device_per_pass_and_keeps_no_square(gradient):
    length, devices = 512, 4
    text = program(length, devices, None, exchange="ring", gradient=gradient, batch=1)
    bodies = set(re.findall(r"body=%([\w.\-]+)", text))
    # Forward: (k, v) in the loop. Backward: (k, v) and their gradients in the loop, (k, v) before it, these after it.
    inside = {body: count(_computation(text, body), "collective-permute") for body in bodies}
    assert sorted(inside.values()) == ([1, 2] if gradient else [1])
    assert count(text, "collective-permute") == (1 + 2 + 2 if gradient else 1)
    assert count(text, "all-to-all") == (4 if gradient else 2)
    assert count(text, "all-gather") == 0
    assert largest_square(text) <= length // devices


def test_a_gather_takes_grouped_heads_once():
    text = program(64, 4, None, exchange="gather", heads=8, kv_heads=2, batch=1)
    assert re.findall(r"= f32\[([\d,]+)\]\S* all-gather", text) in (["4,1,16,4,16"], ["1,64,4,16"])
    assert count(text, "collective-permute") == 0


def _computation(text: str, name: str) -> str:
    return text[text.index(f"\n%{name} ") :].split("\n}", 1)[0]


def largest_square(text: str) -> int:
    """The largest n for which some array has two sides of n or more."""
    shapes = re.findall(r"\b[a-z]+\d+\[([\d,]+)\]", text)
    return max(sorted(map(int, shape.split(",")))[-2] for shape in set(shapes) if "," in shape)
