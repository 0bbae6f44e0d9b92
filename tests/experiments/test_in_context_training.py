"""The training on made-up languages: its gates, what is kept, and what is said of it."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import pytest

from experiments.in_context_language import __main__ as command
from experiments.in_context_language import findings, pictures, real_languages, report, study, worker
from experiments.in_context_language.answers import batches, padded_length
from experiments.in_context_language.documents import CONTEXTS, make_document
from experiments.in_context_language.evaluation import (
    Measured,
    Setting,
    documents_of,
    settings_of,
    with_book_of,
)
from experiments.in_context_language.materials import Entry, Material, Pair
from experiments.in_context_language.prompts import DIRECTIONS
from experiments.in_context_language.scores import Score
from experiments.in_context_language.spelling import make_tokenizer
from experiments.in_context_language.stages import Run, Stage, model_of, recipe_of
from experiments.in_context_language.synthetic import english_texts
from experiments.in_context_language.worker import Result, StageResult
from experiments.in_context_language.workloads import FULL, QUICK, SEVEN_WORDS
from zoo.data import Tokenizer
from zoo.errors import TRY_AGAIN, UserError
from zoo.interop import load
from zoo.parallel import make_mesh


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return make_tokenizer(english_texts())


def test_a_model_begins_with_queries_like_keys_and_the_stages_window(tmp_path, tokenizer):
    workload = dataclasses.replace(QUICK, layer_types=("local", "global"), query_like_key=1.0)
    worker.write_beginning(Run(3), workload, workload.stages[0], None, tokenizer, tmp_path / "begin")
    model = load(tmp_path / "begin").model
    assert model.config.sliding_window == workload.stages[0].window == 8
    local, last = (layer.attention for layer in model.layers)
    assert (last.query[...] == last.key[...]).all() and (local.query[...] != local.key[...]).any()
    worker.write_beginning(Run(4), workload, workload.stages[1], tmp_path / "begin", tokenizer, tmp_path / "next")
    again = load(tmp_path / "next").model
    assert again.config.sliding_window == 128
    assert (again.layers[0].attention.query[...] == local.query[...]).all()


# ---- what is asked in the end


def test_every_setting_asks_the_same_and_the_curve_holds_the_ablations_sentences():
    listed = settings_of(FULL)
    assert len(set(listed)) == len(listed)
    for direction in DIRECTIONS:
        own = [s for s in listed if s.direction == direction]
        assert {s.context for s in own} == set(CONTEXTS)
        assert [s.shots for s in own if s.context == "sentences"] == [1, 4, 16, 64, 256]
        assert [s.context for s in own if s.book != "right"] == list(FULL.wrong_books)
    asked = {d.queries for s in settings_of(QUICK) if s.direction == "from English" for d in documents_of(s, QUICK)}
    assert len(asked) == 1


def test_the_book_of_another_language_has_none_of_the_words_under_the_same_name():
    document, other = (make_document(seed, "test", "all", "from English", 3) for seed in (0, 9))
    mixed = with_book_of(document, other)
    own, strange = ({word for _, _, word in d.language.words} for d in (document, other))
    words = set("".join(mixed.book).split())
    assert strange - own <= words and not (own - strange) & words
    assert mixed.queries == document.queries and mixed.examples == other.examples
    assert document.language.name in mixed.book[0] and other.language.name not in "".join(mixed.book)


def test_prompts_are_padded_to_few_lengths_and_long_ones_are_answered_few_at_a_time():
    lengths = {padded_length(length) for length in range(1, 20_000)}
    assert sorted(lengths)[:6] == [64, 96, 128, 192, 256, 384] and len(lengths) == 18
    assert all(length <= padded_length(length) <= max(64, 1.5 * length) for length in range(1, 5000))
    made = list(batches([5, 70, 9, 20_000, 6, 20_000, 20_000], 16))
    assert made == [([0, 2, 4], 64), ([1], 96), ([3, 5], 24_576), ([6], 24_576)]


# ---- training

TINY = dataclasses.replace(
    QUICK,
    stages=(
        Stage("words", ("recall", "lookup"), 256, 1, 2, size=SEVEN_WORDS, words_asked=2, tested="words"),
        Stage("sentences", ("none", "sentences"), 384, 1, 2, size=SEVEN_WORDS, questions=1, most_shots=2),
    ),
    embed_dim=16,
    layer_types=("local",),
    hidden_dim=16,
    gate_languages=1,
    test_languages=1,
    contexts=("none", "sentences"),
    test_shots=1,
    shots=(1,),
    wrong_books=("sentences",),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tokenizer):
    """(folder of all results, folder of the run, its result)"""
    out = tmp_path_factory.mktemp("in_context_language")
    tokenizer.save(out / "tokenizer")
    folder = out / "runs" / "seed-0"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zoo.train.make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))
        return out, folder, worker.carry_out(Run(0), TINY, out, folder)


def test_a_run_goes_through_all_stages_and_settings_and_its_result_comes_back(trained, tmp_path):
    _, folder, result = trained
    assert [(stage.stage, stage.attempt) for stage in result.stages] == [("words", 1), ("sentences", 1)]
    assert all(stage.documents > 2 and 0 < stage.tokens <= 768 and stage.training for stage in result.stages)
    assert [each.setting for each in result.measured] == settings_of(TINY) and not result.ended
    assert all(each.score.count == 1 and each.tokens > 10 and each.examples for each in result.measured)
    assert not list(folder.glob("*.jsonl")) and result.parameters == model_of(TINY).num_parameters()
    worker.write_result(result, tmp_path / "result.json")
    assert worker.read_result(tmp_path / "result.json") == result


def test_what_is_done_is_not_done_again(trained, tmp_path, monkeypatch):
    out, folder, result = trained
    again = tmp_path / "seed-0"
    shutil.copytree(folder, again)
    monkeypatch.setattr(worker, "train_to_the_end", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(worker, "measure", lambda *_: pytest.fail("measured again"))
    assert worker.carry_out(Run(0), TINY, out, again) == result
    kept = json.loads((again / "measured.json").read_text())
    (again / "measured.json").write_text(json.dumps(kept[:-1]))
    asked = []

    def measure(model, tokenizer, setting, workload):
        asked.append(setting)
        return result.measured[-1]

    monkeypatch.setattr(worker, "measure", measure)
    assert worker.carry_out(Run(0), TINY, out, again) == result and asked == [settings_of(TINY)[-1]]


def test_a_stage_that_was_stopped_is_no_result_and_keeps_its_documents(trained, tmp_path, monkeypatch):
    out, _, _ = trained
    monkeypatch.setattr("zoo.train.train", lambda *_: None)
    with pytest.raises(SystemExit) as stopped:
        worker.carry_out(Run(0), TINY, out, tmp_path / "seed-0")
    assert stopped.value.code == TRY_AGAIN and not list((tmp_path / "seed-0").glob("*/stage.json"))
    assert (tmp_path / "seed-0" / "words-1.jsonl").is_file()


def stage_result(stage: str = "words", attempt: int = 1, words=(0.9, 0.8)) -> StageResult:
    return StageResult(stage, attempt, 10, 1000, 60.0, ((20, 2.0),), dict(zip(DIRECTIONS, words, strict=True)))


@pytest.mark.parametrize(
    ("words", "attempts", "ended"), [((0.9, 0.8), 1, False), ((0.9, 0.2), 3, False), ((0.5, 0.2), 3, True)]
)
def test_a_stage_is_done_again_until_its_gate_and_the_run_ends_if_no_direction_reaches_it(
    words, attempts, ended, tmp_path, tokenizer, monkeypatch
):
    done = []

    def train_stage(run, workload, stage, attempt, first, tokens, before, here):
        done.append((stage.name, attempt, first, before, here))
        return stage_result(stage.name, attempt, words)

    monkeypatch.setattr(worker, "train_stage", train_stage)
    monkeypatch.setattr(worker, "load", Loaded)
    monkeypatch.setattr(worker, "measure_all", lambda *_: ())
    tokenizer.save(tmp_path / "tokenizer")
    gated = dataclasses.replace(TINY.stages[0], gate=0.6, attempts=3)
    workload = dataclasses.replace(TINY, stages=(gated, TINY.stages[1]))
    result = worker.carry_out(Run(1), workload, tmp_path, tmp_path / "seed-1")
    assert len([d for d in done if d[0] == "words"]) == attempts and bool(result.ended) == ended
    assert [d[0] for d in done].count("sentences") == (not ended)
    assert [d[3] for d in done] == [None, *(d[4] for d in done[:-1])]  # each begins where the one before ended
    assert len({d[2] for d in done}) == len(done)  # with other languages
    if ended:
        assert "attempt 3 of the stage 'words' the model finds 50% from English, 20% into English" in result.ended


class Loaded:
    """Stands for what `load` gives where the model is not asked."""

    def __init__(self, path):
        self.model = path


def test_stages_are_ordinary_recipes_that_differ_in_documents_and_length(tmp_path):
    made = [
        recipe_of(Run(2), FULL, stage, tmp_path / "d.jsonl", tmp_path, tmp_path, tmp_path / "run")
        for stage in FULL.stages
    ]
    assert [recipe.model.sliding_window for recipe in made] == sorted(stage.window for stage in FULL.stages)
    same = {str(dataclasses.replace(recipe.model, sliding_window=1)) for recipe in made}
    assert len(same) == 1 and {recipe.seed for recipe in made} == {2}
    assert {recipe.init_from for recipe in made} == {str(tmp_path)}
    assert len({(recipe.data.sequence_length, recipe.model.sliding_window) for recipe in made}) > 4
    model = model_of(FULL)
    assert not model.global_rope and model.max_position_embeddings >= 256 * 64  # all sentences of the curve


# ---- the command


def run_command(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["in_context_language", *arguments])
    command.main()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seeds", "0,x"), "need different whole numbers"),
        (("--real", "kalamang"), "--checkpoint and --real belong together"),
        (("--checkpoint", "x"), "--checkpoint and --real belong together"),
        (("--checkpoint", "x", "--real", "lojban", "--sentences", "0"), "sentences must be at least 1"),
        (("--checkpoint", "x", "--real", "lojban", "--only-report"), "belong to the study"),
        (("--checkpoint", "x", "--real", "lojban", "--seeds", "1"), "belong to the study"),
    ],
)
def test_wrong_options_are_refused_in_one_line(arguments, message, monkeypatch):
    with pytest.raises(UserError, match=message):
        run_command(monkeypatch, *arguments)


def test_a_folder_with_runs_of_other_sizes_is_refused(tmp_path):
    study.prepare(tmp_path, QUICK)
    study.prepare(tmp_path, dataclasses.replace(QUICK, seeds=7))  # more runs of the same kind
    with pytest.raises(UserError, match="holds runs with another embed_dim: give another --out"):
        study.prepare(tmp_path, dataclasses.replace(QUICK, embed_dim=64))


def test_results_are_kept_and_only_missing_seeds_are_run(tmp_path, monkeypatch, capsys):
    done = []

    def run_in_process(name, module, arguments, log, environment):
        size, seed, _, path = arguments
        done.append((size, seed))
        worker.write_result(result(int(seed), GOOD), Path(path))

    monkeypatch.setattr(study, "run_in_process", run_in_process)
    folders = ("--quick", "--out", str(tmp_path / "out"), "--results", str(tmp_path / "kept"))
    run_command(monkeypatch, *folders, "--seeds", "1")
    run_command(monkeypatch, *folders, "--seeds", "1,2")
    assert done == [("quick", "1"), ("quick", "2")]
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["seed-1.json", "seed-2.json"]
    capsys.readouterr()
    run_command(monkeypatch, *folders, "--seeds", "1,3", "--only-report", "--report", str(tmp_path / "page.md"))
    assert len(done) == 2 and "Not done yet: seed-3." in (tmp_path / "page.md").read_text()
    assert [run["run"]["seed"] for run in json.loads((tmp_path / "page.json").read_text())["runs"]] == [1]
    with pytest.raises(UserError, match="has no result of these seeds"):
        run_command(monkeypatch, *folders, "--seeds", "5", "--only-report")
    with pytest.raises(UserError, match="seed-1.json was made with other stages or sizes"):
        run_command(monkeypatch, *folders, "--seeds", "1", "--without-glosses")


PAIRS = tuple(Pair(f"mo {a}ka la {b}", f"The {a} sees the {b}.") for a in ("dog", "cat") for b in "xyz")
MATERIAL = Material(
    "Tiny",
    "A grammar of Tiny",
    (Entry("mo", "to see"), Entry("dogka", "dog")),
    PAIRS[1:],
    (),
    (),
    {"into English": PAIRS[:1], "from English": PAIRS[:1]},
)


def test_any_checkpoint_is_examined_on_a_real_language(trained, tmp_path, monkeypatch, capsys):
    _, folder, _ = trained
    monkeypatch.setitem(real_languages.MATERIALS, "kalamang", lambda shared: MATERIAL)
    arguments = ("--checkpoint", str(folder / "sentences-1"), "--real", "kalamang", "--shared", str(tmp_path))
    options = ("--out", str(tmp_path / "out"), "--conditions", "W", "--report", str(tmp_path / "report.md"))
    run_command(monkeypatch, *arguments, *options)
    (path,) = (tmp_path / "out").glob("*.json")
    found = json.loads(path.read_text())
    assert [(each["direction"], each["condition"]) for each in found] == [(d, "W") for d in DIRECTIONS]
    assert found[0]["answers"][0][:2] == [PAIRS[0].english, PAIRS[0].foreign]
    assert "no model: word by word" in capsys.readouterr().out and "| W |" in (tmp_path / "report.md").read_text()
    for wrong, message in (
        (("--budget", "40000"), "--budget must lie in 1 .."),
        (("--conditions", "X"), "no part 'X'"),
    ):
        with pytest.raises(UserError, match=message):
            run_command(monkeypatch, *arguments, *wrong)


# ---- what is said of it


def result(seed: int, chrf: dict[str, float]) -> Result:
    """An invented run; contexts by name, `wrong` for the book of another language, numbers for so many sentences."""

    def measured(setting: Setting, value: float) -> Measured:
        value += seed / 10
        return Measured(setting, Score(8, value, value - 1, value + 1, value / 2), 100.0, (("a|b", "c", "d"),))

    listed = []
    for direction in DIRECTIONS:
        for name, value in chrf.items():
            if name.isdigit():
                listed.append(measured(Setting("sentences", direction, int(name)), value))
            elif name == "wrong":
                listed.append(measured(Setting("all", direction, 4, "another language's"), value))
            else:
                listed.append(measured(Setting(name, direction, 4 if "sentences" in CONTEXTS[name] else 0), value))
    return Result(Run(seed), 10**6, (stage_result(),), tuple(listed))


GOOD = {
    "none": 10.0,
    "word list": 40.0,
    "1": 30.0,
    "4": 35.0,
    "word list + sentences": 60.0,
    "all": 70.0,
    "wrong": 20.0,
}
BASELINES = [
    findings.Baseline(name, direction, shots, Score(8, value, value - 2, value + 2, 0.0))
    for direction in DIRECTIONS
    for shots in (1, 4)
    for name, value in (("word by word", 50.0), ("nearest example, n-grams", 30.0 + shots))
]


def results(*chrf: dict[str, float], runs: tuple[Result, ...] = ()) -> report.Results:
    made = [result(seed, values) for seed, values in enumerate(chrf)] + list(runs)
    workload = dataclasses.replace(FULL, test_shots=4, shots=(1, 4))
    return report.Results("2026-11-26", "command", {"processor": "one"}, workload, BASELINES, made)


def test_the_goals_are_reached_when_the_book_helps_and_not_otherwise():
    good = results(GOOD, GOOD, GOOD)
    assert all(aim.reached for aim in findings.aims(good.runs, BASELINES)) and len(findings.aims(good.runs, [])) == 8
    text = report.write_report(good, ["a.png"])
    assert "Nothing of the aims" in text and "![a.png](a.png)" in text and "a\\|b" in text
    assert (
        "| nothing | 100 | 10.1 ± 0.2 |" in text
        and "| all (4 sentences), of another language | 100 | 20.1 ± 0.2 |" in text
    )
    blind = results(*[GOOD | {"all": 25.0, "1": 36.0}] * 3)
    reached = {(aim.what, aim.aim.split(":")[0][:12]): aim.reached for aim in findings.aims(blind.runs, BASELINES)}
    assert not any(reached.values())
    assert "* into English, many-shot curve: rises 0 of 1 times" in report.write_report(blind, [])


def test_seeds_that_disagree_do_not_reach_a_goal():
    apart = results(GOOD | {"all": 95.0}, GOOD | {"all": 25.0}, GOOD | {"all": 60.0})
    assert not findings.aims(apart.runs, BASELINES)[0].reached


def test_a_run_that_was_ended_is_told_and_left_out_of_the_means(tmp_path):
    ended = Result(Run(2), 10**6, (stage_result(words=(0.2, 0.1)),), (), "no words were found")
    made = results(GOOD, GOOD, runs=(ended,))
    mean = findings.value(made.runs, Setting("all", "from English", 4))
    assert mean is not None and mean.count == 2
    text = report.write_report(made, [])
    assert "2 of 3 runs went to the end" in text and "Seed 2 was ended: no words were found." in text
    none = dataclasses.replace(made, runs=[ended])
    assert "No run went to the end." in report.write_report(none, [])
    numbers = json.dumps(dataclasses.asdict(made), allow_nan=False)
    assert json.loads(numbers)["runs"][2]["ended"] == "no words were found"
    for stem, which in (("made", made), ("none", none)):
        names = pictures.draw_all(which, tmp_path, stem)
        assert len(names) == 3 and all((tmp_path / name).stat().st_size > 1000 for name in names)


def test_baselines_are_asked_the_same_sentences():
    workload = dataclasses.replace(TINY, shots=(1, 2))
    found = findings.baselines_of(workload)
    assert {(each.direction, each.shots) for each in found} == {(d, n) for d in DIRECTIONS for n in (1, 2)}
    assert all(each.score.count == 1 for each in found)
    best = findings.best_baseline(found, "from English", 2)
    assert best is not None and best.score.chrf == max(
        b.score.chrf for b in found if (b.direction, b.shots) == ("from English", 2)
    )
    assert findings.best_baseline(found, "from English", 99) is None
