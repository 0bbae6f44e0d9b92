"""The time of a schedule, against sums by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.ahead_of_time.costs import kernel_cost
from zoo.ahead_of_time.hlo import parse_program
from zoo.ahead_of_time.interconnect import Links, Network
from zoo.ahead_of_time.schedule import KernelTime, Machine, follow

MESH = {"fsdp": 2, "tensor": 2}
SIZE = 1024
CYCLES = 'backend_config={{"window_config":{{"estimated_cycles":"{}"}}}}'


class Device:
    coords = (0, 0, 0)
    slice_index = 0


def timeline(body: str, before: str = "", default_trips: int = 1, devices=None):
    """1 cycle = 1 s; 1 byte of main memory = 1 s; a collective of [1024] float32 over 2 GPUs-like devices: 2048 s."""
    text = (
        f"HloModule m, is_scheduled=true, num_partitions=4\n\n{before}"
        f"ENTRY %main (a: f32[{SIZE}]) -> f32[{SIZE}] {{\n  %a = f32[{SIZE}]{{0}} parameter(0)\n{body}}}\n"
    )
    network = Network(devices or [Device()] * 4, Links(link=1.0, slow=1.0, hop_seconds=0.0, wrap_at=None))

    def kernel(instruction, computation):
        flops, moved = kernel_cost(instruction) or (0.0, 0.0)
        return KernelTime(moved, flops, "declared")

    return follow(parse_program(text), MESH, Machine(1.0, 1.0), network, kernel, default_trips)


def fusion(name: str, operand: str, cycles: int, calls: str = "compute") -> str:
    return f"  %{name} = f32[{SIZE}]{{0}} fusion(%{operand}), kind=kLoop, calls=%{calls}, {CYCLES.format(cycles)}\n"


COMPUTE = f"%compute (p: f32[{SIZE}]) -> f32[{SIZE}] {{\n  ROOT %p = f32[{SIZE}]{{0}} parameter(0)\n}}\n\n"
GROUPS = "replica_groups=[2,2]<=[4], use_global_device_ids=true"
REDUCE = f"f32[{SIZE}]{{0}} all-reduce"
WHOLE = 2 * SIZE * 4 / 2  # 2 V (n - 1) / n at 1 byte/s


def test_computations_add_up_and_a_synchronous_collective_stops_them():
    body = fusion("x", "a", 70) + f"  %r = {REDUCE}(%x), {GROUPS}, to_apply=%compute\n" + fusion("y", "r", 30)
    line = timeline(body, COMPUTE)
    assert line.seconds == 100 + WHOLE
    (found,) = line.collectives
    assert (found.kind, found.axes, found.exposed, found.form) == ("all-reduce", ("tensor",), WHOLE, "synchronous")


@pytest.mark.parametrize("cycles", [100, 5000], ids=["too short", "long enough"])
def test_an_asynchronous_collective_is_exposed_for_what_the_instructions_between_leave(cycles):
    body = (
        f"  %s = f32[{SIZE}]{{0}} all-reduce-start(%a), {GROUPS}, to_apply=%compute\n"
        + fusion("x", "a", cycles)
        + f"  %d = f32[{SIZE}]{{0}} all-reduce-done(%s)\n"
    )
    line = timeline(body, COMPUTE)
    assert line.seconds == max(cycles, WHOLE)
    assert line.collectives[0].exposed == line.exposed_seconds == max(0, WHOLE - cycles)
    assert line.collectives[0].form == "asynchronous"


def test_two_collectives_on_the_same_links_follow_each_other():
    start = f"f32[{SIZE}]{{0}} all-reduce-start(%a), {GROUPS}, to_apply=%compute\n"
    body = f"  %s = {start}  %t = {start}  %d = f32[{SIZE}]{{0}} all-reduce-done(%s)\n"
    line = timeline(body + f"  %e = f32[{SIZE}]{{0}} all-reduce-done(%t)\n", COMPUTE)
    assert line.seconds == 2 * WHOLE


@pytest.mark.parametrize("cycles", [100, 9000], ids=["too short", "long enough"])
def test_what_slices_exchange_is_a_collective_over_the_slow_network(cycles):
    class Elsewhere(Device):
        slice_index = 1

    notes = (
        'is_host_transfer=true, frontend_attributes={_xla_host_transfer_rendezvous="r",'
        '_xla_megascale_transfer_type="ALL_REDUCE"}'
    )
    body = (
        f"  %s = (f32[{SIZE}]{{0}}, u32[], token[]) send(%a, %t), channel_id=3, {notes}\n"
        f"  %r = (f32[{SIZE}]{{0}}, u32[], token[]) recv(%t), channel_id=2, {notes}\n"
        + fusion("x", "a", cycles)
        + f"  %e = token[] send-done(%s), channel_id=3\n"
        f"  %d = (f32[{SIZE}]{{0}}, token[]) recv-done(%r), channel_id=2\n"
    )
    line = timeline(
        "  %t = token[] after-all()\n" + body, COMPUTE, devices=[Device(), Device(), Elsewhere(), Elsewhere()]
    )
    (found,) = line.collectives
    assert (found.kind, found.axes, found.dimensions, found.bytes) == ("all-reduce", ("fsdp",), ("DCN",), 4 * SIZE)
    assert line.seconds == max(cycles, WHOLE) and found.exposed == max(0, WHOLE - cycles)


def held(name: str, target: str | None) -> str:
    """A fused computation with a piece of collective 7."""
    root = f'  ROOT %c = f32[{SIZE}]{{0}} custom-call(%g), custom_call_target="{target}"\n' if target else ""
    mark = "" if target else "ROOT "
    return (
        f"%{name} (p: f32[{SIZE}]) -> f32[{SIZE}] {{\n  %p = f32[{SIZE}]{{0}} parameter(0)\n"
        f"  {mark}%g = {REDUCE}(%p), channel_id=7, {GROUPS}, to_apply=%compute, "
        f'frontend_attributes={{chain_id="0"}}\n{root}}}\n\n'
    )


@pytest.mark.parametrize("cycles", [100, 5000], ids=["too short", "long enough"])
def test_a_fused_collective_advances_only_in_the_computations_that_carry_it(cycles):
    before = COMPUTE + held("begin", "AsyncCollectiveStart") + held("carry", None) + held("end", "AsyncCollectiveDone")
    body = (
        f"  %s = f32[{SIZE}]{{0}} fusion(%a), kind=kCustom, calls=%begin\n"
        + fusion("x", "s", cycles, "carry")
        + fusion("other", "x", 999)
        + f"  %d = f32[{SIZE}]{{0}} fusion(%other), kind=kCustom, calls=%end\n"
    )
    line = timeline(body, before)
    assert line.seconds == cycles + 999 + max(0, WHOLE - cycles)
    (found,) = line.collectives
    assert (found.form, found.times) == ("fused", 1)


def test_an_all_reduce_of_which_a_device_keeps_its_share_is_a_reduce_scatter():
    before = COMPUTE + (
        f"%scatter (p: f32[{SIZE}]) -> f32[{SIZE // 2}] {{\n  %p = f32[{SIZE}]{{0}} parameter(0)\n"
        f"  %i = s32[] partition-id()\n  %g = {REDUCE}(%p), {GROUPS}, to_apply=%compute\n"
        f"  ROOT %s = f32[{SIZE // 2}]{{0}} dynamic-slice(%g, %i), dynamic_slice_sizes={{{SIZE // 2}}}\n}}\n\n"
    )
    line = timeline(
        f"  %x = f32[{SIZE // 2}]{{0}} fusion(%a), kind=kCustom, calls=%scatter, {CYCLES.format(0)}\n", before
    )
    (found,) = line.collectives
    assert (found.kind, found.exposed) == ("reduce-scatter", WHOLE / 2)


def test_a_ragged_exchange_sends_as_many_rows_as_a_device_has_and_not_the_buffer_that_they_go_to():
    """There and back: 512 rows of 4 bytes, half of which a device keeps, and a buffer of 1024."""
    zeros = "".join(f"  %{name} = {kind}{{0}} parameter({index})\n" for index, (name, kind) in enumerate(
        [("rows", "f32[512]"), *((name, "s32[2]") for name in "bcde")], start=1
    ))  # fmt: skip
    sizes = f"%b, %c, %d, %e), {GROUPS}"
    body = (
        f"{zeros}  %there = f32[{SIZE}]{{0}} ragged-all-to-all(%rows, %a, {sizes}\n"
        f"  %back = f32[512]{{0}} ragged-all-to-all(%there, %rows, {sizes}\n"
    )
    found = timeline(body).collectives
    assert len(found) == 2
    for one in found:
        assert (one.kind, one.bytes, one.wire_bytes, one.seconds) == ("ragged-all-to-all", 2048, 1024, 1024)


def test_what_has_no_estimate_takes_its_bytes_and_a_kernel_what_is_said_of_it():
    cost = '{"custom_call_config":{"cost_estimate":{"flops":"500","bytes_accessed":"40"}}}'
    body = (
        f"  %x = f32[{SIZE}]{{0}} negate(%a)\n  %k.1 = f32[{SIZE}]{{0}} custom-call(%x), "
        f'custom_call_target="tpu_custom_call", backend_config={cost}\n'
    )
    line = timeline(body, COMPUTE)
    assert (line.memory_seconds, line.kernel_seconds, line.seconds) == (8 * SIZE, 40, 8 * SIZE + 40)
    assert (line.kernel_flops, line.hbm_bytes) == (500, 8 * SIZE + 40)
    (calls,) = line.kernels.values()
    assert (calls.name, calls.times) == ("k", 1)


def test_of_a_conditional_the_longest_branch_counts():
    branches = "".join(
        f"%{name} (q: f32[{SIZE}]) -> f32[{SIZE}] {{\n  %q = f32[{SIZE}]{{0}} parameter(0)\n"
        + fusion("z", "q", cycles)
        + "}\n\n"
        for name, cycles in (("short", 10), ("long", 60))
    )
    body = (
        f"  %p = pred[] constant(true)\n  %x = f32[{SIZE}]{{0}} conditional(%p, %a, %a), true_computation=%long, "
        "false_computation=%short\n"
    )
    line = timeline(body, COMPUTE + branches)
    assert line.seconds == line.compute_seconds == 60


def test_a_loop_takes_its_passes_times_one_pass_and_one_without_a_count_the_default():
    for condition, default, passes in (("constant(12)", 1, 12), ("add(%i, %i)", 3, 3)):
        before = COMPUTE + (
            f"%body (t: (s32[], f32[{SIZE}])) -> (s32[], f32[{SIZE}]) {{\n"
            f"  %t = (s32[], f32[{SIZE}]{{0}}) parameter(0)\n  %v = f32[{SIZE}]{{0}} get-tuple-element(%t), index=1\n"
            + fusion("w", "v", 7)
            + f"  %r = {REDUCE}(%w), {GROUPS}, to_apply=%compute\n"
            f"  ROOT %u = (s32[], f32[{SIZE}]{{0}}) tuple(%r, %w)\n}}\n\n"
            f"%until (t: (s32[], f32[{SIZE}])) -> pred[] {{\n  %t = (s32[], f32[{SIZE}]{{0}}) parameter(0)\n"
            f"  %i = s32[] get-tuple-element(%t), index=0\n  %n = s32[] {condition}\n"
            "  ROOT %less = pred[] compare(%i, %n), direction=LT\n}\n\n"
        )
        body = (
            f"  %z = s32[] constant(0)\n  %s = (s32[], f32[{SIZE}]{{0}}) tuple(%z, %a)\n"
            f"  %l = (s32[], f32[{SIZE}]{{0}}) while(%s), condition=%until, body=%body\n"
        )
        line = timeline(body, before, default)
        assert line.seconds == passes * (7 + WHOLE)
        assert line.collectives[0].times == passes and line.exposed_seconds == passes * WHOLE
        assert bool(line.unknown_loops) == (default != 1)


def test_on_a_program_of_this_jax_flops_of_a_scan_are_those_of_its_layers():
    x, w = jnp.zeros((8, 16)), jnp.zeros((5, 16, 16))
    lines = []
    for unroll in (False, True):

        def f(x, w, unroll=unroll):
            return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w, unroll=unroll)[0].sum()

        text = jax.jit(jax.grad(f, (0, 1))).lower(x, w).compile().as_text()
        lines.append(follow(parse_program(text), {}, Machine(1.0, 1.0), None, lambda *_: KernelTime(0, 0, "")))
    assert lines[0].matrix_flops == lines[1].matrix_flops > 0
    assert np.isfinite(lines[0].seconds)
