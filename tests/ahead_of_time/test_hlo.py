"""The reader of compiled programs, on short texts and on what XLA writes for the CPU."""

import jax
import jax.numpy as jnp
import pytest

from zoo.ahead_of_time.hlo import UnreadableProgram, parse_program, parse_shapes

LOOP = """HloModule jit_f, is_scheduled=true, entry_computation_layout={(f32[4]{0})->f32[4]{0}}, num_partitions=4

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p = (s32[]{:T(128)}, f32[4]{0:T(128)}) parameter(0)
  %one = s32[] constant(1)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[4]{0:T(128)} get-tuple-element(%p), index=1
  %next = s32[] add(%i, %one)
  %y = f32[4]{0:T(128)} multiply(%x, %x), metadata={op_name="jit(f)/while/body/mul" stack_frame_id=1}, \
backend_config={"window_config":{"estimated_cycles":"70"}}
  ROOT %t = (s32[]{:T(128)}, f32[4]{0:T(128)}) tuple(%next, %y)
}

%condition (p: (s32[], f32[4])) -> pred[] {
  %p = (s32[], f32[4]{0}) parameter(0)
  %n = s32[] constant(23)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], /*index=1*/f32[4]{0}) tuple(%zero, %a)
  %kernel = f32[4]{0} custom-call(%a), custom_call_target="k", frontend_attributes={kernel_metadata={
"name":"of (several) lines"
}}, metadata={op_name="jit(f)/k"}
  %loop = (s32[], f32[4]{0}) while(%start), condition=%condition, body=%body
  ROOT %result = f32[4]{0} get-tuple-element(%loop), index=1
}
"""


def test_instructions_keep_their_order_shapes_operands_and_notes():
    program = parse_program(LOOP)
    assert (program.name, program.entry, program.scheduled, program.num_partitions) == ("jit_f", "main", True, 4)
    names = [instruction.name for instruction in program.main.instructions]
    assert names == ["a", "zero", "start", "kernel", "loop", "result"]
    start, kernel, loop = (program.main.by_name[name] for name in ("start", "kernel", "loop"))
    assert start.operands == ("zero", "a") and [s.dtype for s in start.shapes] == ["s32", "f32"]
    assert kernel.op_name == "jit(f)/k" and kernel.attribute("custom_call_target") == '"k"'
    assert loop.called == {"condition": ("condition",), "body": ("body",)}
    product = program.computations["body"].by_name["y"]
    assert product.backend_config["window_config"]["estimated_cycles"] == "70"
    assert product.op_name == "jit(f)/while/body/mul"
    assert program.main.root.name == "result"


def test_a_loop_counts_its_passes_by_the_constant_of_its_condition():
    program = parse_program(LOOP)
    assert program.trip_count(program.main.by_name["loop"]) == 23
    times = {executed.instruction.name: executed.times for executed in program.walk()}
    assert (times["kernel"], times["y"]) == (1, 23)


@pytest.mark.parametrize(
    "change",
    [("direction=LT", "direction=LE"), ("%n = s32[] constant(23)", "%n = s32[] add(%i, %i)")],
    ids=["another comparison", "no constant"],
)
def test_a_loop_whose_end_is_not_a_constant_has_no_count(change):
    program = parse_program(LOOP.replace(*change))
    loop = program.main.by_name["loop"]
    assert program.trip_count(loop) is None
    assert {e.instruction.name: e.times for e in program.walk(default_trips=16)}["y"] == 16


def test_a_shape_has_bytes_without_padding_and_its_memory():
    (array,) = parse_shapes("bf16[2,3,5]{2,1,0:T(8,128)(2,1)S(1)}")
    assert (array.dims, array.bytes, array.memory_space) == ((2, 3, 5), 60, 1)
    assert [s.bytes for s in parse_shapes("(f32[8]{0}, /*index=1*/s4[8]{0}, pred[])")] == [32, 4, 1]
    assert parse_shapes("f8e4m3fn[16]")[0].bytes == 16
    with pytest.raises(UnreadableProgram, match="q7"):
        assert parse_shapes("q7[2]")[0].bytes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("module", "HloModule"),
        (LOOP.replace("ENTRY ", ""), "ENTRY"),
        (LOOP.replace("tuple(%zero, %a)", "tuple(%zero"), "bracket"),
    ],
    ids=["no module", "no entry", "open bracket"],
)
def test_a_text_that_is_not_understood_is_refused(text, message):
    with pytest.raises(UnreadableProgram, match=message):
        parse_program(text)


@pytest.mark.parametrize("unroll", [False, True], ids=["scan", "unrolled"])
def test_a_program_of_this_jax_is_read_with_its_loop(unroll):
    def f(x, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w, unroll=unroll)[0]

    x, w = jnp.zeros((8, 16)), jnp.zeros((5, 16, 16))
    program = parse_program(jax.jit(f).lower(x, w).compile().as_text())
    trips = [program.trip_count(e.instruction) for e in program.walk() if e.instruction.opcode == "while"]
    assert trips == ([] if unroll else [5])
