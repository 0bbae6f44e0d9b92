"""The runner of long-context recall: its grid, its cells, what it predicts and what it says about them."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.long_context_recall import cells, findings, heat_map, prediction, report
from experiments.long_context_recall.cells import CellResult, SampleResult, Subject
from experiments.long_context_recall.grid import Cell, grid, whole_numbers
from experiments.long_context_recall.prediction import Timing
from experiments.long_context_recall.progress import Progress
from experiments.long_context_recall.quick_model import quick_model
from zoo.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]
TIMING = Timing(length=8192, chunk=1024, first_chunk=1.0, last_chunk=3.0, answer=0.5, compilation=10.0)


@pytest.fixture(scope="module")
def subject() -> Subject:
    model, tokenizer, hay = quick_model()
    return Subject(model, tokenizer, hay, chunk=128)


def sample_result(score: float, rank: int | None = 0, number: int = 0) -> SampleResult:
    return SampleResult(number, score, rank, 16, "7", " 7", 100, 1.0, 0.5, {"depth": 50.0})


def cell_result(task: str, length: int, depth: float | None, *scores: float) -> CellResult:
    return CellResult(Cell(task, length, depth), tuple(sample_result(score) for score in scores))


def test_the_grid_has_every_task_length_and_depth_and_begins_with_the_short_ones():
    found = grid(["needle", "ruler-vt", "video"], [2048, 1024], [16], depths=3)
    assert [cell.name for cell in found] == [
        "video-16-depth-0", "video-16-depth-50", "video-16-depth-100",
        "needle-1024-depth-0", "needle-1024-depth-50", "needle-1024-depth-100", "ruler-vt-1024",
        "needle-2048-depth-0", "needle-2048-depth-50", "needle-2048-depth-100", "ruler-vt-2048",
    ]  # fmt: skip
    assert [cell.depth for cell in grid(["needle"], [64], [], depths=11)] == [10 * i for i in range(11)]


def test_a_grid_that_means_nothing_is_refused():
    with pytest.raises(UserError, match="no task 'nedle'"):
        grid(["nedle"], [1024], [], 1)
    with pytest.raises(UserError, match="--depths must be at least 1, got 0"):
        grid(["needle"], [1024], [], 0)
    with pytest.raises(UserError, match="length must be at least 1, got 0"):
        grid(["needle"], [0], [], 1)
    with pytest.raises(UserError, match="--lengths must be whole numbers .* got '1k'"):
        whole_numbers("1k", "--lengths")


def test_wilsons_interval_is_that_of_the_textbook():
    recall = findings.wilson([1.0] * 8 + [0.0] * 2)
    assert (round(recall.low, 4), round(recall.high, 4)) == (0.4902, 0.9433)  # 8 of 10
    assert findings.wilson([1.0] * 55).low == pytest.approx(55 / (55 + 1.959964**2))
    assert findings.wilson([0.0]).low == 0 and findings.wilson([1.0]).high == 1


def test_a_cell_that_was_written_is_read_back_and_one_that_is_missing_is_none(tmp_path):
    result = cell_result("needle", 1024, 10.0, 1.0, 0.0)
    path = cells.write_cell(result, tmp_path)
    assert path.name == "needle-1024-depth-10.json" and list(tmp_path.iterdir()) == [path]
    assert cells.read_cell(tmp_path, result.cell) == result
    assert cells.read_cell(tmp_path, Cell("needle", 1024, 20.0)) is None


def test_a_folder_refuses_cells_of_another_checkpoint_text_or_number_of_samples(subject, tmp_path):
    setting = cells.setting_of(subject, "a", samples=5)
    cells.check_setting(tmp_path, setting)
    cells.check_setting(tmp_path, {**setting, "checkpoint": "the same weights elsewhere"})
    for name in ("weights", "haystack", "samples", "cache dtype", "seed"):
        with pytest.raises(UserError, match=f"cells of another {name}"):
            cells.check_setting(tmp_path, {**setting, name: "other"})


def test_a_model_that_writes_the_answer_has_full_recall_and_its_prompt_is_read_once(subject, tmp_path, monkeypatch):
    reads, cell = [], Cell("needle", 512, 50.0)
    right = subject.sample(cell, 3, tmp_path)

    class Read:
        logits = np.zeros((1, 4))

    def read(model, tokens, mask, *, chunk, room, cache_dtype, on_chunk, media):
        assert media is None
        reads.append(tokens[0][mask[0] == 1])
        assert tokens.shape[1] % chunk == 0 and room >= right.max_new_tokens - 1
        return Read()

    def write(model, read, *, max_new_tokens, stop_tokens):
        return np.array([[*subject.tokenizer.encode(right.answer), subject.tokenizer.eos_id, 9, 9]])

    def rank(model, read, answers):
        return np.array([0.0, *[-1.0] * (len(answers) - 1)])

    monkeypatch.setattr(cells, "prefill_in_chunks", read)
    monkeypatch.setattr(cells, "generate_after", write)
    monkeypatch.setattr(cells, "continuation_log_probabilities", rank)
    found = cells.examine_text(subject, right, tmp_path, lambda *_: None)
    assert (found.score, found.rank, found.candidates) == (1.0, 0, 16)
    np.testing.assert_array_equal(reads, [right.prompt])
    assert found.output.strip() == right.references[0]


def test_media_are_refused_for_a_model_of_texts(subject, tmp_path):
    with pytest.raises(UserError, match="not trained on media"):
        subject.sample(Cell("video", 8, 0.0), 0, tmp_path)


def test_the_cache_of_local_layers_does_not_grow_with_the_length(subject):
    short, long = (prediction.memory_of(subject, length) for length in (1024, 131_072))
    assert short.local_cache == long.local_cache > 0
    assert long.global_cache / short.global_cache == pytest.approx(128, rel=0.02)
    # one layer, one head: keys and values of 32 numbers and a position for each slot
    assert long.global_cache == (131_072 + 16) * (2 * 32 * 4 + 4) + 4
    halved = prediction.memory_of(dataclasses.replace(subject, cache_dtype="bfloat16"), 131_072)
    assert halved.global_cache == (131_072 + 16) * (2 * 32 * 2 + 4) + 4


def test_a_cache_in_8_bits_is_predicted_to_the_byte_and_makes_the_sum_smaller(subject):
    coded = dataclasses.replace(subject, cache_dtype="int8")
    predicted = prediction.memory_of(coded, 131_072)
    # two codes of 32 numbers, two float32 scales and a position for each slot
    assert predicted.global_cache == (131_072 + 16) * (2 * 32 + 2 * 4 + 4) + 4
    assert predicted.local_cache == 64 * (2 * 32 + 2 * 4 + 4) + 4
    small = prediction.memory_of(coded, 1024)
    made = jax.tree.leaves(subject.model.init_cache(1, 1024 + 16, "int8"))
    assert small.local_cache + small.global_cache == sum(x.nbytes for x in made)
    assert predicted.chunk < prediction.memory_of(dataclasses.replace(subject, cache_dtype="bfloat16"), 131_072).chunk
    assert predicted.total < prediction.memory_of(subject, 131_072).total


def test_a_length_that_does_not_fit_is_refused_before_anything_starts(subject):
    need = prediction.memory_of(subject, 131_072)
    prediction.check_memory([need], need.total)
    with pytest.raises(UserError, match="a length of 131072 tokens needs about .* GiB are allowed"):
        prediction.check_memory([need], need.total - 1)


def test_the_predicted_time_is_the_sum_of_chunks_that_take_longer_one_by_one():
    assert TIMING.prefill(8192) == pytest.approx(8 * 2.0)
    assert TIMING.prefill(4096) == pytest.approx(4 * 1.5)
    pair = [Cell("needle", 4096, 0.0), Cell("needle", 4096, 100.0), Cell("video", 8, 0.0)]
    assert prediction.seconds_of(TIMING, pair, samples=2) == [10 + 2 * 6.5, 2 * 6.5, 0]


def test_the_matrix_of_the_picture_has_depths_as_rows_and_leaves_out_what_is_not_done():
    done = [cell_result("needle", 1024, 0.0, 1.0, 1.0), cell_result("needle", 2048, 100.0, 1.0, 0.0)]
    values = heat_map.matrix(done, heat_map.lengths_of(done), heat_map.depths_of(done), "written")
    np.testing.assert_array_equal(values, [[1, math.nan], [math.nan, 0.5]])
    assert [heat_map.number(value) for value in (0.0, 0.5, 0.998, 1.0)] == ["0", "50", "99", "100"]


def test_the_table_has_every_length_and_the_whole_grid_with_its_worst_depth():
    done = [cell_result("needle", n, d, 1.0, float(d != 50)) for n in (1024, 2048) for d in (0.0, 50.0)]
    rows = report.recall_rows(done)
    assert [row[1] for row in rows[1:]] == ["1,024", "2,048", "all"]
    assert rows[-1][2:4] == ["4", "8"] and rows[-1][4].startswith("75.0%") and rows[-1][5] == "50: 50%"


def test_progress_is_told_in_parts_of_the_predicted_time(capsys):
    progress = Progress(20.0)
    progress.show("cell 1", 5.0)  # no terminal: nothing
    progress.finish("cell 1", 10.0)
    assert capsys.readouterr().err.startswith(" 50% cell 1, ")


@pytest.mark.slow
def test_the_picture_is_drawn_for_tasks_with_and_without_depths(tmp_path):
    done = [cell_result("needle", n, d, d / 100) for n in (1024, 2048) for d in (0.0, 50.0, 100.0)]
    heat_map.draw([*done, cell_result("ruler-vt", 1024, None, 0.4)], "a title", tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_cell_runs_and_the_timed_chunks_are_of_the_same_programs(subject, tmp_path):
    timing = prediction.time_chunks(subject, 512)
    assert timing.chunk == 128 and timing.length == 512 and 0 < timing.first_chunk <= timing.last_chunk
    seen = []
    result = cells.run_cell(subject, Cell("needle", 512, 50.0), 2, tmp_path, lambda *at: seen.append(at))
    assert [sample.number for sample in result.samples] == [0, 1] and seen[-1] == (1, 512, 512)
    assert all(0 <= sample.rank < 16 for sample in result.samples)


@pytest.mark.slow
def test_the_command_goes_on_where_it_was_stopped(tmp_path):
    command = [sys.executable, "-m", "experiments.long_context_recall", "--quick", "--out", str(tmp_path / "out")]
    run = lambda: subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)  # noqa: E731
    run()
    stopped = tmp_path / "out" / "cells" / "needle-1024-depth-50.json"
    before = json.loads(stopped.read_text())
    stopped.unlink()
    assert "cell 1 of 1, needle-1024-depth-50" in run().stderr
    after = json.loads(stopped.read_text())
    assert [sample["output"] for sample in after["samples"]] == [sample["output"] for sample in before["samples"]]
