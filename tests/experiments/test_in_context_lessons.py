"""The documents that stages of the training on made-up languages read."""

import dataclasses
import json
import random

import pytest

from experiments.in_context_language.documents import CONTEXTS, make_document, training_record
from experiments.in_context_language.english import draw_sentence, write
from experiments.in_context_language.facts import FactsConfig, draw_facts, facts_prompts, facts_record
from experiments.in_context_language.glosses import MARKER
from experiments.in_context_language.language import LanguageSize, make_language, split_of_word
from experiments.in_context_language.lessons import KINDS, lesson, lessons, lookup_document, recall_record
from experiments.in_context_language.prompts import DIRECTIONS
from experiments.in_context_language.spelling import make_tokenizer
from experiments.in_context_language.stages import Stage
from experiments.in_context_language.synthetic import english_texts
from experiments.in_context_language.workloads import FULL, QUICK, SEVEN_WORDS
from zoo.data import Tokenizer

STAGES = [pytest.param(stage, id=f"{name}, {stage.name}") for name, workload in (("full", FULL), ("quick", QUICK))
          for stage in workload.stages]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return make_tokenizer(english_texts())


def counted(record: dict) -> str:
    return "".join(part["text"] for part in record["content"] if part["loss"])


def test_every_form_of_an_english_word_is_one_token_and_a_made_up_word_is_its_letters(tokenizer):
    generator, language = random.Random(1), make_language(0, "test")
    for _ in range(200):
        text = " " + write(draw_sentence(generator, make_language(generator.randrange(50)).vocabulary))
        text = text.replace(" do ", " did ")  # the one short word
        assert len(tokenizer.encode(text)) == len(text.split())
    for english, _, word in language.words:
        listed = tokenizer.encode(f"* {english} = {word}\n")
        assert tokenizer.encode(f" {english}") == listed[1:2] and tokenizer.encode(f" {word}") == listed[3:-1]
        assert [tokenizer.token_strings()[i] for i in listed[3:]] == [c.encode() for c in f" {word}\n"]
    assert tokenizer.vocab_size <= min(FULL.vocab_size, QUICK.vocab_size)


def test_texts_come_back_from_their_tokens_and_the_tokenizer_is_always_the_same(tokenizer):
    assert make_tokenizer(english_texts()).fingerprint == tokenizer.fingerprint
    for context in CONTEXTS:
        for part in training_record(make_document(3, "test", context, "into English", 2))["content"]:
            assert tokenizer.decode(tokenizer.encode(part["text"])) == part["text"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_reads_documents_of_its_kinds_that_fit_with_loss_on_translations_alone(stage, tokenizer):
    count = lambda text: len(tokenizer.encode(text))  # noqa: E731
    seen = set()
    for seed in range(60):
        record, tokens = lesson(stage, seed, count)
        assert tokens <= stage.sequence_length
        direction, kind = record["kind"].split(": ")
        seen.add(kind)
        if kind == "facts":
            continue
        language = make_language(seed, "train", stage.size)
        own = {word for _, _, word in language.words}
        lines = counted(record).splitlines()
        if kind == "rules" and "order" in stage.kinds:  # glosses without forms
            assert "Gloss" not in counted(record) and len(lines) <= stage.orders_asked
        elif kind == "recall":
            lines = [line.rpartition("=")[2] for line in lines]
        elif stage.glosses:
            assert all(line.count(MARKER) == 1 for line in lines)
            lines = [line.partition(MARKER)[2] for line in lines]
        assert lines and all(line.startswith(" ") for line in lines)
        if kind in ("recall", "word list") and "lookup" in stage.kinds and len(lines[0].split()) == 1:
            wanted = own if direction == "from English" else {english for english, _, _ in language.words}
            assert {line.strip() for line in lines} <= wanted
        told = "".join(part["text"] for part in record["content"] if not part["loss"])
        assert ("A grammar of" in told) == (kind in CONTEXTS and bool({"rules", "grammar"} & set(CONTEXTS[kind])))
        assert ("Words of" in told) == (kind == "recall" or "words" in CONTEXTS[kind])
        assert all(split_of_word(word) == "train" for word in own)
    assert seen == {{"lookup": "word list", "order": "rules"}.get(kind, kind) for kind in stage.kinds}
    assert set(stage.kinds) <= set(KINDS)


def test_words_are_asked_for_as_the_list_has_them_or_as_sentences_are():
    for direction in DIRECTIONS:
        document = lookup_document(4, "train", direction, 30, SEVEN_WORDS)
        assert len(set(document.queries)) < len(document.queries) == 30  # with replacement
        asked = [query.pair for query in document.queries]
        pairs = [pair if direction == "from English" else pair[::-1] for pair in asked]
        assert set(pairs) <= {(english, word) for english, _, word in document.language.words}
        parts = recall_record(document)["content"][1:]
        text = "".join(part["text"] for part in parts)
        into = direction == "into English"
        counts = "".join(part["text"] for part in parts if part["loss"])
        lines = (f"{source[1:]} = {translation}\n" if into else f" {translation}\n" for source, translation in asked)
        assert counts == "".join(lines)
        assert text == "".join(f"* {source} = {translation}\n" for source, translation in asked)
        name = document.language.name
        first, second = ("English", name) if direction == "from English" else (name, "English")
        source, translation = asked[0]
        told = "".join(part["text"] for part in training_record(document)["content"])
        glossed = f"Gloss: {source} = {translation} Answer: {translation}\n"
        assert f"Translate\n{first}: {source}\n{glossed}" in told
        plain = lookup_document(4, "train", direction, 30, SEVEN_WORDS, task="translate")
        told = "".join(part["text"] for part in training_record(plain)["content"])
        assert f"Translate\n{first}: {source}\n{second}: {translation}\n" in told


def test_what_is_too_long_loses_example_sentences_and_then_questions(tokenizer):
    count = lambda text: len(tokenizer.encode(text))  # noqa: E731
    stage = Stage("a stage", ("word list + sentences",), 4000, 1, 1, questions=3, most_shots=1)
    whole, length = lesson(stage, 2, count)
    shots = dataclasses.replace(stage, most_shots=64, sequence_length=length + 60)
    cut, tokens = lesson(shots, 2, count)
    assert tokens <= length + 60 and counted(cut) == counted(whole) and len(counted(whole).splitlines()) == 3
    fewer, tokens = lesson(dataclasses.replace(stage, sequence_length=length - 1), 2, count)
    assert tokens < length and len(counted(fewer).splitlines()) == 2
    plain, _ = lesson(dataclasses.replace(stage, glosses=False), 2, count)
    assert len(counted(plain).splitlines()) == 4 and MARKER not in counted(plain)  # the example counts too
    with pytest.raises(ValueError, match="'a stage': a document of the kind 'word list \\+ sentences' has"):
        lesson(dataclasses.replace(stage, sequence_length=100), 2, count)
    with pytest.raises(ValueError, match="no kind of document is called 'look up'"):
        lesson(dataclasses.replace(stage, kinds=("look up",)), 2, count)


def test_there_are_as_many_documents_as_a_stage_reads(tokenizer):
    stage = dataclasses.replace(QUICK.stages[0], steps=2)
    found = list(lessons(stage, tokenizer, 7))
    tokens = [sum(len(tokenizer.encode(part["text"])) for part in record["content"]) + 1 for record in found]
    assert sum(tokens[:-1]) < stage.steps * stage.batch_size * stage.sequence_length <= sum(tokens)
    assert len({json.dumps(record) for record in found}) == len(found)


def test_facts_count_what_can_be_looked_up_and_test_rows_are_other_rows(tokenizer):
    config = FactsConfig(facts=3, words=(1, 3), letters=(2, 5))
    for seed in range(30):
        facts = draw_facts(seed, "train", config, 6)
        assert len(dict(facts.pairs)) == 3 and set(facts.asked) <= set(facts.pairs)
        assert facts != draw_facts(seed, "test", config, 6)
        record = facts_record(facts)
        text = "".join(part["text"] for part in record["content"])
        assert text == "".join(f"* {left} = {right}\n" for left, right in (*facts.pairs, *facts.asked))
        lines = [f"{left.partition(' ')[2]} {right}".strip() for left, right in facts.asked]
        assert [line.strip() for line in counted(record).splitlines()] == [
            line if " " in left else right for line, (left, right) in zip(lines, facts.asked, strict=True)
        ] or all(right in counted(record) for _, right in facts.asked)
        # Pieces are tokenised one by one: the same ids as the told facts have, but for the document's first token.
        pieces = [token for part in record["content"][1:] for token in tokenizer.encode(part["text"])]
        assert pieces == [token for left, right in facts.asked for token in tokenizer.encode(f"* {left} = {right}\n")]
        for prompt in facts_prompts(facts):
            assert text.startswith(prompt.context[0]) and f"{prompt.question}{prompt.reference}\n" in text


def test_the_vocabulary_of_a_stage_is_one_that_languages_can_have():
    assert all(isinstance(stage.size, LanguageSize) for stage in (*FULL.stages, *QUICK.stages))
    assert len(make_language(0, "train", SEVEN_WORDS).words) == 7
