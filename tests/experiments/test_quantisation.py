"""The experiment on packed weights says what its runs say; its sizes are those of the files that are written."""

import dataclasses
import json
from dataclasses import asdict, replace

import jax
import numpy as np
import pytest

from experiments.quantisation import findings, kinds, programs, report, sizes
from experiments.quantisation.__main__ import check_setting
from experiments.quantisation.seed import Score, SeedResult, read_result, write_result
from zoo.errors import UserError
from zoo.inference.model import take_apart
from zoo.interop import Packing, packed_bytes
from zoo.interop.safetensors_writer import TensorToWrite, write_folder

TINY = dataclasses.replace(
    kinds.model_of(kinds.QUICK), vocab_size=64, embed_dim=32, num_layers=1, num_heads=1, hidden_dim=64
)


def seeds(*, int4=(101.0, 102.0, 100.5), bytes_on_disk=1010) -> list[SeedResult]:
    """Three models whose bfloat16 weights have a perplexity of 100, 101 and 99.5."""
    found = []
    for number, (ours, theirs) in enumerate(zip(int4, (100.0, 101.0, 99.5), strict=True)):
        scores = {
            kinds.FLOAT32: Score(theirs, 2.0, 7200, None),
            kinds.BFLOAT16: Score(theirs, 2.0, 3600, None),
            kinds.INT8: Score(theirs * 1.0001, 2.0, 1910, 1900),
            kinds.INT4: Score(ours, 2.1, bytes_on_disk, 1000),
        }
        found.append(SeedResult(number, 5000, 60.0, scores))
    return found


SIZES = [sizes.Size("gemini-nano-1", kinds.INT4, 1800, 1000, 1)]
MEMORY = [programs.Memory("gemini-nano-1", kinds.INT4, 1800, 1000, 10, 5)]


def results(**changes) -> report.Results:
    speed = [programs.Speed(kind, (10.0, 12.0), (1.0, 1.1)) for kind in (kinds.FLOAT32, kinds.INT4)]
    made = report.Results(
        "2026-11-26", "command", {"processor": "one"}, "text", kinds.FULL, seeds(), SIZES, MEMORY, speed
    )
    return replace(made, **changes)


def reached(**changes) -> list[bool]:
    found = results(**changes)
    return [aim.reached for aim in findings.aims(found.seeds, found.sizes, found.memory)]


def test_an_increase_is_that_of_each_model_against_itself():
    found = findings.increase(seeds(), kinds.INT4)
    each = [100 * (ours / theirs - 1) for ours, theirs in ((101, 100), (102, 101), (100.5, 99.5))]
    assert found.mean == pytest.approx(np.mean(each)) and found.half < 0.05
    assert findings.percent(found) == "+1.00 % ± 0.02"
    assert findings.percent(findings.increase(seeds()[:1], kinds.INT4)) == "+1.00 % (one seed)"


def test_goals_are_missed_where_they_are_missed():
    assert reached() == [True] * 5
    assert reached(seeds=seeds(bytes_on_disk=1021)) == [False, True, True, True, True]
    assert reached(sizes=[replace(SIZES[0], header=21)]) == [True, False, True, True, True]
    # The mean is below two percent, the interval is not.
    assert reached(seeds=seeds(int4=(101.0, 104.0, 100.5))) == [True, True, True, False, True]
    assert reached(memory=[replace(MEMORY[0], temporary_bytes=1000)]) == [True, True, True, True, False]


def test_the_report_says_what_falls_short():
    assert "Nothing of the aims" in report.write_report(results(), "a.png")
    short = results(memory=[replace(MEMORY[0], temporary_bytes=1000)])
    text = report.write_report(short, "a.png")
    assert "* temporaries of decoding, gemini-nano-1 (worst: int4): 27.78%" in text and "![a.png](a.png)" in text
    json.dumps(asdict(short))


def test_the_report_says_which_differences_can_be_told_from_none():
    def with_kind(factors):
        return [
            replace(each, scores=each.scores | {kinds.NO_SEARCH: replace(score, perplexity=score.perplexity * factor)})
            for each, factor in zip(seeds(), factors, strict=True)
            for score in [each.scores[kinds.INT4]]
        ]

    text = report.write_report(results(seeds=with_kind((1.02, 1.03, 1.025))), "a.png")
    assert "* int4, no search: +2.50 % ± 1.24, larger than its interval." in text
    text = report.write_report(results(seeds=with_kind((1.0, 1.03, 0.98))), "a.png")
    assert "* int4, no search: +0.33 % ± 6.25, which cannot be told from none." in text


def test_a_result_comes_back_from_its_file_and_a_folder_of_other_sizes_is_refused(tmp_path):
    write_result(seeds()[0], tmp_path / "seed.json")
    assert read_result(tmp_path / "seed.json") == seeds()[0]
    check_setting(tmp_path, kinds.QUICK)
    check_setting(tmp_path, kinds.QUICK)
    with pytest.raises(UserError, match="seeds of another workload"):
        check_setting(tmp_path, kinds.FULL)


def test_seeds_differ_in_their_seed_only():
    first, second = (asdict(kinds.recipe_of(seed, kinds.FULL, None, "x")) for seed in (0, 1))
    assert {key for key in first if first[key] != second[key]} == {"name", "seed", "data"}
    assert first["data"] | {"seed": 1} == second["data"]


@pytest.mark.parametrize("workload", [kinds.FULL, kinds.QUICK])
def test_every_group_divides_what_a_product_contracts(workload):
    config = kinds.model_of(workload)
    contracted = (config.embed_dim, config.hidden_dim, config.num_heads * config.head_dim)
    assert all(width % kinds.PACKINGS[kind].group == 0 for kind in workload.kinds for width in contracted)


def test_header_and_abstract_model_are_those_of_the_files(tmp_path):
    packing = Packing(4, embedding_bits=8)
    entries = sizes.packed_tensors(TINY, packing)
    tensors = [TensorToWrite(name, shape, dtype) for name, shape, dtype in entries]
    shapes = {tensor.name: tensor for tensor in tensors}
    (file,) = write_folder(tmp_path, tensors, lambda name: np.zeros(shapes[name].shape, shapes[name].dtype), 2**30)
    assert file.stat().st_size == packed_bytes(TINY, packing) + sizes.header_bytes(TINY, packing)
    _, arrays = take_apart(programs.abstract_packed_model(TINY, packing, kinds.EXECUTION))
    assert all(isinstance(array, jax.ShapeDtypeStruct) for array in arrays)
    assert sum(array.size * array.dtype.itemsize for array in arrays) == packed_bytes(TINY, packing)
