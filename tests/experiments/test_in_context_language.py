"""Made-up languages can be learned from their books and nothing leaks; real material holds no test sentence."""

import dataclasses
import json
import random
import sys
from itertools import product

import pytest
from flax import nnx

from experiments.in_context_language import mtob, scores
from experiments.in_context_language.answers import answer
from experiments.in_context_language.baselines import WordByWord, baselines, table
from experiments.in_context_language.book import grammar_text, read_book, word_list_text, write_book
from experiments.in_context_language.documents import CONTEXTS, make_document, make_prompts, training_record
from experiments.in_context_language.english import ENGLISH, Phrase, Sentence, draw_sentence, read, write
from experiments.in_context_language.grammar import NEGATIONS, ORDERS, PLAIN_AFFIXES, SIDES, profile, split_of
from experiments.in_context_language.language import LanguageSize, make_language, split_of_word
from experiments.in_context_language.materials import (
    Entry,
    HeldOut,
    Material,
    Pair,
    Paragraph,
    load_kalamang,
    load_lojban,
    without_tests,
)
from experiments.in_context_language.prompts import Section, cut_sections, encode_prompt
from experiments.in_context_language.rules import rules_of
from experiments.in_context_language.scores import first_line, score
from experiments.in_context_language.speech import speak, understand
from experiments.in_context_language.synthetic import SHOTS, SyntheticConfig, write_synthetic
from experiments.in_context_language.workloads import FEW_RULES
from zoo.data import DataConfig, load_tokenizer, open_corpus, train_tokenizer
from zoo.data.rendering import render_text
from zoo.errors import UserError
from zoo.models.gemini import Gemini, GeminiConfig

LANGUAGES = [(seed, split) for split in ("train", "test") for seed in range(6)]
SIZES = [pytest.param(LanguageSize(), id="rich"), pytest.param(FEW_RULES, id="plain")]
DIVIDED_BY = {False: ("order", "adposition", "negation"), True: ("order", "adjective", "number", "tense")}
"""Rules whose combinations are held out, of rich and of plain languages."""


def words_of(text: str) -> set[str]:
    return set(scores.normalise(text).split())


# ---- made-up languages


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("examples", [False, True])
def test_a_reader_of_the_book_alone_translates_every_sentence_that_it_never_saw(examples, size):
    for seed, split in LANGUAGES:
        language = make_language(seed, split, size)
        book = write_book(language, seed)
        learned = read_book(grammar_text(book, examples) + word_list_text(book))
        assert learned.plain == language.plain == size.plain
        for query in make_document(seed, split, "all", "from English", 2, 12, size).queries:
            assert speak(read(query.source), learned) == query.translation


@pytest.mark.parametrize("size", SIZES)
def test_the_reader_of_the_book_translates_back_and_every_sentence_has_one_reading(size):
    for seed, split in LANGUAGES[::3]:
        book = write_book(make_language(seed, split, size), seed)
        learned = read_book(grammar_text(book) + word_list_text(book))
        for query in make_document(seed, split, "none", "into English", 2, 4, size).queries:
            assert [write(sentence) for sentence in understand(query.source, learned)] == [query.translation]


@pytest.mark.parametrize("size", SIZES)
def test_every_rule_of_the_book_is_needed(size):
    told = {"articles", "affixes of nouns"}  # what is the same in every language can be left out
    language = make_language(3, "train", size)
    book = write_book(language)
    for number, rule in enumerate(rules_of(size.plain)):
        rules = (*book.rules[:number], *book.rules[number + 1 :])
        shorter = dataclasses.replace(book, rules=rules, examples=book.examples[1:])
        if rule.topic in told:
            assert read_book(grammar_text(shorter) + word_list_text(book)).grammar == language.grammar
        else:
            with pytest.raises(ValueError, match="does not say"):
                read_book(grammar_text(shorter) + word_list_text(book))


def test_another_grammar_gives_other_sentences():
    language = make_language(1, "train")
    nouns, verb = language.vocabulary["noun"], language.vocabulary["transitive verb"][0]
    sentence = Sentence(Phrase(nouns[0], True), verb, Phrase(nouns[1]), tense="past", negated=True)
    for field, values in (("order", ORDERS), ("negation", NEGATIONS)):
        grammars = [dataclasses.replace(language.grammar, **{field: value}) for value in values]
        said = {speak(sentence, dataclasses.replace(language, grammar=grammar)) for grammar in grammars}
        assert len(said) == len(values)


def test_english_has_one_wording_for_each_meaning():
    for seed in range(200):
        sentence = draw_sentence(random.Random(seed), ENGLISH)
        assert read(write(sentence)) == sentence
    assert sum(map(len, ENGLISH.values())) == len(set().union(*ENGLISH.values()))
    for wrong in ("the dog waited the cat", "the dogs waits", "a dog waits", "the dog waits near", "the dog chases"):
        with pytest.raises(ValueError):
            read(wrong)


@pytest.mark.parametrize("size", SIZES)
def test_languages_of_training_and_testing_share_no_word_and_no_combination_of_rules(size):
    languages = {
        split: [make_language(s, kind, size) for s, kind in LANGUAGES if kind == split] for split in ("train", "test")
    }
    for split, members in languages.items():
        assert {split_of(language.grammar) for language in members} == {split}
        assert {split_of_word(word) for language in members for _, _, word in language.words} == {split}
    combinations = {
        split: {tuple(getattr(m.grammar, name) for name in DIVIDED_BY[size.plain]) for m in members}
        for split, members in languages.items()
    }
    assert not combinations["train"] & combinations["test"]
    assert size.plain or len({profile(m.grammar) for m in languages["train"]}) == len(languages["train"])


@pytest.mark.parametrize("size", SIZES)
def test_any_part_of_a_held_out_combination_of_rules_is_trained_on(size):
    grammar, names = make_language(0, "train", size).grammar, DIVIDED_BY[size.plain]
    values = (ORDERS, SIDES, PLAIN_AFFIXES, PLAIN_AFFIXES) if size.plain else (ORDERS, SIDES, NEGATIONS)
    combinations = {
        rules: split_of(dataclasses.replace(grammar, **dict(zip(names, rules, strict=True))))
        for rules in product(*values)
    }
    trained = [rules for rules, split in combinations.items() if split == "train"]
    assert (len(trained), len(combinations)) == ((42, 48) if size.plain else (48, 60))
    for left_out in range(len(names)):
        parts = lambda some: {rules[:left_out] + rules[left_out + 1 :] for rules in some}  # noqa: B023, E731
        assert parts(trained) == parts(combinations)


def test_each_value_of_a_plain_rule_is_tested():
    grammar = make_language(0, "train", LanguageSize(prepositions=0)).grammar
    values = (ORDERS, SIDES, PLAIN_AFFIXES, PLAIN_AFFIXES)
    tested = [
        rules
        for rules in product(*values)
        if split_of(dataclasses.replace(grammar, **dict(zip(DIVIDED_BY[True], rules, strict=True)))) == "test"
    ]
    for number, all_values in enumerate(values):
        counted = [[rules[number] for rules in tested].count(value) for value in all_values]
        assert len(set(counted)) == 1 and sum(counted) == len(tested)


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_context_holds_what_its_name_says_and_never_the_sentence_that_is_asked(context):
    for direction in ("from English", "into English"):
        document = make_document(5, "test", context, direction, shots=16)
        (prompt, *_) = make_prompts(document)
        parts, given = CONTEXTS[context], "".join(prompt.context)
        assert ("A grammar of" in given) == bool({"rules", "grammar"} & set(parts))
        assert ("For example" in given) == ("grammar" in parts)
        assert ("Words of" in given) == ("words" in parts)
        assert given.count("English: ") == (16 if "sentences" in parts else 0)
        for query in document.queries:
            assert query.source not in given and query.translation not in given
        assert prompt.text.endswith(":") and prompt.source in prompt.question


def test_more_shots_hold_fewer_and_ask_the_same():
    documents = [make_document(2, "test", "sentences", "into English", shots) for shots in SHOTS[:6]]
    for fewer, more in zip(documents, documents[1:]):
        assert more.examples[: len(fewer.examples)] == fewer.examples and more.queries == fewer.queries
    assert [len(document.examples) for document in documents] == [1, 2, 4, 8, 16, 32]


def test_training_reads_the_documents_and_prompts_are_tokenised_as_they_are(tmp_path):
    config = SyntheticConfig(tmp_path, train_documents=40, test_languages=1, most_test_shots=4)
    written = write_synthetic(config)
    records = [json.loads(line) for line in written["train"].read_text().splitlines()]
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    data = DataConfig((str(written["train"]),), format="interleaved", packing="first_fit", validation_fraction=0)
    assert open_corpus(data).num_train_documents == len(records) == 40

    document = make_document(7, "train", "all", "from English", shots=3)
    content = training_record(document)["content"]
    prompt = make_prompts(document)[0]
    (tmp_path / "one.jsonl").write_text(json.dumps(training_record(document)) + "\n")
    one = dataclasses.replace(data, paths=(str(tmp_path / "one.jsonl"),))
    ids, weights = render_text(open_corpus(one).sources[0].train[0], tokenizer)
    begin = encode_prompt(prompt, tokenizer)
    said = tokenizer.encode(document.queries[0].answer)
    assert ids[: len(begin) + len(said)] == begin + said
    assert weights[len(begin) : len(begin) + len(said)] == [1] * len(said)
    counted = "".join(part["text"] for part in content if part["loss"])
    told = "".join(f" {translation}\n" for _, translation in document.examples)
    rules = document.queries[0].rules  # those of the other answers do not count
    assert counted == told + rules + "".join(query.after_rules for query in document.queries)


def test_wrong_sizes_and_contexts_are_named():
    with pytest.raises(UserError, match="1 .. 40 words of the kind noun, not 41"):
        LanguageSize(nouns=41)
    with pytest.raises(UserError, match="1 .. 40 words of the kind noun, not 0"):
        LanguageSize(nouns=0)
    with pytest.raises(UserError, match="0 .. 8 words of the kind preposition, not -1"):
        LanguageSize(prepositions=-1)
    assert LanguageSize(prepositions=0).plain and not LanguageSize().plain
    with pytest.raises(UserError, match="unknown context 'sentence'; did you mean 'sentences'"):
        make_document(0, "train", "sentence", "from English")


def test_the_same_seed_writes_the_same_documents(tmp_path):
    config = SyntheticConfig(tmp_path / "a", train_documents=5, test_languages=1, most_test_shots=2)
    first, second = write_synthetic(config), write_synthetic(dataclasses.replace(config, folder=tmp_path / "b"))
    assert all(first[split].read_bytes() == second[split].read_bytes() for split in first)


# ---- prompts


def test_what_is_too_long_keeps_the_same_share_of_every_section_and_the_highest_ranks_go_first():
    sections = [
        Section("head ", tuple(f"{i} " for i in range(8)), "foot "),
        Section("", ("a ", "b ", "c ", "d "), ranks=(3, 0, 2, 1)),
    ]
    count = lambda text: len(text.split())  # noqa: E731
    cut = cut_sections(sections, 2 + 6, count)
    assert cut[0].items == ("0 ", "1 ", "2 ", "3 ") and cut[1].items == ("b ", "d ")
    assert sum(count(piece) for section in cut for piece in section.pieces) == 8
    assert [section.items for section in cut_sections(sections, 100, count)] == [s.items for s in sections]
    with pytest.raises(UserError, match="budget of 1 tokens is below the 2"):
        cut_sections(sections, 1, count)


# ---- real languages, and a small one in their stead

PAIRS = tuple(Pair(f"mo {a}ka la {b}", f"The {a} sees the {b}.") for a in ("dog", "cat", "owl", "fox") for b in "xyz")
TINY = Material(
    "Tiny",
    "A grammar of Tiny",
    (Entry("mo", "to see; to look at", "verb"), Entry("dogka", "dog (an animal)"), Entry("lax", "x")),
    PAIRS,
    ((Paragraph("mo means to see", False), Paragraph("mo dogka la x", True), Paragraph("The dog sees the x.", True)),),
    PAIRS[:2],
    {"into English": PAIRS[:1], "from English": (Pair("mo pigka la y", "The pig sees the y."),)},
)
TITLE = '"A grammar of Tiny": START OF GRAMMAR BOOK'


def tokens(text: str) -> int:
    return len(text.split())


def test_what_holds_a_test_sentence_is_taken_out_even_over_several_lines():
    clean = without_tests(TINY)
    assert PAIRS[0] not in clean.sentences and len(clean.sentences) == len(PAIRS) - 1
    assert clean.book_examples == PAIRS[1:2]
    assert [paragraph.text for paragraph in clean.chapters[0]] == ["mo means to see"]
    split = (Paragraph("so: Mo dogka,", False), Paragraph("la x!", True), Paragraph("the dog sees the cat", True))
    assert without_tests(dataclasses.replace(TINY, chapters=(split,))).chapters == (split[2:],)


def test_the_prompt_is_that_of_the_gemini_report():
    translator = mtob.Translator(without_tests(TINY), tokens)
    (prompt,) = translator.prompts("Sa+G+Wa", "into English")
    task = 'translating the following sentence from Tiny to English: "mo dogka la x".'
    remember = f"Remember that you are tasked with {task}"
    expected = [
        f"You are tasked with {task}\nYou will be given a field linguistics grammar book, a bilingual word list, "
        "and a collection of parallel Tiny/English sentences to aid you.\n"
        f"Here is the book, {TITLE}\n\nmo means to see\n\nEND OF GRAMMAR BOOK The grammar book is now over. "
        f"{remember}\nNow here is the bilingual word list: START OF WORD LIST\n\nmo: to see; to look at\n",
        f"\nEND OF WORD LIST The bilingual word list is now over. {remember} You will use the same style as the "
        "parallel sentences immediately below.\nNow here is the collection of parallel sentences: START OF PARALLEL "
        "SENTENCES\n\nTiny: mo dogka la y\nEnglish: The dog sees the y.\n",
        "\nEND OF PARALLEL SENTENCES The collection of parallel sentences is now over.\nNow translate the following "
        "sentence from Tiny to English, using the style from the parallel sentences immediately above. Translate: "
        '"mo dogka la x".\n\nI understand that you may not be familiar enough with Tiny to make a confident '
        "translation, but please give your best guess. Respond with only the translation and no other text.\n",
    ]
    place = 0
    for part in expected:
        assert part in prompt.text[place:]
        place = prompt.text.index(part, place) + len(part)
    assert prompt.text.startswith(expected[0]) and prompt.text.endswith(expected[2])


@pytest.mark.parametrize("condition", mtob.CONDITIONS)
def test_no_context_holds_a_test_sentence_or_its_translation(condition):
    material = without_tests(TINY)
    held_out = HeldOut(pair for pairs in material.tests.values() for pair in pairs)
    for direction in ("into English", "from English"):
        for prompt in mtob.Translator(material, tokens).prompts(condition, direction):
            assert not held_out.found_in([prompt.text.replace(prompt.source, "")])
            assert (TITLE in prompt.text) == any(part[0] == "G" and part != "Ge" for part in condition.split("+"))
            assert ("START OF WORD LIST" in prompt.text) == ("W" in condition)
            assert ("START OF PARALLEL" in prompt.text) == ("S" in condition or condition == "Ge")


def test_text_without_examples_and_examples_alone_are_the_two_halves_of_the_book():
    translator = mtob.Translator(TINY, tokens)
    text = translator.sections("Gt", "", "into English").items
    examples = translator.sections("Ge", "", "into English").items
    assert text == ("mo means to see\n",)
    assert examples == tuple(f"Tiny: {pair.foreign}\nEnglish: {pair.english}\n" for pair in PAIRS[:2])


def test_a_prompt_fits_its_budget_and_wrong_conditions_are_named():
    translator = mtob.Translator(without_tests(TINY), tokens)
    (prompt,) = translator.prompts("Wa+Sa", "from English", budget=200)
    assert 150 < tokens(prompt.text) <= 200
    for condition, message in {
        "X": "no part 'X'",
        "W+Wa": "one part of each kind",
        "S+Ge": "one part of each kind",
        "-+W": "only by itself",
    }.items():
        with pytest.raises(UserError, match=message):
            translator.prompts(condition, "into English")
    with pytest.raises(UserError, match="nothing for 'W' on Tiny"):
        mtob.Translator(dataclasses.replace(TINY, entries=()), tokens).prompts("W", "into English")


def test_baselines_need_no_model():
    found = baselines(without_tests(TINY), "into English")
    assert {name: translate("mo dogka la x") for name, translate in found.items()} == {
        "copy the source": "mo dogka la x",
        "word by word": "See dog la x.",
        "nearest example, n-grams": "The dog sees the y.",
        "nearest example, common substring": "The dog sees the y.",
    }
    assert WordByWord(TINY, "from English")("The dog looked at the x.") == "dogka mo mo lax"


def test_translations_are_scored_by_chrf_and_exact_matches():
    pytest.importorskip("sacrebleu", reason="the extra `evaluation` is not installed")
    perfect = score(["The dog sees.", "A cat!"], ["the dog sees", "A cat!"])
    assert perfect.exact == 100 and 80 < perfect.chrf < 100  # chrF minds capitals
    half = score(["The dog sees", "zzz"], ["The dog sees", "A cat"])
    assert half.exact == 50 and half.low < half.chrf < half.high
    assert score(["abc"], ["abc"]).chrf == 100 and score(["xyz"], ["abc"]).chrf == 0
    rows = table([without_tests(TINY)])
    assert len(rows) == 3 and len({len(row) for row in rows}) == 1


def test_without_sacrebleu_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(UserError, match="pip install '.\\[evaluation\\]'"):
        score(["a"], ["a"])


@pytest.mark.slow
def test_what_a_model_answers_does_not_depend_on_the_other_prompts(tmp_path):
    document = make_document(4, "test", "word list", "into English", queries=3)
    prompts = make_prompts(document)
    tokenizer = train_tokenizer([prompt.text for prompt in prompts] * 20, 320)
    config = GeminiConfig(vocab_size=320, embed_dim=16, num_layers=1, num_heads=2, head_dim=8, hidden_dim=32,
                          sliding_window=64, max_position_embeddings=2048)  # fmt: skip
    model = Gemini(config, rngs=nnx.Rngs(0))
    together = answer(model, tokenizer, prompts, max_new_tokens=8, batch_size=3)
    apart = [answer(model, tokenizer, [prompt], max_new_tokens=8, batch_size=1)[0] for prompt in prompts]
    assert together == apart and len(together) == 3
    with pytest.raises(UserError, match="smaller budget"):
        answer(model, tokenizer, prompts, max_new_tokens=2000)


def test_the_answer_is_the_first_line():
    assert first_line('\n "A dog."\nBecause ...') == "A dog." and first_line("") == ""


@pytest.mark.parametrize("load", [load_kalamang, load_lojban])
def test_real_material_holds_no_test_sentence(shared_dir, load):
    material = load(shared_dir)
    tests = [pair for pairs in material.tests.values() for pair in pairs]
    assert len(tests) == len(set(tests)) == 100
    texts = [text for pair in (*material.sentences, *material.book_examples) for text in (pair.foreign, pair.english)]
    texts += [entry.english for entry in material.entries]
    texts += [paragraph.text for chapter in material.chapters for paragraph in chapter]
    sought = [f" {scores.normalise(text)} " for pair in tests for text in (pair.foreign, pair.english)]
    joined = f" {scores.normalise(' | '.join(texts))} "
    assert not [text for text in sought if text in joined]
    assert len(material.entries) > 1000 and len(material.sentences) > 700
    assert all(any(p.is_example for p in chapter) for chapter in material.chapters[2:-1])
