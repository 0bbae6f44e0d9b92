"""The corpus builder, divisions, the corpus table, and the linear model on corpora made here."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.relation_extraction import build_dataset, leakage, linear
from experiments.relation_extraction.bags import make_bags
from experiments.relation_extraction.build_dataset import Rules, build, candidates, capped, write_corpus
from experiments.relation_extraction.corpus import Corpus, read_corpus
from experiments.relation_extraction.corpus_table import corpus_table, row_of
from experiments.relation_extraction.features import Rows, bag_features, sentence_features, sparse, vocabulary
from experiments.relation_extraction.linked import LinkedSentence, read_facts, read_sentences
from experiments.relation_extraction.logistic import fit, minimised
from experiments.relation_extraction.metrics import area, curve_of
from experiments.relation_extraction.reader import Instance, Mention, Relations
from experiments.relation_extraction.splits import by_language, by_pair, by_sentence, divided, overlaps
from zoo.errors import UserError

FACTS = {("A", "B"): ("capital", "located"), ("C", "B"): ("located",)}


def linked(*entities: str, language: str = "en", words: str = "and") -> LinkedSentence:
    text, mentions = "", []
    for entity in entities:
        mentions.append(Mention(entity, entity, len(text), len(text) + len(entity)))
        text += f"{entity} {words} "
    return LinkedSentence(text, language, tuple(mentions), "here")


def triples(instances) -> list[tuple[str, str, str]]:
    return [(one.head.id, one.tail.id, one.relation) for one in instances]


def test_no_relation_is_directional_and_only_for_heads_of_the_knowledge_base() -> None:
    found = triples(candidates([linked("A", "B", "C")], FACTS, Rules()))
    # B is no fact's head: (B, A) and (B, C) are not candidates at all.
    assert found == [
        ("A", "B", "capital"),
        ("A", "B", "located"),
        ("A", "C", "NA"),
        ("C", "A", "NA"),
        ("C", "B", "located"),
    ]
    assert candidates([linked("A", "B", words="x " * 150)], FACTS, Rules()) == []
    assert triples(candidates([linked("A", "A", "B")], FACTS, Rules())) == triples(
        candidates([linked("A", "B")], FACTS, Rules())
    )


def many(languages=("en", "de"), pairs: int = 40) -> tuple[list[LinkedSentence], dict]:
    facts, sentences = {}, []
    for number in range(pairs):
        head, tail = f"H{number}", f"T{number}"
        facts[head, tail] = ("both", "large") if number % 4 == 0 else ("large",) if number % 4 < 3 else ("rare",)
        facts[tail, f"Z{number}"] = ("unseen",)
        for language in languages:
            if language == "en" or number % 4 < 3:
                sentences += [
                    linked(head, tail, language=language, words=f"{language} {words} {number}")
                    for words in ("x", "y", "z")
                ]
    return sentences, facts


def test_relations_must_be_frequent_in_every_language() -> None:
    sentences, facts = many()
    relations, _ = build(sentences, facts, Rules(least_pairs=5))
    assert relations.names == ("NA", "both", "large")  # "rare" occurs in English only
    assert build(sentences, facts, Rules(least_pairs=5, most_relations=1))[0].names == ("NA", "large")
    with pytest.raises(UserError, match="no relation has 100 pairs in every language"):
        build(sentences, facts, Rules(least_pairs=100))


def test_caps_hold_and_a_pair_keeps_all_of_its_relations() -> None:
    sentences, facts = many()
    found = candidates(sentences, facts, Rules())
    rules = Rules(most_sentences=2, most_pairs=8, na_share=0.5)
    kept = make_bags(capped(found, ("both", "large"), rules), across_languages=False)
    assert max(map(len, kept)) == 2
    for language in ("en", "de"):
        own = [bag for bag in kept if bag.languages == (language,)]
        positive, negative = (sum(len(b) for b in own if (b.relations == {"NA"}) == is_na) for is_na in (False, True))
        assert negative == positive // 2
        assert sum("both" in bag.relations for bag in own) == 8
        assert 8 <= sum("large" in bag.relations for bag in own) <= 16
    for bag in kept:
        if bag.relations != {"NA"}:
            assert bag.relations == set(facts[bag.pair])


def test_no_pair_in_any_order_or_language_is_in_two_parts(tmp_path: Path) -> None:
    sentences, facts = many()
    relations, parts = build(sentences, facts, Rules(least_pairs=5, shares=(0.5, 0.2, 0.3)))
    pairs = [{frozenset((one.head.id, one.tail.id)) for one in parts[part]} for part in ("train", "val", "test")]
    assert all(pairs) and not pairs[0] & pairs[2] and not pairs[0] & pairs[1] and not pairs[1] & pairs[2]
    write_corpus(tmp_path / "made", relations, parts)
    corpus = read_corpus(tmp_path / "made")
    assert corpus.relations == relations
    for part in ("train", "val", "test"):
        wanted = make_bags(parts[part])
        assert [(bag.pair, bag.relations, len(bag)) for bag in getattr(corpus, part)] == [
            (bag.pair, bag.relations, len(bag)) for bag in wanted
        ]
    assert overlaps(corpus.train, corpus.test) == {"de": {"de": 0, "en": 0}, "en": {"de": 0, "en": 0}}
    with pytest.raises(UserError, match="exists already"):
        write_corpus(tmp_path / "made", relations, parts)


def test_the_command_builds_from_files_and_names_a_broken_line(tmp_path: Path, monkeypatch, capsys) -> None:
    sentences, facts = many()
    linked_file, fact_file = tmp_path / "s.jsonl", tmp_path / "kb.jsonl"
    lines = [
        {"text": one.text, "language": one.language,
         "mentions": [{"entity": m.id, "start": m.start, "end": m.stop} for m in one.mentions]}
        for one in sentences
    ]  # fmt: skip
    linked_file.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    rows = [{"head": h, "relation": r, "tail": t} for (h, t), names in facts.items() for r in names]
    fact_file.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    assert read_facts([fact_file]) == facts
    assert [one.text for one in read_sentences([linked_file])] == [one.text for one in sentences]
    arguments = ["x", "--sentences", str(linked_file), "--facts", str(fact_file), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", [*arguments, "--rules.least-pairs", "5"])
    build_dataset.main()
    assert "| train, de |" in capsys.readouterr().out and len(read_corpus(tmp_path / "out").train) > 10

    def broken(file: Path, line: dict, reader, message: str) -> None:
        file.write_text("\n" + json.dumps(line), "utf-8")
        with pytest.raises(UserError, match=f"line 2: {message}"):
            list(reader([file]))

    bad = lines[0] | {"mentions": [{"entity": "A", "start": 0, "end": 999}]}
    broken(linked_file, bad, read_sentences, r"mentions\[0\] = \[0, 999\) is not inside")
    broken(
        linked_file, lines[0] | {"mentions": [{"entity": "A", "start": "0"}]}, read_sentences, ".*'mentions.0..start'"
    )
    broken(fact_file, {"head": "A", "relation": "NA", "tail": "B"}, read_facts, "a relation cannot be called 'NA'")
    broken(fact_file, {"head": "A", "tail": "B"}, read_facts, "no field 'relation'")


def toy(count: int, seed: int, language: str = "en") -> list[Instance]:
    """Sentences whose relation is told by the word between; with names that tell nothing."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        relation = ("NA", "r1", "r2")[rng.integers(3)]
        word = {"NA": "met", "r1": "wed", "r2": "led"}[relation] if rng.random() < 0.9 else "met"
        head, tail = f"h{seed}x{number}", f"t{seed}x{number}"
        text = f"{head} {word} {tail} there"
        start = len(head) + len(word) + 2
        mentions = Mention(head, head, 0, len(head)), Mention(tail, tail, start, start + len(tail))
        found.append(Instance(text, *mentions, relation, language, "made"))
    return found


RELATIONS = Relations(("NA", "r1", "r2"))


def test_divisions_leak_what_they_say_they_leak() -> None:
    english = [one for number in range(3) for one in toy(60, 0)]
    english = [Instance(f"{one.text} {i}", one.head, one.tail, one.relation, "en", "") for i, one in enumerate(english)]
    german = [Instance(one.text, one.head, one.tail, one.relation, "de", "") for one in english]
    both = english + german

    def leaks(key) -> dict:
        parts = divided(both, (0.5, 0.0, 0.5), key)
        train, test = (make_bags(parts[part], across_languages=False) for part in ("train", "test"))
        return overlaps(train, test)

    assert leaks(by_pair) == {"de": {"de": 0, "en": 0}, "en": {"de": 0, "en": 0}}
    within = leaks(by_language)
    assert within["de"]["de"] == within["en"]["en"] == 0 and within["de"]["en"] > 5 and within["en"]["de"] > 5
    assert leaks(by_sentence)["de"]["de"] > 20
    with pytest.raises(ValueError, match="must sum to 1"):
        divided(both, (0.5, 0.5, 0.5))


def test_the_corpus_table_counts_pairs_facts_and_languages() -> None:
    def made(head: str, tail: str, relation: str, language: str, text: str) -> Instance:
        return Instance(text, Mention(head, head, 0, 1), Mention(tail, tail, 1, 2), relation, language, "")

    bags = make_bags([
        made("A", "B", "r1", "en", "one"), made("A", "B", "r2", "en", "one"), made("A", "B", "r1", "de", "eins"),
        made("B", "A", "NA", "en", "one"), made("C", "D", "r1", "en", "two"), made("D", "C", "NA", "de", "zwei"),
    ])  # fmt: skip
    row = row_of(bags)
    assert (row.sentences, row.bags, row.na, row.several_relations, row.several_sentences) == (5, 4, 2, 1, 1)
    assert (row.several_languages, row.relations, row.largest, row.largest_to_median) == (1, 2, 2 / 3, 1)
    lines = corpus_table({"made": bags}).splitlines()
    assert lines[2].startswith("| made | 5 | 4 | 50.0 % | 25.0 % |") and len(lines) == 5
    with pytest.raises(ValueError, match="no bag has a relation"):
        row_of(bags[1:2])


def test_sparse_rows_multiply_like_the_matrix_and_its_transpose() -> None:
    rng = np.random.default_rng(0)
    dense = np.where(rng.random((9, 30)) < 0.5, rng.normal(size=(9, 30)), 0).astype(np.float32)
    dense[:, 0], dense[:, 3] = 1, 0
    rows = [np.flatnonzero(row) for row in dense]
    starts = np.append(0, np.cumsum([len(row) for row in rows]))
    matrix = Rows(starts, np.concatenate(rows), np.concatenate([d[r] for d, r in zip(dense, rows)]), 30)
    right, left = rng.normal(size=(30, 4)).astype(np.float32), rng.normal(size=(9, 4)).astype(np.float32)
    np.testing.assert_allclose(matrix.times(right), dense @ right, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(matrix.transposed().times(left), dense.T @ left, rtol=1e-4, atol=1e-5)


def test_features_tell_the_roles_and_the_places_apart() -> None:
    one = Instance("Ada wed Bo there", Mention("", "A", 0, 3), Mention("", "B", 8, 10), "r1", "en", "")
    turned = Instance("Ada wed Bo there", Mention("", "B", 8, 10), Mention("", "A", 0, 3), "r1", "en", "")
    found, other = sentence_features(one), sentence_features(turned)
    assert {"<", "w ada", "h ada", "t bo", "b wed", "<b wed", "<r there", "<bb ^ wed", "<bb wed $"} <= found
    assert {">", "h bo", "t ada", ">b wed"} <= other and "<b wed" not in other
    devanagari = Instance("भारत की राजधानी दिल्ली", Mention("", "A", 0, 4), Mention("", "B", 16, 22), "r1", "hi", "")
    assert {"h भारत", "b राजधानी", "t दिल्ली"} <= sentence_features(devanagari)


def test_l_bfgs_finds_the_minimum_of_a_bent_bowl() -> None:
    scale = np.array([1.0, 10.0, 100.0])
    found = minimised(lambda x: (float((scale * (x - 3) ** 2).sum()), 2 * scale * (x - 3)), np.zeros(3), 100, 1e-10)
    np.testing.assert_allclose(found, 3, atol=1e-6)


def test_the_fit_is_where_the_gradient_of_the_penalised_loss_is_zero() -> None:
    bags = make_bags(toy(60, 1))
    features = list(bag_features(bags))
    rows = sparse(features, vocabulary(features, 5))
    labels = np.array([[name in bag.relations for name in RELATIONS.names] for bag in bags])
    weights = fit(rows, labels, 0.5, 200).astype(float)
    dense = np.stack([rows.transposed().times(row[:, None])[:, 0] for row in np.eye(len(rows), dtype=np.float32)])
    gradient = (
        dense.T @ (1 / (1 + np.exp(-dense @ weights)) - labels) + 0.5 * weights * (np.arange(rows.width) > 0)[:, None]
    )
    assert np.abs(gradient).max() < 0.01 < np.abs(dense.T @ (0.5 - labels)).max() / 100


def test_the_linear_model_learns_what_words_tell_and_no_more() -> None:
    train, test = make_bags(toy(150, 2)), make_bags(toy(100, 3))
    model = linear.train(train, RELATIONS, make_bags(toy(50, 4)))
    scored = model.scored(test)
    assert area(curve_of(scored)) > 0.85
    text = linear.table(scored, {"sentences:": ["1"] * len(test)})
    assert "| all | 100 |" in text and "| sentences: 1 | 100 |" in text
    with pytest.raises(ValueError, match="needs bags to choose by"):
        linear.train(train, RELATIONS)


def test_easier_corpora_and_leaks_are_measured_with_models_of_their_own() -> None:
    instances = toy(80, 5)
    extra = [Instance(one.text, one.head, one.tail, "r2", "en", "") for one in instances[:20] if one.relation == "r1"]
    corpus = Corpus("toy", RELATIONS, make_bags(instances + extra), [], make_bags(toy(40, 6)))
    found = leakage.easier(corpus)
    assert set(found) == {"as it is"} | {
        f"{name}, {where}" for name in leakage.CONDITIONS for where in ("in the test", "in training too")
    }
    positive = found["without NA, in the test"]
    assert not positive.labels[:, 0].any() and len(positive) < len(found["as it is"])
    assert area(curve_of(positive)) >= area(curve_of(found["as it is"]))
    assert "| without both, in training too |" in leakage.table(found)


def test_a_name_seen_in_another_language_tells_its_relation() -> None:
    rng = np.random.default_rng(0)
    instances = []
    for number in range(40):
        relation, name = ("NA", "r1", "r2")[rng.integers(3)], f"name{number}"
        for language in "abcdefghijkl":
            mentions = (
                Mention(name, f"{number}:h", 0, len(name)),
                Mention("x", f"{number}:t", len(name) + 1, len(name) + 2),
            )
            instances.append(Instance(f"{name} x", *mentions, relation, language, ""))
    found = leakage.across_languages(instances, RELATIONS, folds=3)
    leaking, clean = found["a"]
    assert len(leaking) == len(clean) == 40 and np.array_equal(leaking.labels, clean.labels)
    assert area(curve_of(leaking)) > area(curve_of(clean)) + 0.2
    assert leakage.leaks_table({"a": found["a"]}, "other languages").count("|") == 18


def test_a_name_seen_in_another_sentence_tells_its_relation() -> None:
    rng = np.random.default_rng(0)
    instances = []
    for number in range(100):
        relation, name = ("NA", "r1", "r2")[rng.integers(3)], f"name{number}"
        for word in "abcdefgh"[: 1 + number % 8]:
            head = Mention(name, f"{number}:h", 0, len(name))
            tail = Mention("x", f"{number}:t", len(name) + 1, len(name) + 2)
            instances.append(Instance(f"{name} x {word}", head, tail, relation, None, ""))
    leaking, clean = leakage.across_sentences(Corpus("toy", RELATIONS, make_bags(instances), [], []))
    assert 5 < len(leaking) == len(clean) < 25 and np.array_equal(leaking.labels, clean.labels)
    assert area(curve_of(leaking)) > area(curve_of(clean)) + 0.2
    alone = [one for one in instances if one.text.endswith("a")]
    with pytest.raises(ValueError, match="toy: 0 sentences can leak"):
        leakage.across_sentences(Corpus("toy", RELATIONS, make_bags(alone), [], []))
