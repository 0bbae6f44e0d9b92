"""What studies share: signed results, choices of the command line, and the page."""

import json
from dataclasses import replace

import pytest

from experiments.aim import Aim
from experiments.choosing import choose, command_line, seeds_of
from experiments.kept import check_made_with, digest, read_fields, sign
from experiments.pages import aim_table, falls_short, publish, write_page
from experiments.training import train_to_the_end
from zoo.errors import TRY_AGAIN, UserError
from zoo.recipes import recipe
from zoo.training.metrics import last_step

AIMS = [Aim("speed", "2x", "3x", True), Aim("size", "1 MB", "2 MB", False)]


def test_digests_of_committed_results_stay_what_they_are():
    assert digest([{"a": 1}, "x", None, 0.5]) == "c1c0af1dc2bba4aa"


def test_a_signed_result_is_read_without_its_digest_and_refused_from_other_settings(tmp_path):
    unsigned, path = tmp_path / "unsigned.json", tmp_path / "run.json"
    unsigned.write_text(json.dumps({"loss": 1.5}))
    check_made_with(path, "this", "other sizes")  # nothing is there yet
    sign(unsigned, "this", path)
    assert read_fields(path) == {"loss": 1.5} and not unsigned.exists()
    check_made_with(path, "this", "other sizes")
    with pytest.raises(UserError, match="run.json was made with other sizes: remove it, or give another --results"):
        check_made_with(path, "that", "other sizes")
    path.write_text(json.dumps({"loss": 1.5}))
    with pytest.raises(UserError, match="was made with"):
        check_made_with(path, "this", "other sizes")


def test_choices_of_a_command_line():
    assert choose("two", {"one": 1, "two": 2}) == 2
    with pytest.raises(UserError, match="--family: 'twoo' is unknown.*two"):
        choose("twoo", {"one": 1, "two": 2}, "--family")
    assert seeds_of("0, 2") == (0, 2) and seeds_of("") == () and seeds_of("", range(3)) == (0, 1, 2)
    for text in ("1,1", "a", "1,,2", "-1"):
        with pytest.raises(UserError, match="--seeds: need different whole numbers"):
            seeds_of(text)


def test_a_command_in_a_report_can_be_pasted_and_has_no_path_of_this_machine():
    shown = command_line(
        "experiments.x", ["--arms", "gemma 2", "--out", "/some/where/deep/here", "--report", "docs/x.md"]
    )
    assert shown == "python -m experiments.x --arms 'gemma 2' --out deep/here --report docs/x.md"


def test_a_page_has_its_parts_in_order_and_says_what_falls_short():
    text = write_page(
        ["# Title"],
        missing=["run-1"],
        notes=["Quick."],
        tables=[aim_table(AIMS)],
        pictures=["a.png"],
        ending=falls_short(AIMS),
        machine={"processor": "one"},
    )
    shown = "| size | 1 MB | 2 MB | not reached |", "## What falls short", "* size: 2 MB, aim 1 MB."
    parts = ["# Title", "Not done yet: run-1.", "Quick.", "## Aims", *shown, "![a.png](a.png)", "## Machine"]
    assert [text.index(part) for part in parts] == sorted(text.index(part) for part in parts)
    assert falls_short(AIMS[:1])[1] == "Nothing of the aims."


def test_numbers_and_pictures_lie_beside_the_page(tmp_path, capsys):
    def draw(folder, stem):
        (folder / f"{stem}.png").write_bytes(b"")
        return [f"{stem}.png"]

    options = dict(tables=[aim_table(AIMS)], numbers={"x": 1}, draw=draw, page=lambda names: names[0], notes=["Quick."])
    publish("study", tmp_path / "out", None, **options)
    assert json.loads((tmp_path / "out" / "study.json").read_text()) == {"x": 1}
    publish("study", tmp_path / "out", tmp_path / "docs" / "page.md", **options)
    assert (tmp_path / "docs" / "page.md").read_text() == "page.png" and (tmp_path / "docs" / "page.json").is_file()
    assert "Quick." in capsys.readouterr().out
    with pytest.raises(ValueError, match="not JSON compliant"):
        publish("study", tmp_path, None, **options | {"numbers": {"x": float("inf")}})


def test_a_run_that_was_stopped_before_its_last_step_is_no_result(tmp_path, monkeypatch):
    chosen = recipe("gemma2-nano")
    chosen = replace(chosen, run_dir=str(tmp_path), loop=replace(chosen.loop, steps=5))

    def go_on(run, began):
        done = last_step(tmp_path / "metrics.jsonl")
        with open(tmp_path / "metrics.jsonl", "a") as file:
            file.writelines(json.dumps({"step": step}) + "\n" for step in range(done + 1, min(done + 4, 6)))

    monkeypatch.setattr("zoo.train.train", go_on)
    with pytest.raises(SystemExit) as stopped:
        train_to_the_end(chosen)
    assert stopped.value.code == TRY_AGAIN
    train_to_the_end(chosen)  # two more steps
    assert last_step(tmp_path / "metrics.jsonl") == 5
