"""Compiling for TPUs that are not there, and the reader of their listings."""

import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from zoo.ahead_of_time import tpu
from zoo.ahead_of_time.tpu_bundles import DELAY_SLOTS, UnreadableSchedule, read_kernel

needs_libtpu = pytest.mark.skipif(
    not tpu.has_libtpu(), reason="libtpu is not installed (it comes with the extra `tpu`)"
)


def test_without_libtpu_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(tpu, "find_spec", lambda name: None)
    with pytest.raises(tpu.LibtpuMissing, match="pip install libtpu"):
        tpu.compile_for_tpu(lambda x: x, jax.ShapeDtypeStruct((8,), jnp.float32), target=tpu.V6E)


@pytest.mark.parametrize("target", [t for t in tpu.TARGETS.values() if t.clock_hz], ids=lambda t: t.name)
def test_the_peak_is_what_the_matrix_units_do_per_bundle_times_the_published_clock(target):
    assert math.isclose(target.bundles_per_second, target.clock_hz, rel_tol=0.01)


@needs_libtpu
@pytest.mark.parametrize("target", tpu.TARGETS.values(), ids=lambda t: t.name)
def test_a_program_compiles_for_a_chip_that_is_not_there(target):
    x = jax.ShapeDtypeStruct((256, 512), jnp.bfloat16)
    compiled = tpu.compile_for_tpu(lambda a, b: a @ b.T, x, x, target=target)
    assert compiled.cost_analysis()["flops"] == pytest.approx(2 * 256 * 256 * 512, rel=0.01)
    assert compiled.memory_analysis().argument_size_in_bytes == 2 * 256 * 512 * 2
    devices = tpu.tpu_devices(target)
    assert devices[0].platform == "tpu"
    assert devices[0].num_cores == (target.cores if target.megacore else 1)


@needs_libtpu
def test_a_program_of_many_chips_keeps_its_shardings():
    mesh = tpu.tpu_mesh(tpu.V5P, (4, 4), ("data", "model"), topology="v5p:2x2x4")
    x = jax.ShapeDtypeStruct((256, 512), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("data", "model")))
    compiled = tpu.compile_for_tpu(lambda a: a.sum(1), x, target=tpu.V5P, mesh=mesh)
    assert compiled.memory_analysis().argument_size_in_bytes == 4 * 256 * 512 // 16
    assert "all-reduce" in compiled.as_text()
    with pytest.raises(ValueError, match="17 devices"):
        tpu.tpu_mesh(tpu.V5P, (17,), ("data",), topology="v5p:2x2x4")


HEADER = (
    "== CAPACITY:\nMXU, XLU, VALU, VPOP, EUP, VLOAD, VLOAD:FILL, VSTORE, VSTORE:SPILL, SALU\n2 2 4 2 1 3 3 2 2 2\n==\n"
)


def listing(*, matrix_column: str = "MXU", inner_loop: str | None = None):
    """A made-up kernel in the compiler's notation: (bundles, slots).

    A loop of 6 passes whose body lies in a region (the pipeline's), with regions that start a row (3 bundles), compute
    an interior tile (5), a tile with a mask (7), and end a row (4). `inner_loop`: the exit test of a loop of 8 bundles
    that is put into the interior tile.
    """
    lines: list[str] = []
    rows: list[str] = []

    def add(text: str = "%1 = nop", *, label: str = "", matrix: int = 0, depth: int = 1):
        address = hex(len(lines)) if lines else "0"
        lines.append(f" {address} {label or '  '} : {'> ' * depth}{{ {text} }}")
        rows.append(f"{matrix} 0 0 0 0 0 0 0 0 0")

    def branch(text: str, depth: int = 1):
        add(text, depth=depth)
        for _ in range(DELAY_SLOTS):
            add(depth=depth)

    def region(number: int, text: str, count: int, matrix: int = 0):
        branch(f"%9 = sbr.rel (%p3) target = $region{number + 1}")
        add(f"{text} /* Start region {number} */", matrix=matrix)
        if matrix and inner_loop is not None and number == 20:
            add("%2 = loop /* Start region 200 */", label="LB", matrix=2, depth=2)
            add("%7 = vmatmul", matrix=2, depth=2)
            add(inner_loop, depth=2)
            branch("%9 = sbr.rel (!%p5) target = $region200", depth=2)
        for _ in range(count - 2):
            add(text, matrix=matrix)
        add(f"{text} /* End region {number} */", matrix=matrix)
        add("joins", label="PF")

    add("entry", depth=0)
    add("%2 = loop /* Start region 100 */", label="LB")
    branch("%9 = sbr.rel (%p3) target = $region61")
    add("first of the body /* Start region 60 */")
    region(10, "%4 = vst", 3)
    region(20, "%5 = vmatmul", 5, matrix=2)
    region(30, "%6 = vcmp.lt ;; %7 = vmatmul", 7, matrix=2)
    region(40, "%8 = vst", 4)
    add("last of the body /* End region 60 */")
    add("joins", label="PF")
    add("%p5 = scmp.ge.s32.totalorder %s1, 6 /* loop exit test */")
    branch("%9 = sbr.rel (!%p5) target = $region100")
    add("exit", depth=0)
    return "\n".join(lines), HEADER.replace("MXU", matrix_column) + "\n".join(rows)


@pytest.mark.parametrize("matrix_column", ["MXU", "MATMUL"])
def test_bundles_are_attributed_to_the_region_that_executes_them(matrix_column):
    text, slots = listing(matrix_column=matrix_column)
    kernel = read_kernel("made-up", text, slots)
    assert (kernel.trips, kernel.one_core) == (6, False)
    assert [tile.slots.bundles for tile in kernel.tiles] == [5, 7]
    assert (kernel.initialize.bundles, kernel.finalize.bundles) == (3, 4)
    assert kernel.total.bundles == len(text.splitlines())
    # All of the loop is counted once: regions, and what every step executes.
    assert kernel.overhead.bundles == kernel.total.bundles - 2 - (3 + 5 + 7 + 4)
    assert kernel.masked_step.bundles - kernel.interior_step.bundles == 2
    assert kernel.matrix_use == 1.0
    assert kernel.mean_step(7, 2) == pytest.approx(kernel.overhead.bundles + (3 + 4 + 7 * 5 + 2 * 7) / 9)


def test_a_loop_inside_a_tile_counts_as_often_as_it_runs():
    text, slots = listing(inner_loop="%p5 = scmp.ge.s32.totalorder %s1, 4 /* loop exit test */")
    kernel = read_kernel("made-up", text, slots)
    assert kernel.trips == 6
    assert sorted(tile.slots.bundles for tile in kernel.tiles) == [7, 5 + 4 * 8]
    with pytest.raises(UnreadableSchedule, match="no constant number of passes"):
        read_kernel("made-up", *listing(inner_loop="%p5 = scmp.ge.s32.totalorder %s1, %s2 /* loop exit test */"))


def test_products_that_no_branch_guards_are_the_tile_of_every_step():
    text, slots = listing()
    guarded = read_kernel("made-up", text, slots)
    for number in (21, 31):
        text = text.replace(f"%9 = sbr.rel (%p3) target = $region{number}", "%1 = nop")
    kernel = read_kernel("made-up", text, slots)
    assert (kernel.initialize.bundles, kernel.finalize.bundles) == (3, 4)
    assert [tile.slots.bundles for tile in kernel.tiles] == [guarded.overhead.bundles + 5 + 7]
    assert kernel.interior_step.bundles == guarded.overhead.bundles + 5 + 7


def test_a_listing_of_unknown_form_is_refused():
    text, slots = listing()
    with pytest.raises(UnreadableSchedule, match="no column MXU or MATMUL"):
        read_kernel("made-up", text, slots.replace("MXU", "TENSOR"))
    with pytest.raises(UnreadableSchedule, match="rows of slots"):
        read_kernel("made-up", text, slots + "\n0 0 0 0 0 0 0 0 0 0")
    with pytest.raises(UnreadableSchedule, match="its branch, region 61"):
        read_kernel("made-up", text.replace("End region 60", "End region 59"), slots)
    with pytest.raises(UnreadableSchedule, match="unknown form"):
        read_kernel("made-up", text.replace("sbr.rel (%p3) target = $region61", "sbr.abs (%p3) %s4"), slots)
