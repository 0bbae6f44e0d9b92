"""Continual multilingual learning: arms at equal mean loss, aims, tables and pictures, on made-up numbers."""

import dataclasses
import json

import pytest

from experiments.continual_multilingual.__main__ import main
from experiments.continual_multilingual.aims import aims
from experiments.continual_multilingual.arms import FULL, LAFT, LAFT_RANDOM, Run
from experiments.continual_multilingual.choice import Choice
from experiments.continual_multilingual.cost import Cost, bytes_of
from experiments.continual_multilingual.equal_loss import Point, common_loss, compare, curve, improved_at
from experiments.continual_multilingual.findings import paired, summary
from experiments.continual_multilingual.pictures import draw_all, points
from experiments.continual_multilingual.report import as_json, tables, write_report
from experiments.continual_multilingual.sizes import TAGGING, quick_family
from experiments.continual_multilingual.study import Part, RunResult
from experiments.continual_multilingual.updates import Stage0, Update
from experiments.interval import interval
from zoo.errors import UserError

STAGE0 = Stage0((0.5,), 10, 1.0, 1.0, 100)
GROUPS = ["updated", "related", "other", "other"]
BEFORE = dict.fromkeys(("aa", "ab", "ba", "bb"), 0.5)
FULL_PARTS = {"0.5": (10, -2, -2, 0), "1": (20, 10, -6, -6)}  # (mean loss, improved): (2, 25), (6, 50)
LAFT_PARTS = {"0.5": (5, 0, 0, -1), "1": (10, 2, 2, -4)}  # (1, 25), (4, 75)


def update(name, parts, error=0.011):
    after = {part: tuple(0.5 * (1 + change / 100) for change in changes) for part, changes in parts.items()}
    return Update((name,), 0.01, 0.0, 10, 100, 0.5, 0.6, after, (error,) * 4, 1.0)


def made_up(updates, seeds=(0,), costs=()):
    """A family whose runs are {arm: {update: parts of the change}}."""
    runs = [
        RunResult(Run(arm, seed), STAGE0, BEFORE, tuple(update(name, parts) for name, parts in own.items()), 60.0)
        for arm, own in updates.items()
        for seed in seeds
    ]
    names = dict.fromkeys(name for own in updates.values() for name in own)
    return Part(
        family=dataclasses.replace(quick_family(TAGGING), languages=tuple(BEFORE)),
        groups=dict.fromkeys(names, GROUPS),
        nearest=dict.fromkeys(names, [0.0, 0.1, 0.5, 0.6]),
        covered=1.0,
        rows={},
        choice=Choice({"full": 0.01}, {}, (("full", 0.01, 0.1),), 30.0),
        costs=list(costs),
        runs=runs,
        missing=[],
    )


def test_points_of_a_curve_are_means_over_seeds_from_the_smallest_part_on():
    part = made_up({FULL: {"aa": FULL_PARTS}}, seeds=(0, 1))
    found = [(point.part, point.loss, point.improved) for point in curve(part, FULL, "aa", {0, 1})]
    assert found == [pytest.approx(one) for one in ((0.5, 2, 25), (1, 6, 50))]


def test_arms_are_compared_on_lines_at_the_largest_loss_that_both_have():
    full, laft = [Point(0.5, 2, 25), Point(1, 6, 50)], [Point(0.5, 1, 25), Point(1, 4, 75)]
    assert common_loss(laft, full) == common_loss(full, laft) == 4
    assert improved_at(full, 4) == 37.5 and improved_at(laft, 4) == 75
    assert improved_at(full, 2) == 25 and improved_at(full, 6) == 50
    with pytest.raises(ValueError, match="is not between"):
        improved_at(full, 1.9)


def test_of_several_parts_with_a_loss_the_largest_counts():
    found = [Point(0.25, 1, 0), Point(0.5, 3, 10), Point(0.75, 2, 20), Point(1, 4, 40)]
    assert improved_at(found, 2.5) == 25
    assert improved_at([Point(0.5, 2, 10), Point(1, 2, 30)], 2) == 30
    assert improved_at([Point(1, 2, 30)], 2) == 30


def test_losses_that_only_one_arm_has_are_not_compared_at():
    assert common_loss([Point(0.5, 0, 10), Point(1, 1, 20)], [Point(0.5, 2, 25), Point(1, 6, 50)]) is None
    small = {"0.5": (5, 5, 0, 0), "1": (10, 2, 2, -1)}
    part = made_up({FULL: {"aa": FULL_PARTS, "ba": FULL_PARTS}, LAFT: {"aa": LAFT_PARTS, "ba": small}})
    found = compare(part, LAFT, FULL)
    assert found is not None and found.losses == pytest.approx({"aa": 4})
    assert found.apart == {"ba": (pytest.approx((0, 1)), pytest.approx((2, 6)))}
    assert found.difference is not None and (found.difference.mean, found.difference.count) == (pytest.approx(37.5), 1)
    none = compare(made_up({FULL: {"ba": FULL_PARTS}, LAFT: {"ba": small}}), LAFT, FULL)
    assert none is not None and none.difference is none.improved is None
    assert compare(part, LAFT, LAFT_RANDOM) is None


def test_the_difference_has_students_interval_over_updates():
    # In the second update full fine-tuning has (4, 50) with half of its change: 25 points less than LAFT.
    other = {"0.5": (10, 10, -4, -4), "1": (20, 10, -6, -6)}
    part = made_up({FULL: {"aa": FULL_PARTS, "ba": other}, LAFT: {"aa": LAFT_PARTS, "ba": LAFT_PARTS}}, seeds=(0, 1, 2))
    found, wanted = compare(part, LAFT, FULL), interval([37.5, 25.0])
    assert found is not None and found.difference is not None
    assert (found.difference.mean, found.difference.half) == pytest.approx((wanted.mean, wanted.half))


def test_clear_changes_are_beyond_two_standard_errors():
    # An error of 0.011 is 2.2 % of a score of 0.5: changes of more than 4.4 % are clear.
    found = summary(made_up({FULL: {"aa": FULL_PARTS}}), FULL)
    assert found["improved clearly"].mean == 50 and found["others clearly worse"].mean == pytest.approx(200 / 3)
    found = summary(made_up({LAFT: {"aa": LAFT_PARTS}}), LAFT)
    assert found["improved"].mean == 75 and found["improved clearly"].mean == 25
    assert found["others clearly worse"].mean == 0


def eight(parts):
    return {f"{number}": parts for number in range(8)}


def costs(faster):
    return [Cost(kind, 10, bytes_of(10), 5.0, faster) for kind in ("bottleneck", "lora")]


def test_aims_are_met_only_where_whole_intervals_are_on_their_side():
    good = made_up(
        {FULL: eight(FULL_PARTS), LAFT: eight(LAFT_PARTS), LAFT_RANDOM: eight(FULL_PARTS)}, (0, 1, 2), costs(1.3)
    )
    found = {aim.what.removeprefix("tagging: "): aim for aim in aims([good, good])}
    assert found["full fine-tuning"].reached and "aggregate +4.5" in found["full fine-tuning"].measured
    for other in (FULL, LAFT_RANDOM):
        aim = found[f"languages improved at equal mean loss, laft - {other}"]
        assert aim.reached and aim.measured == "+37.5 ± 0.0 points (75.0 % against 37.5 %), 8 of 8 updates"
    assert found["languages improved, laft - full"].measured == "+25.0 ± 0.0 points"
    assert (
        found["mean loss, laft by full"].measured.startswith("-33 %; -2.0") and found["mean loss, laft by full"].reached
    )
    assert found["step of lora"].reached and found["optimizer state of adapter"].measured == "84 bytes"
    assert found["processor time of all runs"].measured == "10 minutes"  # 9 runs of one, and the choice
    assert not found["seeds x updates of each arm"].reached  # most arms have none
    bad = made_up({FULL: eight(LAFT_PARTS), LAFT: eight(FULL_PARTS)}, costs=costs(1.1))
    reached = {aim.what: aim.reached for aim in aims([bad])}
    assert not any(one for what, one in reached.items() if "laft" in what or "step" in what)
    assert not reached["families with the starting phenomenon"]


def test_no_aim_is_met_by_one_update():
    part = made_up({FULL: {"aa": FULL_PARTS}, LAFT: {"aa": LAFT_PARTS}})
    assert not any(aim.reached for aim in aims([part]) if "laft" in aim.what or "full" in aim.what)


def test_pairs_take_the_seeds_that_both_have():
    part = made_up({FULL: {"aa": FULL_PARTS}}, seeds=(0, 1))
    part.runs.append(RunResult(Run(LAFT, 1), STAGE0, BEFORE, (update("aa", LAFT_PARTS),), 1.0))
    found = paired(part, LAFT, FULL, "improved")
    assert found is not None and (found.mean, found.count) == (25, 1)
    assert paired(part, LAFT, LAFT_RANDOM, "improved") is None


def test_the_page_has_tables_pictures_and_what_falls_short(tmp_path):
    part = made_up({FULL: eight(FULL_PARTS), LAFT: eight(LAFT_PARTS)}, costs=costs(1.3))
    names = draw_all([part], tmp_path, "page")
    assert names == ["page-tagging-distance.png", "page-tagging-parts.png"]
    assert all((tmp_path / name).stat().st_size > 10_000 for name in names)
    text = write_report([part], names, {})
    for title, _ in tables([part]):
        assert f"## {title}" in text
    for shown in ("## What falls short", "| laft, full | 8 of 8 |", "(page-tagging-parts.png)", "paper +25 points"):
        assert shown in text
    json.dumps(as_json([part]), allow_nan=False)
    x, y, updated = points(part, LAFT)
    assert x[:4].tolist() == [0.0, 0.1, 0.5, 0.6] and y[:4].tolist() == pytest.approx([10, 2, 2, -4])
    assert updated[:4].tolist() == [True, False, False, False]


def command(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["continual_multilingual", *map(str, words)])
    main()


def test_what_cannot_be_asked_for_is_one_line(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="leave --report out"):
        command(monkeypatch, "--quick", "--report", tmp_path / "page.md")
    with pytest.raises(UserError, match="--family: 'tagged' is unknown; .*tagging"):
        command(monkeypatch, "--family", "tagged")
    with pytest.raises(UserError, match="has no result of these arms and seeds: leave --only-report out"):
        command(monkeypatch, "--quick", "--only-report", "--out", tmp_path)
