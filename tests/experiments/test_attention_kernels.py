"""The experiment on attention kernels counts what it says it counts, and its report hides nothing."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.attention_kernels import aims, hardware, report, schedules
from experiments.attention_kernels.__main__ import AttentionKernels
from experiments.attention_kernels.correctness import Error
from experiments.attention_kernels.gpu_kernels import GpuKernel
from experiments.attention_kernels.lengths import Growth
from experiments.attention_kernels.schedules import OURS, SPLASH, Pass
from experiments.attention_kernels.subjects import GEMMA2_9B
from zoo.ahead_of_time import tpu
from zoo.ahead_of_time.tpu_bundles import KernelSchedule, Slots, Tile
from zoo.ahead_of_time.tpu_schedule import Measured
from zoo.errors import UserError


def make_pass(subject: str, mean: float, **changes) -> Pass:
    """A pass on v6e with invented figures."""
    made = Pass(
        subject=subject,
        target="v6e",
        shape="9B",
        logits_soft_cap=50.0,
        backward=False,
        interior=mean - 20,
        masked=mean + 50,
        mean=mean,
        spill_stores=100,
        matrix_use=(0.5,),
        peak=0.5,
        naive=(4000,),
        trips=(1154,),
        expected_trips=(1154,),
        heads_per_tile=2,
        cores=1,
    )
    return replace(made, **changes)


def make_growth(**changes) -> Growth:
    made = Growth(
        OURS, "v6e", "9B", (100, 400, 1600), (1, 4, 16), ((1154, 4610, 18_434),), (1.0, 5.0, 20.0), (1, 5, 20)
    )
    return replace(made, **changes)


def make_results(passes: list[Pass], growths: list[Growth]) -> report.Results:
    return report.Results(
        date="2026-11-25",
        command="python -m experiments.attention_kernels",
        machine={"processor": "one"},
        errors=[Error("pallas_tpu", "float64", None, 1e-16, 1e-15, 1e-12, 1e-12)],
        passes=passes,
        growths=growths,
        aims=aims.schedule_aims(passes) + aims.growth_aims(growths),
    )


def slots(bundles: int, matrix: int = 0) -> Slots:
    return Slots(bundles, matrix, 0, 0, 0, 0, 0, bundles // 10, 0, 0)


def test_a_row_of_the_band_has_seven_interior_tiles_and_two_with_a_mask():
    assert schedules.row_classes(4096) == (7, 2)
    # One key more reaches into a tenth block, in which no query of the row sees every key.
    assert schedules.row_classes(4097) == (7, 2)
    assert schedules.row_classes(4098) == (7, 3)
    assert schedules.row_classes(512) == (0, 2)


def test_trips_follow_the_band():
    assert schedules.expected_trips(8192, 8, 1) == 8 * 16 * 9 + 2
    assert schedules.expected_trips(131_072, 8, 2) == 8 * 256 * 9 // 2 + 2
    assert schedules.growth([1154, 18_434]) == 16.0


def test_declared_work_is_that_of_the_tiles_on_the_band():
    tiles = 16 * 9 - 36  # the first eight rows of tiles are shorter, by 8, 7, ... 1
    assert schedules.declared_flops("9B", 8192, False) == 4 * 256 * 16 * tiles * 512 * 512


def test_figures_per_tile_are_those_of_one_head_and_one_512_by_512_tile():
    kernel = KernelSchedule(
        name="local_attention_forward",
        trips=1154,
        one_core=False,
        total=slots(5000),
        matrix_units=2,
        overhead=slots(200),
        initialize=slots(90),
        tiles=(Tile(slots(1400, 1000), 1000), Tile(slots(1900, 1000), 1000)),
        finalize=slots(450),
    )
    compiled = schedules.case(OURS, "v6e", "9B", 8192, 50.0, False)
    found = schedules.summarize(OURS, compiled, Measured((kernel,), 0, {}), backward=False)
    assert found.heads_per_tile == 2 and found.trips == found.expected_trips
    assert (found.interior, found.masked) == (800, 1050)
    assert found.mean == pytest.approx((90 + 450 + 7 * 1600 + 2 * 2100) / 9 / 2)
    assert found.matrix_use == (0.5,)
    assert found.peak == pytest.approx(4 * 256 * 512 * 512 / 524_288 / found.mean)


def test_an_idle_core_doubles_what_a_device_needs():
    one = make_pass(SPLASH, 3000, target="v5p", cores=1)
    assert (one.device_bundles, replace(one, cores=2).device_bundles) == (6000, 3000)
    assert make_pass(OURS, 3000).device_bundles == 3000


def test_a_slower_kernel_more_spills_and_other_trips_are_found_out():
    passes = [make_pass(OURS, 900), make_pass(SPLASH, 1500)]
    assert all(aim.reached for aim in aims.schedule_aims(passes))
    for worse in ({"mean": 1200.0}, {"spill_stores": 101}, {"trips": (1155,)}):
        assert [aim.reached for aim in aims.schedule_aims([replace(passes[0], **worse), passes[1]])].count(False) == 1


def test_memory_trips_and_cost_that_grow_otherwise_are_found_out():
    assert all(aim.reached for aim in aims.growth_aims([make_growth()]))
    for worse in (
        {"temporary_bytes": (100, 400, 6400)},
        {"trips": ((1154, 4610, 32_770),)},
        {"declared": (1.0, 5.0, 64.0)},
    ):
        assert [aim.reached for aim in aims.growth_aims([make_growth(**worse)])].count(False) == 1


def test_a_gpu_kernel_that_spills_or_does_not_compile_is_found_out():
    good = GpuKernel("pallas_gpu", "H200", "9B", "forward", 240, 0, 1000, 2000)
    assert aims.gpu_aims([good])[0].reached
    assert not aims.gpu_aims([good, replace(good, spill_stores=8)])[0].reached
    assert not aims.gpu_aims([good, replace(good, kernel="", failure="too much shared memory")])[0].reached


def test_the_report_names_what_falls_short_and_what_was_not_measured():
    text = report.write_report(
        make_results([make_pass(OURS, 1400), make_pass(SPLASH, 1500)], [make_growth()]), ["a.png"]
    )
    assert "v6e, forward: bundles per tile / splash: 0.93, aim at most 0.75" in text
    assert "Not measured on hardware" in text and "![a.png](a.png)" in text
    good = make_results([make_pass(OURS, 900), make_pass(SPLASH, 1500)], [make_growth()])
    assert "Nothing: all aims" in report.write_report(good, [])
    json.dumps(report.as_json(good))


def test_useful_pairs_of_a_window_are_counted_once():
    setting = hardware.Setting(GEMMA2_9B, 6, 3, None, False)
    pairs = sum(min(i + 1, 3) for i in range(6))
    assert setting.flops == 4 * 256 * 16 * pairs
    assert replace(setting, backward=True).flops == 10 * 256 * 16 * pairs
    assert replace(setting, sliding_window=100).flops == 4 * 256 * 16 * 21


def test_the_script_for_gpus_runs_everywhere_and_lists_who_fails(monkeypatch):
    (setting, _) = hardware.settings(tiny=True)

    def fail(*_):
        raise NotImplementedError("no soft-cap")

    wanted = hardware.contestants(setting) | {"somebody else": fail}
    monkeypatch.setattr(hardware, "contestants", lambda _: wanted)
    times = {t.implementation: t for t in hardware.measure(setting, 1, lambda _: None)}
    assert times["somebody else"].failure == "NotImplementedError: no soft-cap"
    assert times["somebody else"].seconds is None
    for name in ("zoo triton", "zoo xla"):
        assert times[name].seconds is not None and times[name].seconds > 0
        assert times[name].error is not None and 0 < times[name].error < 0.02


def test_an_error_in_the_result_is_seen():
    setting = replace(hardware.settings(tiny=True)[0], length=64, sliding_window=16)
    arrays = hardware._arrays(setting)
    (expected,) = hardware._expected(setting, arrays)
    assert hardware._error(expected, expected) == 0
    assert hardware._error(expected * 1.5, expected) == pytest.approx(0.5)


WITHOUT_LIBTPU = """
import runpy
from zoo.ahead_of_time import tpu
tpu.find_spec = lambda name: None
runpy.run_module("experiments.attention_kernels", run_name="__main__")
"""


def run_without_libtpu(repository: Path, *arguments: str) -> subprocess.CompletedProcess:
    """The command on a machine without the compiler for TPUs."""
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_LIBTPU, *arguments], cwd=repository, capture_output=True, text=True, timeout=300
    )


def test_a_full_run_without_libtpu_says_in_one_line_what_to_install(run_module, monkeypatch, tmp_path):
    monkeypatch.setattr(tpu, "find_spec", lambda name: None)
    code, _, errors = run_module("experiments.attention_kernels", "--out", tmp_path)
    assert code == 2
    assert len(errors.strip().splitlines()) == 1 and "pip install libtpu" in errors


def test_no_rounds_is_wrong():
    with pytest.raises(UserError, match="rounds"):
        AttentionKernels(rounds=0)


@pytest.mark.slow
def test_the_quick_run_works_without_libtpu(repository: Path, tmp_path):
    done = run_without_libtpu(repository, "--quick", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "libtpu is not installed" in done.stdout and "Not measured on hardware" in done.stdout
    assert json.loads((tmp_path / "results.json").read_text())["errors"]
