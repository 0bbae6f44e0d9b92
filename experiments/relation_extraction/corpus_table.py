"""python -m experiments.relation_extraction.corpus_table: what DiS-ReX compares corpora by, for any corpus."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.relation_extraction.bags import Bag, of_language
from experiments.relation_extraction.corpus import default_folders, read_corpus
from experiments.relation_extraction.reader import NA
from zoo.command_line import parse_command
from zoo.errors import run_command


@dataclass(frozen=True)
class Row:
    """Counts of one set of bags. A fact is a pair with one of its relations, `NA` left out."""

    sentences: int
    """Different sentences of all bags."""
    bags: int
    """Pairs."""
    na: int
    """Bags without a relation."""
    several_relations: int
    """Bags with more than one relation, `NA` not counted."""
    several_sentences: int
    """Bags with more than one sentence."""
    several_languages: int
    """Bags with sentences in more than one language."""
    relations: int
    """Relations that have a fact."""
    largest: float
    """Part of the facts that the most frequent relation has."""
    largest_to_median: float
    """Its facts divided by those of the relation in the middle."""


def row_of(bags: Sequence[Bag]) -> Row:
    """The counts. ValueError without a fact."""
    positive = [bag.relations - {NA} for bag in bags]
    facts = sorted(Counter(name for names in positive for name in names).values())
    if not facts:
        raise ValueError("no bag has a relation")
    return Row(
        sentences=sum(map(len, bags)),
        bags=len(bags),
        na=sum(not names for names in positive),
        several_relations=sum(len(names) > 1 for names in positive),
        several_sentences=sum(len(bag) > 1 for bag in bags),
        several_languages=sum(len(bag.languages) > 1 for bag in bags),
        relations=len(facts),
        largest=facts[-1] / sum(facts),
        largest_to_median=facts[-1] / facts[len(facts) // 2],
    )


def corpus_table(parts: Mapping[str, Sequence[Bag]]) -> str:
    """Markdown: a row for each set of bags and for each of its languages."""
    lines = [
        "| corpus | sentences | bags | NA | several relations | several sentences | several languages | relations "
        "| largest relation | largest / median |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, bags in parts.items():
        lines.append(_line(name, row_of(bags)))
        languages = sorted({language for bag in bags for language in bag.languages})
        if len(languages) > 1:
            lines += [_line(f"{name}, {language}", row_of(of_language(bags, language))) for language in languages]
    return "\n".join(lines)


def _line(name: str, row: Row) -> str:
    def share(count: int) -> str:
        return f"{100 * count / row.bags:.1f} %"

    cells = [name, f"{row.sentences:,}", f"{row.bags:,}", share(row.na), share(row.several_relations)]
    cells += [share(row.several_sentences), share(row.several_languages), str(row.relations)]
    cells += [f"{100 * row.largest:.1f} %", f"{row.largest_to_median:.1f}"]
    return f"| {' | '.join(cells)} |"


@dataclass(frozen=True)
class CorpusTable:
    """Prints the table of corpora."""

    data: tuple[Path, ...] = ()
    """Folders of corpora (rel2id.json; train, val, test as .jsonl); default those of the folder `shared`."""


def main() -> None:
    settings = parse_command(CorpusTable, "experiments.relation_extraction.corpus_table")
    found: dict[str, Sequence[Bag]] = {}
    for folder in settings.data or default_folders():
        corpus = read_corpus(folder)
        found |= {f"{corpus.name} {part}": getattr(corpus, part) for part in ("train", "val", "test")}
    print(corpus_table(found))


if __name__ == "__main__":
    run_command(main)
