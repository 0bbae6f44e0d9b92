"""The training side of long-context recall: keys, documents, curriculum, arms, and one tiny run."""

import dataclasses
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.long_context_recall.haystacks import running_ids
from experiments.long_context_recall.needles import Needles, draw_key, magic_numbers
from experiments.long_context_recall.samples import Setting
from experiments.long_context_recall.training import keys, study, texts, trainer, worker
from experiments.long_context_recall.training.arms import (
    ARMS,
    BASELINE,
    COMPARED_LENGTH,
    MAIN,
    NO_NEEDLES,
    REACH,
    Arm,
    Run,
    arm_named,
    ntk_base,
    runs_of,
    workload_of,
)
from experiments.long_context_recall.training.curriculum import FULL, Stage, model_of
from experiments.long_context_recall.training.documents import batch_of, draw_rows, wording
from experiments.long_context_recall.training.examination import Grid, Level
from experiments.long_context_recall.training.sizes import FULL_SIZE, QUICK_SIZE, Size
from experiments.long_context_recall.words import cities
from experiments.updates import scale_updates
from zoo.errors import UserError
from zoo.interop import load
from zoo.training.parameters import flatten_with_names

FACTS = FULL.stages[0]
DOCUMENTS = [stage for stage in FULL.stages if stage.form == "document"]
SHORT = DOCUMENTS[0]
TINY = Size(
    dataclasses.replace(
        QUICK_SIZE.workload,
        stages=(
            Stage("facts", "facts", 48, 2, 8, 3, 0, 2, 1e-3, digits=1),
            Stage("short", "document", 192, 1, 64, 1, 1, 2, 1e-3, 0.05),
        ),
        text_passages=1,
        text_length=48,
    ),
    main=Grid(("needle",), (Level(192, 1, 1),), chunk=192),
    control=Grid(("needle",), (Level(192, 1, 1),), chunk=192),
    others=Grid(("needle",), (Level(192, 1, 1),), chunk=192),
    novels=False,
)
FIRST = TINY.workload.stages[0]
FACTS_ONLY = dataclasses.replace(
    TINY,
    workload=dataclasses.replace(
        TINY.workload, stages=(FIRST, dataclasses.replace(FIRST, name="again")), num_layers=1, layer_types=("global",)
    ),
    main=Grid((), ()),
)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    texts.prepare(study.made(folder), TINY.workload, None)
    return folder


@pytest.fixture(scope="module")
def words(out):
    return wording(texts.read_training(out)[0])


@pytest.fixture(scope="module")
def hay(out):
    return texts.read_training(out)[1]


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# Keys


def test_no_key_of_training_is_one_that_the_tests_ask_for(words):
    drawn = {kind: {words.keys.draw(kind, random(i)) for i in range(300)} for kind in keys.TRAINED}
    held_out = {words.keys.encoded(city) for city in cities(held_out=True)}
    assert not held_out & set().union(*drawn.values())
    text = {kind: {words.tokenizer.decode(list(key)).strip() for key in drawn[kind]} for kind in keys.TRAINED}
    assert {len(word) // 2 for word in text["words"]} == {2, 4}  # two letters a syllable; the tests have three
    assert {len(number) for number in text["numbers"]} == {3, 4, 6}  # the tests have five
    assert text["cities"] <= set(cities(held_out=False))


@pytest.mark.parametrize(
    ("kind", "task"),
    [("unseen cities", "held-out cities"), ("unseen words", "made-up words"), ("unseen numbers", "numbers")],
)
def test_unseen_keys_are_drawn_as_the_tests_draw_them(words, kind, task):
    drawn = [words.tokenizer.decode(list(words.keys.draw(kind, random(i)))).strip() for i in range(20)]
    asked = [draw_key(task, random(i)) for i in range(20)]
    assert drawn == asked


def test_random_keys_are_letters_and_one_to_four_tokens(words):
    drawn = [words.keys.draw("pieces", random(i)) for i in range(300)]
    assert set(map(len, drawn)) == {1, 2, 3, 4} and len(set(drawn)) > 290
    assert all(words.tokenizer.decode([token]).strip().isalpha() for key in drawn for token in key)


def test_an_unknown_kind_of_key_is_refused(words):
    with pytest.raises(ValueError, match="no such kind of key"):
        words.keys.draw("colours", random())


# Documents

NEEDLE = re.compile(r" The special magic (.+?) number is: (\d{7})\.")
QUESTION = re.compile(
    r"What is the special magic (.+?) number\?.*?\nHere is the magic number from the context: (\d+)", re.S
)


@pytest.mark.parametrize("stage", DOCUMENTS[:2], ids=lambda stage: stage.name)
def test_every_answer_of_a_document_stands_in_its_context(words, hay, stage):
    rows = draw_rows(words, hay, stage, random(1), ("words", "cities"))
    for tokens in rows.tokens:
        context, asked = words.tokenizer.decode(tokens.tolist()).split("\n</context>")
        needles, questions = dict(NEEDLE.findall(context)), QUESTION.findall(asked)
        assert len(needles) == stage.needles and 1 <= len(questions) <= stage.questions
        assert all(needles[key] == value for key, value in questions)


def test_a_document_is_the_tokenisation_of_its_text(words, hay):
    stage = dataclasses.replace(SHORT, batch_size=8)
    for tokens in draw_rows(words, hay, stage, random(2), ("words", "cities", "numbers")).tokens:
        text = words.tokenizer.decode(tokens[tokens != words.tokenizer.pad_id].tolist())
        # From the first needle to the end of the last: the text is cut before the question.
        first, *_, last = NEEDLE.finditer(text)
        assert _contains(tokens.tolist(), running_ids(words.tokenizer, text[first.start() : last.end()]).tolist())


def _contains(ids: list[int], part: list[int]) -> bool:
    return any(ids[i : i + len(part)] == part for i in range(len(ids)))


def test_a_question_of_training_ends_as_the_prompt_of_the_test_does(words, hay):
    """Down to the token: what follows the key, and the number that is to be written."""
    setting = Setting(words.tokenizer, hay, 512)
    sample = magic_numbers(Needles(), "needle", setting, 3, 50.0)
    ids = words.keys.encoded(sample.facts["key"])
    asked = [*words.first, *ids, *words.follows]
    assert sample.prompt[-len(asked) :].tolist() == asked
    needle = [
        *words.needle[0],
        *ids,
        *words.needle[1],
        *running_ids(words.tokenizer, sample.answer),
        *words.needle[2],
    ]
    assert _contains(sample.prompt.tolist(), needle)
    assert sample.prompt[: len(words.head)].tolist() == words.head.tolist()


def test_weights_lie_on_the_digits_that_are_asked_for_and_on_the_text(words, hay):
    stage = dataclasses.replace(SHORT, batch_size=4, lm_weight=0.05, first_weight=3.0)
    rows = draw_rows(words, hay, stage, random(3), ("words",))
    for tokens, weights, answers in zip(rows.tokens, rows.weights, rows.answers, strict=True):
        for question in range(1, answers.max() + 1):
            where = np.flatnonzero(answers == question)
            assert words.tokenizer.decode(tokens[where].tolist()).strip().isdigit() and len(where) == 7
            assert weights[where].tolist() == [3.0] + [1.0] * 6
            after = where[-1] + 1
            assert weights[after] == 1.0 and words.tokenizer.decode([int(tokens[after])]) == "\n"
        closing = next(
            i for i in range(len(tokens)) if tokens[i : i + len(words.first)].tolist() == words.first.tolist()
        )
        inside = slice(len(words.head), closing)
        text = words.tokenizer.decode(tokens[inside][weights[inside] > 0].tolist())
        assert set(np.unique(weights[inside])) == {np.float32(0), np.float32(0.05)}
        assert "magic" not in text and not re.search(r"\d", text)
        counted = (weights > 0).sum()
        assert counted >= (answers > 0).sum() + (weights[inside] > 0).sum()
        assert weights[0] == 0


def test_keys_are_asked_for_with_replacement(words, hay):
    stage = dataclasses.replace(SHORT, length=1024, batch_size=16, needles=3, questions=6)
    rows = draw_rows(words, hay, stage, random(4), ("words",))
    asked = [Counter(key for key, _ in QUESTION.findall(words.tokenizer.decode(row.tolist()))) for row in rows.tokens]
    assert any(max(counts.values()) > 2 for counts in asked) and any(len(counts) < 3 for counts in asked)


def test_a_repeated_fact_has_its_number_again_and_only_that_counts(words, hay):
    stage = dataclasses.replace(FACTS, length=96, digits=2)
    rows = draw_rows(words, hay, stage, random(5), ("words",))
    for tokens, weights, answers in zip(rows.tokens, rows.weights, rows.answers, strict=True):
        text = words.tokenizer.decode(tokens.tolist())
        told = re.findall(r" ([A-Z][a-z]+) number (\d\d)", text)
        first = dict(reversed(told))
        assert len(first) == stage.needles and all(first[key] == value for key, value in told)
        assert set(np.unique(weights)) == {0.0, 1.0} and answers.max() >= 1
        # Of a key that is asked for, all but the first token count: it can be looked up.
        (asked,) = np.flatnonzero(answers == 1)[:1]
        space = len(words.value(stage.digits, random())) - stage.digits
        assert weights[asked - space - len(words.bare) - 1] == stage.key_weight == 1.0
        for question in range(1, answers.max() + 1):
            assert (answers == question).sum() in (0, stage.digits)
        # The facts themselves come first and do not count.
        assert np.flatnonzero(weights)[0] > stage.needles * 5


def test_a_question_without_text_breaks_off_anywhere_between_key_and_number(words, hay):
    stage = dataclasses.replace(FACTS, form="questions", length=320, digits=3, batch_size=8)
    rows, gaps = draw_rows(words, hay, stage, random(12), ("words",)), set()
    for tokens, answers in zip(rows.tokens, rows.answers, strict=True):
        text = words.tokenizer.decode(tokens.tolist())
        told = dict(re.findall(r"The special magic ([A-Z][a-z]+) number is: (\d{3})", text))
        assert len(told) == stage.needles
        for question in range(1, answers.max() + 1):
            where = np.flatnonzero(answers == question)
            if not len(where):
                continue  # it did not fit
            before = words.tokenizer.decode(tokens[: where[0]].tolist())
            _, _, asked = before.rpartition("What is the special magic ")
            key, _, wording = asked.partition(" ")
            assert told[key] == words.tokenizer.decode(tokens[where].tolist())
            gaps.add(len(wording))
    assert len(gaps) > 10, "the way from the key to the number must have many lengths"


def test_a_row_without_needles_is_text_and_all_of_it_counts(words, hay):
    stage = dataclasses.replace(SHORT, needles=0, lm_weight=1.0)
    rows = draw_rows(words, hay, stage, random(6))
    assert rows.tokens.shape == (stage.batch_size, stage.length + 1) and not rows.answers.any()
    assert rows.weights[:, 0].tolist() == [0.0] * stage.batch_size and (rows.weights[:, 1:] == 1).all()
    assert "magic" not in words.tokenizer.decode(rows.tokens[0].tolist())


def test_the_same_seed_draws_the_same_rows_and_another_one_others(words, hay):
    once, again, other = (draw_rows(words, hay, SHORT, random(seed)).tokens for seed in (7, 7, 8))
    assert (once == again).all() and (once != other).any(axis=1).all()


def test_a_stage_without_room_for_a_question_is_refused(words, hay):
    with pytest.raises(ValueError, match="no room for a question"):
        draw_rows(words, hay, dataclasses.replace(SHORT, length=60), random())


def test_jumps_keep_the_order_of_positions_and_stay_within_the_reach(words, hay):
    stage = dataclasses.replace(SHORT, reach=4096, batch_size=16)
    positions = batch_of(draw_rows(words, hay, stage, random(9)), words.tokenizer.pad_id).positions
    steps = np.diff(positions, axis=1)
    assert (steps >= 1).all() and positions.max() < 4096 and positions.max() > 2048
    assert ((steps > 1).sum(axis=1) <= 4).all()
    plain = batch_of(draw_rows(words, hay, SHORT, random(9)), words.tokenizer.pad_id).positions
    assert plain.max() <= SHORT.length - 1


def test_padding_is_no_part_of_the_segment(words, hay):
    rows = draw_rows(words, hay, SHORT, random(10))
    tokens = rows.tokens.copy()
    tokens[:, 200:] = words.tokenizer.pad_id
    batch = batch_of(dataclasses.replace(rows, tokens=tokens), words.tokenizer.pad_id)
    assert not batch.segment_ids[:, 200:].any() and not batch.loss_weights[:, 200:].any()
    assert batch.segment_ids[:, :200].all()


# Curriculum and arms


@pytest.mark.parametrize("stage", FULL.stages, ids=lambda stage: stage.name)
def test_rows_of_every_stage_can_be_drawn_and_ask_something(words, hay, stage):
    rows = draw_rows(words, hay, dataclasses.replace(stage, batch_size=1), random(11))
    assert rows.tokens.shape == (1, stage.length + 1) and rows.answers.any()
    assert stage.lm_weight > 0 or stage.form != "document"


def test_the_curriculum_grows_to_the_length_that_the_aim_asks_for():
    lengths = [stage.length for stage in FULL.stages if stage.form == "document"]
    assert lengths == sorted(lengths) and FULL.trained_length >= 8192
    assert FULL_SIZE.main.levels[-1].length == REACH * FULL.trained_length
    assert len(FULL_SIZE.seeds) >= 3 and not FULL.global_rope


def test_an_arm_differs_from_the_recipe_in_what_it_says():
    changed = {arm.name: workload_of(arm, FULL) for arm in ARMS if arm.weights_of is None}
    assert changed[MAIN] == FULL
    short = changed[BASELINE]
    assert short.stages == tuple(stage for stage in FULL.stages if stage.length <= COMPARED_LENGTH)
    assert short.trained_length == COMPARED_LENGTH and FULL_SIZE.others.levels[-1].length == REACH * COMPARED_LENGTH
    for name in ("rope 10k", "rope 1M", "1:1", "3:1"):
        assert (
            dataclasses.replace(changed[name], **{field: getattr(FULL, field) for field, _ in arm_named(name).workload})
            == short
        )
    assert [stage.window for stage in changed["window 16"].stages] == [min(s.window, 16) for s in short.stages]
    assert {stage.reach for stage in changed["jumps"].stages} == {0, REACH * COMPARED_LENGTH}
    (direct,) = changed["direct"].stages
    spent = sum(stage.steps * stage.batch_size * stage.length for stage in short.stages)
    step = direct.batch_size * direct.length
    assert direct.length == COMPARED_LENGTH and 0 <= direct.steps * step - spent < step
    assert all(model_of(changed[name], 64).rope_theta == 10_000 for name in changed)
    bases = {name: model_of(changed[name], 64).global_rope_theta for name in (MAIN, "rope 10k", "rope 1M")}
    assert bases == {MAIN: None, "rope 10k": 10_000, "rope 1M": 1e6} and model_of(changed["rope 1M"], 64).global_rope
    ((field, base),) = arm_named("rope 10k, scaled").examined
    assert field == "global_rope_theta" and base == ntk_base(10_000.0, REACH)


def test_the_control_without_needles_has_the_same_rows_and_steps():
    control = workload_of(arm_named(NO_NEEDLES), FULL)
    same = [(stage.length, stage.batch_size, stage.window, stage.steps, stage.learning_rate) for stage in FULL.stages]
    assert [(s.length, s.batch_size, s.window, s.steps, s.learning_rate) for s in control.stages] == same
    assert all(s.needles == 0 and s.lm_weight == 1 and s.attempts == 1 for s in control.stages)


def test_scaling_divides_the_slowest_frequency_and_leaves_the_fastest():
    frequency = lambda base, i: base ** (-2 * i / 32)  # noqa: E731
    scaled = ntk_base(10_000.0, 16)
    assert frequency(scaled, 15) * 16 == pytest.approx(frequency(10_000.0, 15))
    assert frequency(scaled, 0) == frequency(10_000.0, 0)


def test_runs_come_seed_by_seed_and_an_arm_of_anothers_weights_comes_after_it():
    names = [run.name for run in runs_of(("rope 10k, scaled", "rope 10k"), (0, 1))]
    assert names == ["rope-10k-seed-0", "rope-10k-scaled-seed-0", "rope-10k-seed-1", "rope-10k-scaled-seed-1"]
    assert len({run.name for run in runs_of((), (0, 1, 2))}) == 3 * len(ARMS)
    with pytest.raises(UserError, match="takes the weights of 'rope 10k'"):
        runs_of(("rope 10k, scaled",), (0,))
    with pytest.raises(UserError, match="'mian' is unknown.*main"):
        runs_of(("mian",), (0,))
    with pytest.raises(ValueError, match="it trains nothing"):
        workload_of(arm_named("rope 10k, scaled"), FULL)


# Training


def test_only_queries_of_global_layers_begin_like_their_keys():
    model = trainer.new_model(TINY.workload, 0)
    alike = []
    for layer in model.layers:
        query, key = layer.attention.query[...], layer.attention.key[...]
        key = jnp.repeat(key, query.shape[1] // key.shape[1], axis=1)
        alike.append(float(jnp.corrcoef(query.ravel(), key.ravel())[0, 1]))
    assert abs(alike[0]) < 0.1 and alike[1] == pytest.approx(0.95, abs=0.03)


def test_updates_of_the_embedding_are_scaled_and_no_others():
    params = nnx.state(trainer.new_model(TINY.workload, 0), nnx.Param)
    ones = jax.tree.map(jnp.ones_like, params)
    slower = scale_updates(0.25, trainer.EMBEDDING.__eq__)
    found, _ = slower.update(ones, None)
    values = {name: set(np.unique(leaf)) for name, leaf in flatten_with_names(found).items()}
    assert values.pop(trainer.EMBEDDING) == {0.25} and all(value == {1.0} for value in values.values())
    with pytest.raises(ValueError, match="no parameter"):
        slower.update({"layers": jnp.ones(2)}, None)


def test_an_answer_is_right_if_all_of_its_digits_are(words, hay):
    rows = draw_rows(words, hay, dataclasses.replace(SHORT, batch_size=2), random(12))
    likeliest = np.roll(rows.tokens, -1, axis=1)[:, :-1]
    questions = sum(len(set(row[row > 0])) for row in rows.answers)
    assert trainer.count_right(rows, likeliest).tolist() == [questions] * 3
    last = np.flatnonzero(rows.answers[0] == 1)[-1]
    likeliest[0, last - 1] += 1
    assert trainer.count_right(rows, likeliest).tolist() == [questions - 1, questions, questions]


@pytest.mark.parametrize(
    "size", [pytest.param(FACTS_ONLY, id="facts"), pytest.param(TINY, id="examined", marks=pytest.mark.slow)]
)
def test_a_tiny_run_trains_is_examined_and_goes_on_where_it_was_stopped(out, words, size, monkeypatch, tmp_path):
    folder = tmp_path / "main-seed-0"
    result = worker.carry_out(Run(MAIN, 0), size, out, folder)
    stages = size.workload.stages
    assert [stage.stage for stage in result.stages] == [stage.name for stage in stages]
    assert all(np.isfinite(stage.training[-1][1]) and set(stage.recall) == set(keys.UNSEEN) for stage in result.stages)
    assert 0 < result.text_loss < 20
    assert [cell.length for cell in result.examined] == [level.length for level in size.main.levels]
    last = folder / f"{stages[-1].name}-{result.stages[-1].attempt}"
    loaded = load(last)
    assert loaded.tokenizer.fingerprint == words.tokenizer.fingerprint
    assert (loaded.config.sliding_window, loaded.config.max_position_embeddings) == (
        stages[-1].window,
        stages[-1].length,
    )

    def nothing(*_, **__):
        raise AssertionError("this is done already")

    monkeypatch.setattr(worker, "train_attempt", nothing)
    assert worker.carry_out(Run(MAIN, 0), size, out, folder) == result  # from what was kept
    as_main = worker.carry_out(Run(BASELINE, 0), size, out, tmp_path / "short-seed-0")  # the same stages
    assert (as_main.stages, as_main.text_loss) == (result.stages, result.text_loss)
    with pytest.raises(AssertionError, match="done already"):
        worker.carry_out(Run(BASELINE, 1), size, out, tmp_path / "short-seed-1")
    with pytest.raises(AssertionError, match="done already"):
        worker.carry_out(Run("rope 10k", 0), size, out, tmp_path / "rope-10k-seed-0")
    path = out / "result.json"
    worker.write_json(dataclasses.asdict(result), path)
    assert worker.read_result(path) == result
    stretched = worker.examined_model(loaded.model, Arm("x", "", examined=(("rope_theta", 5e4),)))
    assert stretched.config.rope_theta == 5e4
    same = jax.tree.map(lambda a, b: bool((a == b).all()), nnx.state(loaded.model), nnx.state(stretched))
    assert all(jax.tree.leaves(same))


def test_runs_share_the_stages_that_come_from_the_same_and_no_others():
    def comes_from(name: str, seed: int = 0) -> list[str]:
        workload, done, found = workload_of(arm_named(name), FULL), [], []
        for number, stage in enumerate(workload.stages):
            found.append(worker._comes_from(Run(name, seed), workload, done, number, 1))
            done.append(worker.StageResult(stage.name, 1, 0, 0, 0.0, (), {}))
        return found

    main, short = comes_from(MAIN), comes_from(BASELINE)
    assert short == main[: len(short)] and len(set(main)) == len(main) == len(FULL.stages)
    shared = {arm.name: len(set(comes_from(arm.name)) & set(main)) for arm in ARMS if arm.weights_of is None}
    few = {name: shared.pop(name) for name in (MAIN, BASELINE, "jumps", "window 32", "window 16")}
    assert few == {MAIN: 9, BASELINE: 7, "jumps": 3, "window 32": 1, "window 16": 1} and set(shared.values()) == {0}
    assert len(set(comes_from("rope 10k")) & set(comes_from("rope 10k, jumps"))) == 3
    assert not set(comes_from(MAIN, 1)) & set(main)
