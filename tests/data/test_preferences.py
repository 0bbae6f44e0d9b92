"""Pairs of answers, prompts and generated problems: what is read, how it lies in rows, and what is refused."""

import json
from collections import Counter

import numpy as np
import pytest

from zoo.data import (
    DataConfig,
    TaskConfig,
    check_documents_fit,
    check_reference,
    computed_reward,
    open_corpus,
    tokenizer_for,
    train_batches,
    validation_dataset,
)
from zoo.data.prompted import parse_prompted
from zoo.data.tasks import GeneratedDocuments, wrong_answer
from zoo.errors import UserError

TURNS = [{"role": "user", "content": "two?"}, {"role": "model", "content": "2"}, {"role": "user", "content": "three?"}]
PAIRS = [
    {"prompt": "one?", "chosen": " 1 ", "rejected": "7"},
    {"prompt": TURNS, "chosen": "3", "rejected": "4"},
    {
        "chosen": [*TURNS, {"role": "assistant", "content": "3"}],
        "rejected": [*TURNS, {"role": "assistant", "content": "9"}],
    },
]


def config(format, *, length=64, batch=2, **fields):
    packing = {"preference": "first_fit", "prompts": "single", "chat": "first_fit"}[format]
    sizes = {"vocab_size": 276, "sequence_length": length, "batch_size": batch}
    return DataConfig(format=format, packing=packing, **sizes, **fields)


def write(path, lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return (str(path),)


@pytest.fixture(scope="module")
def tokenizer():
    data = config("chat", task=TaskConfig("arithmetic", num_documents=200, largest=19, operations="+-"))
    return tokenizer_for(open_corpus(data), data)


def test_a_pair_lies_in_one_row_as_two_segments_that_count_on_their_answers_only(tmp_path, tokenizer):
    data = config("preference", paths=write(tmp_path / "pairs.jsonl", PAIRS), validation_fraction=0.0, length=200)
    batches = train_batches(open_corpus(data), tokenizer, data)
    rows = [next(batches) for _ in range(2)]
    position = batches.get_state()
    batches.close()
    said = Counter()
    for batch in rows:
        for tokens, targets, segments, positions, weights in zip(
            batch.tokens, batch.targets, batch.segment_ids, batch.positions, batch.loss_weights, strict=True
        ):
            used = segments > 0
            for first in range(1, int(segments.max()) + 1, 2):
                answers, prompts = [], []
                for segment in (first, first + 1):
                    own = segments == segment
                    np.testing.assert_array_equal(positions[own], np.arange(own.sum()))
                    assert tokens[own][0] == tokenizer.bos_id and targets[own][-1] == tokenizer.eos_id
                    np.testing.assert_array_equal(tokens[own][1:], targets[own][:-1])
                    counted = targets[own & (weights > 0)]
                    assert counted[-2:].tolist() == [tokenizer.id_of("<end_of_turn>"), tokenizer.eos_id]
                    answers.append(tokenizer.decode(counted[:-2].tolist()))
                    prompts.append(tokens[own][: int(own.sum()) - len(counted) + 1].tolist())
                assert prompts[0] == prompts[1] and "2" not in answers
                said[tuple(answers)] += 1
            assert not weights[~used].any() and (np.diff(segments[used]) >= 0).all()
    assert set(said) == {("1", "7"), ("3", "4"), ("3", "9")}
    assert next(iter(position.values()))["documents"] == sum(said.values())


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ({"prompt": "a", "chosen": "b"}, "no field 'rejected'"),
        ({"chosen": "b", "rejected": "c"}, "no field 'prompt'"),
        ({"prompt": "a", "chosen": "b", "rejected": " b"}, "'chosen' and 'rejected' are the same"),
        ({"prompt": "a", "chosen": "b", "rejected": " "}, "'rejected' is empty"),
        ({"prompt": "a", "chosen": "b", "rejected": 3}, "'rejected' must be a text"),
        ({"prompt": 3, "chosen": "b", "rejected": "c"}, "'prompt' must be a text or a list of turns"),
        ({"prompt": TURNS[:2], "chosen": "b", "rejected": "c"}, "'prompt' must end with a turn of the user"),
        ({"chosen": [*TURNS, PAIRS[2]["chosen"][-1]], "rejected": "c"}, "must both be texts or both be lists"),
        (
            {"chosen": PAIRS[2]["chosen"], "rejected": [TURNS[0], {"role": "model", "content": "c"}]},
            "answer different prompts",
        ),
        ("[]", "expected a JSON object"),
    ],
)
def test_a_bad_pair_is_refused_by_file_and_line(tmp_path, line, problem):
    paths = write(tmp_path / "pairs.jsonl", [PAIRS[0], line])
    with pytest.raises(UserError, match=rf"pairs.jsonl:2: .*{problem}"):
        open_corpus(config("preference", paths=paths))


def test_a_pair_or_prompt_that_is_too_long_for_a_row_is_refused_by_file_and_line(tmp_path, tokenizer):
    data = config("preference", paths=write(tmp_path / "pairs.jsonl", PAIRS[:2]), length=64)
    with pytest.raises(UserError, match=r"pairs.jsonl:2: .* have \d+ tokens and a row has data.sequence_length=64"):
        check_documents_fit(open_corpus(data), tokenizer, data)
    long = {"prompt": "x" * 50, "answer": "y"}
    data = config("prompts", paths=write(tmp_path / "prompts.jsonl", [{"prompt": "x"}, long]), length=32)
    with pytest.raises(UserError, match=r"prompts.jsonl:2: prompt and answer have \d+ tokens"):
        check_documents_fit(open_corpus(data), tokenizer, data)


def test_every_prompt_has_a_row_of_its_own_with_its_reference_behind_it(tokenizer):
    data = config("prompts", task=TaskConfig("arithmetic", num_documents=20, largest=9), length=32, batch=4)
    corpus = open_corpus(data)
    for batch in validation_dataset(corpus, tokenizer, data):
        for tokens, segments, weights in zip(batch.tokens, batch.segment_ids, batch.loss_weights, strict=True):
            if not segments.any():
                continue
            prompt = tokenizer.decode(tokens[(segments > 0) & (weights == 0)].tolist())
            a, b = (int(number) for number in prompt.split("\n")[1].split("=")[0].split("+"))
            assert tokenizer.decode(tokens[weights > 0].tolist()) == str(a + b)


def test_a_problem_has_one_number_in_all_formats_so_that_the_same_ones_are_held_out():
    task = TaskConfig("arithmetic", num_documents=300, largest=12, operations="+-", seed=3)
    held_out = {}
    for format in ("chat", "preference", "prompts"):
        corpus = open_corpus(config(format, task=task, validation_fraction=0.1))
        held_out[format] = [corpus.text(document).split("\n")[0] for document in corpus.sources[0].validation]
    assert held_out["chat"] == held_out["preference"] == held_out["prompts"] and 10 < len(held_out["chat"]) < 60
    documents = GeneratedDocuments(task, "preference")
    assert len({document.prompt for document in documents}) == 300  # none twice
    for document in documents:
        assert eval_sum(document.prompt[0].content) == document.chosen != document.rejected


def eval_sum(question):
    sign = "-" if "-" in question else "+"
    a, b = (int(number) for number in question.rstrip("=").split(sign))
    return str(a - b if sign == "-" else a + b)


def test_a_wrong_answer_differs_in_one_digit():
    draw = np.random.default_rng(0)
    for answer in ("7", "10", "-38", "199"):
        for _ in range(50):
            wrong = wrong_answer(answer, draw)
            assert len(wrong) == len(answer) and sum(a != b for a, b in zip(wrong, answer, strict=True)) == 1
            assert str(int(wrong)) == wrong or wrong == "-08"[: len(wrong)]


@pytest.mark.parametrize(
    ("kind", "answer", "reference", "worth"),
    [
        ("exact", " 82\n", "82", 1),
        ("exact", "82.", "82", 0),
        ("number", "so 37 + 45 = 82.", "82", 1),
        ("number", "82 or 83", "82", 0),
        ("number", "none", "82", 0),
        ("pattern", "[12]", r"\[\d+\]", 1),
        ("pattern", "[12] ok", r"\[\d+\]", 0),
    ],
)
def test_computed_rewards(kind, answer, reference, worth):
    assert computed_reward(kind, answer, reference) == worth


@pytest.mark.parametrize(
    ("kind", "fields", "problem"),
    [
        ("exact", {}, "no field 'answer', which the reward 'exact' compares with"),
        ("number", {"answer": "x"}, "'answer' has no number"),
        ("pattern", {"answer": "("}, "'answer' is not a regular expression"),
    ],
)
def test_a_reference_that_says_nothing_is_refused(kind, fields, problem):
    with pytest.raises(UserError, match=rf"f:3: .*{problem}"):
        check_reference(parse_prompted({"prompt": "a", **fields}, "f:3"), kind)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: TaskConfig("arithmetic", operations="+/"), "must be some of"),
        (lambda: TaskConfig("arithmetic", largest=9, num_documents=101), r"must lie in 1 .. 100"),
        (lambda: DataConfig(task=TaskConfig("arithmetic")), "needs format 'chat', 'preference' or 'prompts'"),
        (lambda: config("chat", task=TaskConfig("arithmetic"), paths=("x.jsonl",)), "leave out data.paths"),
        (lambda: DataConfig(format="preference"), "needs packing 'first_fit', not 'concat'"),
        (lambda: DataConfig(format="prompts"), "needs packing 'single', not 'concat'"),
        (lambda: open_corpus(config("prompts")), "format 'prompts' needs paths of .jsonl prompts"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(make, problem):
    with pytest.raises(UserError, match=problem):
        make()
