"""The readers of relation extraction: what they read, and that every error names file and line."""

import gzip
import json
from pathlib import Path

import pytest

from experiments.relation_extraction.bags import (
    Bag,
    instances_of,
    make_bags,
    multi_hot,
    of_language,
    per_relation,
    size_counts,
    size_names,
)
from experiments.relation_extraction.reader import Relations, languages_of, read_instances, read_relations
from experiments.relation_extraction.relx import read_relx, read_relx_distant
from zoo.errors import UserError

RELATIONS = Relations(("NA", "born_in", "died_in"))
GOOD = {
    "text": "Ada was born in Ulm.",
    "h": {"id": "Q1", "name": "ada", "pos": [0, 3]},
    "t": {"id": "Q2", "name": "ulm", "pos": [16, 19]},
    "relation": "born_in",
}


def changed(**fields) -> dict:
    """The good line with other fields; None leaves one out."""
    return {name: value for name, value in (GOOD | fields).items() if value is not None}


def entity(**fields) -> dict:
    return {name: value for name, value in (GOOD["h"] | fields).items() if value is not None}


def write(path: Path, *lines) -> Path:
    path.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines) + "\n", "utf-8")
    return path


def test_offsets_in_words_and_in_characters_give_the_same_sentence(tmp_path: Path) -> None:
    words = {
        "token": ["Ada", "was", "born", "in", "New", "Ulm", "."],
        "h": entity(pos=[0, 1]),
        "t": GOOD["t"] | {"pos": [4, 6]},
        "relation": "born_in",
    }
    text = changed(text="Ada was born in New Ulm .", t=GOOD["t"] | {"pos": [16, 23]})
    first, second = read_instances(write(tmp_path / "a.jsonl", words, "", text), RELATIONS)
    assert first.text == second.text and (first.head, first.tail) == (second.head, second.tail)
    assert first.text[first.tail.start : first.tail.stop] == "New Ulm"
    assert second.place == f"{tmp_path / 'a.jsonl'}, line 3"


def test_compressed_files_are_read_like_others(tmp_path: Path) -> None:
    plain = write(tmp_path / "a.jsonl", GOOD, changed(relation="NA"))
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    both = read_instances([plain, packed], RELATIONS)
    assert [one.relation for one in both] == ["born_in", "NA"] * 2
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(UserError, match="a.jsonl.gz: cannot be read"):
        read_instances(packed, RELATIONS)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'text': 'eval would take this'}", "not JSON"),
        ("[1, 2]", "need a JSON object, got list"),
        (changed(h=entity(pos=[0, 99])), r"h.pos = \[0, 99\] is not inside the sentence of 20 characters"),
        (changed(h=entity(pos=[-1, 3])), "not inside"),
        (changed(h=entity(pos=[3, 3])), "not inside"),
        (changed(h=entity(pos=[0, 1.5])), "h.pos must be two whole numbers"),
        (changed(h=entity(pos="0 3")), "'h.pos' must be a list"),
        (changed(t=None), "no field 't'"),
        (changed(h=entity(name=7)), "'h.name' must be a string, got 7"),
        (changed(h="Ada"), "'h' must be an object"),
        (changed(relation="born_inn"), "unknown relation 'born_inn': did you mean 'born_in'"),
        (changed(relation=1), "'relation' must be a string"),
        (changed(text="  "), "the sentence is empty"),
        (changed(text=None, token=[]), "the sentence is empty"),
        (changed(text=None, token=["a", 1]), "list of words"),
        (changed(text=None), "need either 'text'"),
        (changed(token=["a"]), "need either 'text'"),
        (changed(language=3), "'language' must be a string"),
    ],
)
def test_a_broken_line_is_named_with_its_file(tmp_path: Path, line, message: str) -> None:
    path = write(tmp_path / "broken.jsonl", GOOD, line)
    with pytest.raises(UserError, match=message) as error:
        read_instances(path, RELATIONS)
    assert str(error.value).startswith(f"{path}, line 2: ")
    assert "\n" not in str(error.value)


def test_a_corpus_of_several_languages_needs_languages_and_ids_in_every_line(tmp_path: Path) -> None:
    english = changed(language="en")
    with pytest.raises(UserError, match="line 2: no language, but .*line 1 says 'en'"):
        read_instances(write(tmp_path / "a.jsonl", english, GOOD), RELATIONS)
    with pytest.raises(UserError, match="line 1: no language, but .*line 2 says 'en'"):
        read_instances(write(tmp_path / "b.jsonl", GOOD, english), RELATIONS)
    german = changed(language="de", h=entity(id=None))
    with pytest.raises(UserError, match=r"line 2: h \('ada'\) has no id; names of one entity differ between languages"):
        read_instances(write(tmp_path / "c.jsonl", english, german), RELATIONS)


def test_a_file_without_sentences_is_an_error_and_so_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="empty.jsonl: no sentences"):
        read_instances([write(tmp_path / "a.jsonl", GOOD), write(tmp_path / "empty.jsonl", "")], RELATIONS)
    with pytest.raises(UserError, match="none.jsonl: cannot be read"):
        read_instances(tmp_path / "none.jsonl", RELATIONS)


def test_relations_are_numbered_from_0_each_once(tmp_path: Path) -> None:
    relations = read_relations(write(tmp_path / "a.json", {"x": 1, "NA": 0, "y": 2}))
    assert relations.names == ("NA", "x", "y") and relations.na == 0 and relations.positive == (1, 2)
    assert read_relations(write(tmp_path / "b.json", {"x": 0})).na is None
    for content, message in [
        ({"NA": 0, "x": 2}, "'x' has the number 2; 2 relations need 0 .. 1"),
        ({"NA": 0, "x": True}, "'x' has the number True"),
        ({"NA": 0, "x": 1, "y": 1}, "'x' and 'y' have the same number 1"),
        ([], "need a JSON object"),
        ("{", "not JSON"),
    ]:
        with pytest.raises(UserError, match=message):
            read_relations(write(tmp_path / "bad.json", content))


def line(text: str, head: str, tail: str, relation: str, language: str | None = None) -> dict:
    made = {"text": text, "h": entity(id=head, pos=[0, 1]), "t": entity(id=tail, pos=[1, 2]), "relation": relation}
    return made if language is None else made | {"language": language}


def test_bags_are_ordered_pairs_with_all_their_relations_and_each_sentence_once(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        line("One.", "A", "B", "born_in", "en"),
        line("Two.", "B", "A", "NA", "en"),
        line("ONE. ", "A", "B", "died_in", "en"),
        line("Drei.", "A", "B", "born_in", "de"),
    )
    bags = make_bags(read_instances(path, RELATIONS))
    assert [(bag.pair, len(bag), bag.languages) for bag in bags] == [
        (("A", "B"), 2, ("de", "en")),
        (("B", "A"), 1, ("en",)),
    ]
    assert multi_hot(bags, RELATIONS).tolist() == [[False, True, True], [True, False, False]]
    assert per_relation(bags) == [(bags[0], "born_in"), (bags[0], "died_in"), (bags[1], "NA")]
    assert size_names(bags) == ["2", "1"] and size_counts(bags) == {1: 1, 2: 1}
    assert [len(bag) for bag in make_bags(instances_of(bags))] == [2, 1]
    assert make_bags(instances_of(bags))[0].relations == bags[0].relations
    assert languages_of(instances_of(bags)) == ["de", "en"]
    apart = make_bags(read_instances(path, RELATIONS), across_languages=False)
    assert [(bag.pair, bag.languages) for bag in apart] == [
        (("A", "B"), ("en",)),
        (("B", "A"), ("en",)),
        (("A", "B"), ("de",)),
    ]
    assert [(bag.pair, len(bag), sorted(bag.relations)) for bag in of_language(bags, "de")] == [
        (("A", "B"), 1, ["born_in", "died_in"])
    ]


def test_an_empty_bag_is_refused() -> None:
    with pytest.raises(ValueError, match="no sentence"):
        Bag(("A", "B"), (), frozenset({"NA"}))


RELX = (
    '7\t"The <e1> Sacramento Heatwave </e1> team of Sacramento (<e2> California </e2>)."\n'
    "org:stateorprovince_of_headquarters(e1,e2)\n\n\n"
    '8\t"<e1> Ulm </e1> is where <e2> Ada </e2> lives"\nper:cities_of_residence(e2,e1)\n\n\n'
    '9\t"<e1> A </e1> and <e2> B </e2>"\nno_relation\n\n\n'
)


def test_relx_sentences_lose_their_marks_and_heads_are_subjects(tmp_path: Path) -> None:
    path = tmp_path / "RELX_en.txt"
    path.write_text(RELX, "utf-8")
    first, second, third = read_relx(path, "en")
    assert first.text == "The Sacramento Heatwave team of Sacramento (California)."
    assert [one.text[one.head.start : one.head.stop] for one in (first, second, third)] == [
        "Sacramento Heatwave",
        "Ada",
        "A",
    ]
    assert (second.head.id, second.tail.id, second.relation) == ("8:h", "8:t", "per:cities_of_residence")
    assert third.relation == "NA" and third.place == f"{path}, line 9"
    assert len(read_relx(path, "en", leave_out={"7"})) == 2


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ("<e2> Ada </e2>", "Ada", "line 5: need one <e1>"),
        ("<e1> Ulm </e1>", "<e1> </e1>", "line 5: need one <e1>"),
        ("(e2,e1)", "(e2,e2)", "line 6: need a relation"),
        ("no_relation", "no_relation(e1,e2)", "line 10: need a relation"),
        ("8\t", "8 ", "line 5: need a number"),
    ],
)
def test_a_broken_relx_sentence_is_named_with_its_line(tmp_path: Path, old: str, new: str, place: str) -> None:
    path = tmp_path / "RELX_en.txt"
    path.write_text(RELX.replace(old, new), "utf-8")
    with pytest.raises(UserError, match=place):
        read_relx(path, "en")


def test_relx_distant_is_read_with_its_ids(tmp_path: Path) -> None:
    entry = {"sentence": "Ada of Ulm", "entity1": "Q1", "entity2": "Q2", "entity1_indices": [0, 3],
             "entity2_indices": [7, 10], "relation": "P19"}  # fmt: skip
    (one,) = read_relx_distant(write(tmp_path / "a.json", json.dumps([entry])), "en")
    assert (one.head.id, one.tail.name, one.relation, one.language) == ("Q1", "Ulm", "P19", "en")
    with pytest.raises(UserError, match="a.json, entry 2: a mention is not inside"):
        read_relx_distant(write(tmp_path / "a.json", json.dumps([entry, entry | {"entity2_indices": [7, 11]}])), "en")
    with pytest.raises(UserError, match="a.json, entry 1: KeyError: 'relation'"):
        read_relx_distant(write(tmp_path / "a.json", '[{"sentence": "x"}]'), "en")


def test_the_optional_corpora_are_read_whole(shared_dir: Path) -> None:
    folder = shared_dir / "data" / "gids_dsre"
    if not folder.is_dir():
        pytest.skip("optional test data: no folder data/gids_dsre")
    relations = read_relations(folder / "rel2id.json")
    bags = make_bags(read_instances(folder / "test.jsonl", relations))
    assert (len(relations), len(bags), sum(map(len, bags))) == (5, 1081, 1863)
