"""python -m experiments.relation_extraction.build_dataset: a distant-supervision corpus by DiS-ReX's rules.

Out of sentences whose entities are linked, and a knowledge base; both JSON lines (.gz as well), an object a line:

    {"text": "Ada was born in Ulm.", "language": "en",
     "mentions": [{"entity": "Q1", "start": 0, "end": 3}, {"entity": "Q2", "start": 16, "end": 19}]}
    {"head": "Q1", "relation": "place_of_birth", "tail": "Q2"}

Offsets are [start, end) in characters. Entities have one id in all languages (DiS-ReX: Wikidata's).

Rules (Bhartiya, Badola and Mausam, arXiv 2104.08655, and the authors' Build_dataset):

1. Sentences of more than 150 words are left out.
2. Every ordered pair of different entities of a sentence is a candidate, each where it is first mentioned.
3. Its relations are all of the knowledge base's from head to tail. (The authors' script takes the first; the published
   corpus has pairs with several.)
4. Without one it is `NA` if the head is some fact's head. That is directional: (b, a) can be `NA` where (a, b) is not.
5. Relations are kept that have enough pairs in every language; pairs left with none are dropped, not made `NA`.
6. Caps: pairs of a relation in a language (a pair of several relations stays if one of them keeps it), sentences of a
   pair in a language, and `NA` sentences for each other one. What is above a cap goes by a hash of the pair or the
   sentence (the authors keep what comes first in their dump).
7. A pair, in any order, is in one part only, in all languages.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.relation_extraction.bags import make_bags
from experiments.relation_extraction.corpus_table import corpus_table
from experiments.relation_extraction.linked import LinkedSentence, read_facts, read_sentences
from experiments.relation_extraction.reader import NA, Instance, Mention, Relations
from experiments.relation_extraction.splits import Shares, by_pair, divided, uniform
from zoo.command_line import parse_command
from zoo.errors import UserError, run_command


@dataclass(frozen=True)
class Rules:
    """The numbers in the rules."""

    most_words: int = 150
    """Of a sentence."""
    least_pairs: int = 50
    """That a relation needs in every language."""
    most_relations: int = 36
    """Kept: those whose rarest language has most pairs."""
    most_sentences: int = 100
    """Of a pair in a language."""
    most_pairs: int = 10_000
    """Of a relation in a language."""
    na_share: float = 3.0
    """NA sentences in a language for each other sentence."""
    shares: Shares = (0.7, 0.1, 0.2)
    """Of the pairs in train, val and test."""
    seed: int = 0
    """Of all that is drawn."""


def candidates(
    sentences: Iterable[LinkedSentence], facts: dict[tuple[str, str], tuple[str, ...]], rules: Rules
) -> list[Instance]:
    """Rules 1 to 4: an instance for each ordered pair of a sentence and each of its relations, or `NA`."""
    heads = {head for head, _ in facts}
    found = []
    for sentence in sentences:
        if len(sentence.text.split()) > rules.most_words:
            continue
        first: dict[str, Mention] = {}
        for mention in sentence.mentions:
            first.setdefault(mention.id, mention)
        for head in first.values():
            for tail in first.values():
                if head.id == tail.id:
                    continue
                for relation in facts.get((head.id, tail.id), (NA,) if head.id in heads else ()):
                    found.append(Instance(sentence.text, head, tail, relation, sentence.language, sentence.place))
    return found


def kept_relations(instances: Iterable[Instance], rules: Rules) -> tuple[str, ...]:
    """Rule 5: the relations with enough pairs in every language, in alphabetical order."""
    pairs: dict[str, dict[str, set]] = defaultdict(lambda: defaultdict(set))
    languages = set()
    for one in instances:
        languages.add(one.language)
        if one.relation != NA:
            pairs[one.relation][str(one.language)].add((one.head.id, one.tail.id))
    rarest = {name: min(len(found[str(one)]) for one in languages) for name, found in pairs.items()}
    enough = [name for name, count in rarest.items() if count >= rules.least_pairs]
    return tuple(sorted(sorted(enough, key=lambda name: (-rarest[name], name))[: rules.most_relations]))


def capped(instances: Sequence[Instance], relations: Sequence[str], rules: Rules) -> list[Instance]:
    """Rules 5 and 6: what is left, in the order of the input."""
    positive = [one for one in instances if one.relation in set(relations)]
    chosen = _largest_groups(positive, lambda one: (one.language, one.relation), _pair, rules.most_pairs, rules.seed)
    # A pair that one of its relations keeps, keeps the others: without them its labels would be wrong.
    pairs = set(map(_pair_of_language, chosen))
    positive = [one for one in positive if _pair_of_language(one) in pairs]
    positive = _largest_groups(positive, _pair_of_language, lambda one: one.text, rules.most_sentences, rules.seed)
    negative = [one for one in instances if one.relation == NA]
    negative = _largest_groups(negative, _pair_of_language, lambda one: one.text, rules.most_sentences, rules.seed)
    room: dict[str | None, float] = defaultdict(float)
    for one in {(one.language, one.head.id, one.tail.id, one.text): one for one in positive}.values():
        room[one.language] += rules.na_share
    kept = set()
    for one in sorted(negative, key=lambda one: uniform(f"{_pair(one)}\t{one.text}", rules.seed)):
        if room[one.language] >= 1:
            room[one.language] -= 1
            kept.add(_identity(one))
    kept |= {_identity(one) for one in positive}
    return [one for one in instances if _identity(one) in kept]


def _identity(one: Instance) -> tuple:
    return one.language, one.head.id, one.tail.id, one.text, one.relation


def _pair(one: Instance) -> str:
    return f"{one.head.id}\t{one.tail.id}"


def _pair_of_language(one: Instance) -> tuple:
    return one.language, one.head.id, one.tail.id


def _largest_groups(
    instances: Sequence[Instance], group: Callable, member: Callable[[Instance], str], most: int, seed: int
) -> list[Instance]:
    """At most `most` different members of each group, drawn by a hash; all instances of a member stay together."""
    members: dict[object, set[str]] = defaultdict(set)
    for one in instances:
        members[group(one)].add(member(one))
    kept = {}
    for key, names in members.items():
        kept[key] = set(sorted(names, key=lambda name: (uniform(name, seed), name))[:most])
    return [one for one in instances if member(one) in kept[group(one)]]


def build(
    sentences: Iterable[LinkedSentence], facts: dict[tuple[str, str], tuple[str, ...]], rules: Rules
) -> tuple[Relations, dict[str, list[Instance]]]:
    """(the classes, `NA` first; the instances of train, val and test). `UserError` if no relation is kept."""
    found = candidates(sentences, facts, rules)
    relations = kept_relations(found, rules)
    if not relations:
        raise UserError(
            f"no relation has {rules.least_pairs} pairs in every language: lower --rules.least-pairs, or add sentences"
        )
    parts = divided(capped(found, relations, rules), rules.shares, by_pair, rules.seed)
    return Relations((NA, *relations)), parts


def write_corpus(folder: Path, relations: Relations, parts: dict[str, list[Instance]]) -> None:
    """rel2id.json and PART.jsonl in OpenNRE's format, which `corpus.read_corpus` reads. `UserError` if the folder has
    any of these files."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ["rel2id.json", *(f"{part}.jsonl" for part in parts)]
    for name in names:
        if (folder / name).exists():
            raise UserError(f"{folder / name} exists already; name another folder with --out")
    numbers = {name: number for number, name in enumerate(relations.names)}
    (folder / names[0]).write_text(json.dumps(numbers, ensure_ascii=False, indent=1) + "\n", "utf-8")
    for part, instances in parts.items():
        with open(folder / f"{part}.jsonl", "w", encoding="utf-8") as file:
            for one in instances:
                line = {"text": one.text, "relation": one.relation}
                mentions = {
                    role: {"id": mention.id, "name": mention.name, "pos": [mention.start, mention.stop]}
                    for role, mention in (("h", one.head), ("t", one.tail))
                }
                language = {} if one.language is None else {"language": one.language}
                file.write(json.dumps(line | mentions | language, ensure_ascii=False) + "\n")


@dataclass(frozen=True)
class BuildDataset:
    """Builds a corpus and prints its table."""

    sentences: tuple[Path, ...]
    """Sentences with linked entities, JSON lines."""
    facts: tuple[Path, ...]
    """The knowledge base, JSON lines."""
    out: Path
    """A new folder."""
    rules: Rules = Rules()
    """Numbers in the rules."""


def main() -> None:
    settings = parse_command(BuildDataset, "experiments.relation_extraction.build_dataset")
    facts = read_facts(settings.facts)
    relations, parts = build(read_sentences(settings.sentences), facts, settings.rules)
    write_corpus(settings.out, relations, parts)
    print(corpus_table({part: make_bags(instances) for part, instances in parts.items() if instances}))


if __name__ == "__main__":
    run_command(main)
