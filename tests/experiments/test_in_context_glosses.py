"""Glosses spell out the made-up sentence and hold all that the English one says; only what follows them is scored."""

import random
import re

import pytest

from experiments.in_context_language import evaluation
from experiments.in_context_language.documents import Query, Task, make_document, make_prompts, training_record
from experiments.in_context_language.english import (
    ENGLISH,
    TENSES,
    Phrase,
    Sentence,
    count_words,
    draw_sentence,
    draw_short,
    write,
)
from experiments.in_context_language.evaluation import Setting, find_unseen
from experiments.in_context_language.glosses import MARKER, translation_in, write_gloss, write_order
from experiments.in_context_language.grammar import NUMBERS, Grammar, profile
from experiments.in_context_language.language import LanguageSize, make_language
from experiments.in_context_language.lessons import lesson, order_document
from experiments.in_context_language.morphemes import GRAMMATICAL, PLURAL, Word, spell
from experiments.in_context_language.prompts import DIRECTIONS, encode_prompt
from experiments.in_context_language.speech import parse, speak
from experiments.in_context_language.spelling import make_tokenizer
from experiments.in_context_language.synthetic import english_texts
from experiments.in_context_language.workloads import FEW_RULES, FULL, QUICK, without_glosses
from zoo.data import Tokenizer

PART_OF = {word: part for part, words in ENGLISH.items() for word in words}
TASKS: tuple[Task, Task] = ("gloss", "translate")
SAID = [(seed, split) for split in ("train", "test") for seed in range(40)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return make_tokenizer(english_texts())


def rebuild(words: list[Word], grammar: Grammar) -> Sentence:
    """The sentence out of glosses alone, no form is looked at, and the order of a language."""
    glosses = [tuple(morpheme.gloss for morpheme in word) for word in words]
    heads = [(i, next((g for g in word if g in PART_OF), None)) for i, word in enumerate(glosses)]
    part_at = {i: PART_OF[head] for i, head in heads if head}
    nouns = [i for i, part in part_at.items() if part == "noun"]

    def phrase(at: int) -> Phrase:
        noun = next(g for g in glosses[at] if g in PART_OF)
        plural = PLURAL in glosses[at]
        if grammar.number.startswith("word"):
            beside = at - 1 if grammar.number == "word before" else at + 1
            plural = 0 <= beside < len(glosses) and glosses[beside] == (PLURAL,)
        first, last = (
            at - (plural and grammar.number == "word before"),
            at + (plural and grammar.number == "word after"),
        )
        place = first - 1 if grammar.adjective == "before" else last + 1
        described = part_at.get(place) == "adjective"
        return Phrase(noun, plural, next(g for g in glosses[place] if g in PART_OF) if described else None)

    said = {gloss for word in glosses for gloss in word}
    prepositions = [head for i, head in heads if part_at.get(i) == "preposition"]
    place = None
    if prepositions:
        place = phrase(nouns.pop(0 if grammar.place == "first" else -1))
    (verb,) = (head for i, head in heads if head and "verb" in part_at[i])
    order = [unit for unit in grammar.order if unit != "V"]
    found = {"S": phrase(nouns[0])} if len(nouns) == 1 else dict(zip(order, map(phrase, nouns), strict=True))
    (tense,) = (tense for tense in TENSES if tense in said)
    preposition = prepositions[0] if prepositions else None
    return Sentence(found["S"], verb, found.get("O"), preposition, place, tense, "not" in said)


@pytest.mark.parametrize("split", ["train", "test"])
def test_what_is_said_is_the_forms_of_its_morphemes_and_their_glosses_tell_all_of_it(split):
    numbers = set()
    for seed in range(60):
        language, generator = make_language(seed, split), random.Random(seed)
        numbers.add(language.grammar.number)
        for _ in range(12):
            sentence = draw_sentence(generator, language.vocabulary)
            words = parse(sentence, language)
            assert " ".join("".join(morpheme.form for morpheme in word) for word in words) == speak(sentence, language)
            assert rebuild(words, language.grammar) == sentence
            for morpheme in (morpheme for word in words for morpheme in word):
                assert morpheme.gloss in (language.word_of if morpheme.gloss in PART_OF else GRAMMATICAL)
                assert morpheme.form or morpheme.gloss in TENSES
    assert numbers == set(NUMBERS)


def test_the_gloss_of_a_sentence_reads_like_the_word_list_in_both_directions():
    for seed, split in SAID:
        language = make_language(seed, split)
        words = parse(draw_sentence(random.Random(seed), language.vocabulary), language)
        said = " ".join(map(spell, words))
        for direction in DIRECTIONS:
            spelled = []
            for word in write_gloss(words, direction).split(","):
                tokens = word.split()
                for i, token in enumerate(tokens):
                    if token == "=":
                        gloss, form = (i - 1, i + 1) if direction == "from English" else (i + 1, i - 1)
                        known = tokens[gloss]
                        assert known in GRAMMATICAL or known in language.word_of
                        if known in language.word_of:
                            assert tokens[form] == language.word_of[known]
                known = {morpheme.gloss for part in words for morpheme in part} | {"="}
                spelled.append("".join(token for token in tokens if token not in known))
            assert " ".join(spelled) == said


def test_a_gloss_is_one_token_the_same_as_in_the_word_list_and_in_the_rules(tokenizer):
    for gloss in (*GRAMMATICAL, *PART_OF):
        (token,) = tokenizer.encode(f" {gloss}")
        assert tokenizer.encode(f"Gloss: {gloss} = mo")[2] == tokenizer.encode(f"* {gloss} = mo")[1] == token
    assert len(tokenizer.encode(f"Gloss:{MARKER}")) == 4


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_prompt_and_its_answer_are_the_tokens_of_the_training_document(direction, tokenizer):
    for seed, split in SAID[::8]:
        document = make_document(seed, split, "all", direction, 2, longest=3 if seed % 2 else None)
        content = training_record(document)["content"]
        trained = [tokenizer.bos_id, *(token for part in content for token in tokenizer.encode(part["text"]))]
        prompt, query = make_prompts(document)[0], document.queries[0]
        own = encode_prompt(prompt, tokenizer) + tokenizer.encode(query.answer)
        assert trained[: len(own)] == own and prompt.text.endswith(f"{query.source}\nGloss:")
        assert translation_in(query.answer) == prompt.reference == query.translation
        asked = [part for part in content if part["text"] in (query.rules, query.after_rules)]
        assert query.answer == query.rules + query.after_rules and [part["loss"] for part in asked[:2]] == [True, True]
        assert not any(part["loss"] for part in asked[2:] if part["text"] == query.rules)
        assert len(own) - len(encode_prompt(prompt, tokenizer)) <= evaluation.MOST_ANSWER_TOKENS


def test_examples_are_plain_and_what_is_asked_can_be_without_a_gloss():
    glossed, plain = (make_document(3, "test", "sentences", "from English", 4, task=task) for task in TASKS)
    assert glossed.examples == plain.examples
    assert [query.pair for query in glossed.queries] == [query.pair for query in plain.queries]
    assert not any(query.gloss for query in plain.queries) and "Gloss" not in make_prompts(plain)[0].text
    assert make_prompts(glossed)[0].text.count("Gloss") == 1


def test_training_without_glosses_never_asks_for_one(tokenizer):
    stages = without_glosses(FULL).stages
    assert {stage.glosses for stage in stages} == {False} and not any("order" in stage.kinds for stage in stages)
    for stage in stages:
        for seed in range(8):
            record, _ = lesson(stage, seed, lambda text: len(tokenizer.encode(text)))
            assert not {"Gloss:", "Order:"} & set("".join(part["text"] for part in record["content"]).split())


def test_the_order_of_glosses_is_asked_for_without_any_form():
    document = order_document(5, "test", 6, LanguageSize(), 5)
    prompts, record = make_prompts(document), training_record(document)
    assert document.book and document.context == "rules"
    for prompt, query in zip(prompts, document.queries, strict=True):
        assert prompt.question == f"English: {query.source}\nOrder:"
        assert query.answer == f"{query.rules}{MARKER} {query.translation}\n"
        assert set(query.translation.replace(",", "").split()) <= {*document.language.word_of, *GRAMMATICAL}
    counted = [document.queries[0].rules, *(query.after_rules for query in document.queries)]
    assert [part["text"] for part in record["content"] if part["loss"]] == counted
    sentence = Sentence(Phrase("dog", True, "small"), "wait", tense="past")
    words = parse(sentence, make_language(1, "train", LanguageSize(40, 18, 10, 16, 8)))
    assert write_order(words).count(",") == len(words) - 1 and "dog" in write_order(words).replace(",", "").split()


def test_only_what_follows_the_last_marker_is_the_translation():
    assert translation_in(" dog = mo Answer: mo") == "mo"
    assert translation_in(" dog = mo Answer: ka Answer: mo ti") == "mo ti"
    assert translation_in(" dog = mo") == translation_in("") == translation_in("mo Answer") == ""


def test_measuring_ignores_the_gloss_and_an_answer_without_the_marker_is_empty(monkeypatch):
    setting = Setting("none", "into English", 0)
    queries = [q for d in evaluation.documents_of(setting, FULL) for q in d.queries]

    def answers(given):
        monkeypatch.setattr(evaluation, "answer", lambda model, tokenizer, prompts, **_: given)

    answers([f" nonsense{MARKER} {query.translation}" for query in queries])
    tokenizer = make_tokenizer(["a"])
    reached = evaluation.measure(None, tokenizer, setting, FULL)
    assert reached.score.exact == 100 == reached.score.chrf
    answers([query.translation for query in queries])
    assert evaluation.measure(None, tokenizer, setting, FULL).score.chrf == 0
    plain = without_glosses(FULL)
    assert evaluation.measure(None, tokenizer, setting, plain).score.exact == 100


@pytest.mark.parametrize("stage", QUICK.stages + FULL.stages, ids=lambda stage: stage.name)
def test_a_stage_is_tested_with_what_is_unseen_of_its_kind(stage, monkeypatch):
    asked = []

    def answer(model, tokenizer, prompts, **_):
        asked.extend(prompts)
        if stage.tested == "facts":
            right = [prompt.reference for prompt in prompts]
        elif stage.tested == "rules":
            documents = (order_document(seed, "test", 2, stage.size, stage.longest) for seed in range(3))
            right = [query.answer.strip() for document in documents for query in document.queries]
        else:
            right = [f"{MARKER} {prompt.reference}" for prompt in prompts]
        return [*right[:-1], ""]

    monkeypatch.setattr(evaluation, "answer", answer)
    found = find_unseen(None, None, stage, 3)
    of = {"facts": {"facts"}, "rules": {"rules"}, "order": {"from English"}}.get(stage.tested, set(DIRECTIONS))
    assert set(found) == of and 0.5 < max(found.values()) < 1
    kinds = {"facts": "facts", "words": "word list", "sentences": "rules + word list"}
    assert {prompt.condition for prompt in asked} == {kinds.get(stage.tested, "rules")}
    if stage.tested != "facts":
        assert all(len(prompt.source.split()) == 1 for prompt in asked) == (stage.tested == "words")
        head = "Order:" if stage.tested in ("rules", "order") else "Gloss:"
        assert all(prompt.question.endswith(head) for prompt in asked)


def test_short_sentences_have_every_number_of_words_up_to_the_longest():
    generator, language = random.Random(0), make_language(0, "train")
    for longest in (1, 3, 5):
        drawn = [draw_short(generator, language.vocabulary, longest) for _ in range(200)]
        phrases = [said for said in drawn if isinstance(said, Phrase)]
        lengths = {count_words(said) for said in drawn if isinstance(said, Sentence)}
        assert lengths == set(range(2, longest + 1)) and bool(phrases)
        assert all(write(said).startswith("the ") and speak(said, language) for said in drawn)


def test_the_answer_of_a_query_ends_its_line():
    assert Query("dog", "mo", " dog = mo").answer == " dog = mo Answer: mo\n"
    assert Query("dog", "mo").answer == " mo\n"
    assert Query("dog", "mo", " dog = mo", " tense word:").answer == " tense word: dog = mo Answer: mo\n"


@pytest.mark.parametrize("size", [LanguageSize(), FEW_RULES], ids=["rich", "plain"])
def test_answers_say_the_rules_in_short_and_these_are_the_languages(size, tokenizer):
    short = {}
    for seed in range(20):
        document = make_document(seed, "train", "rules", "from English", 0, 3, size)
        first = document.queries[0]
        assert {query.rules for query in document.queries} == {first.rules} and first.answer.startswith(first.rules)
        assert short.setdefault(first.rules, profile(document.language.grammar)) == profile(document.language.grammar)
        assert tokenizer.decode(tokenizer.encode(first.rules)) == first.rules
        assert all(len(tokenizer.encode(f" {word}")) == 1 for word in re.findall(r"\w+", first.rules))
    plain = make_document(0, "train", "rules", "from English", 0, 3, size, task="translate")
    assert not plain.queries[0].rules and len(short) > 10
