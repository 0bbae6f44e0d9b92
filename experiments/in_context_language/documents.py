"""A document: a book of a language, or parts of it, example sentences, and sentences to be translated.

    A grammar of Poba ... Words of Poba ... Sentences of Poba English: ... Poba: ... Translate English: ... Gloss: ...

Example sentences are plain pairs, as MTOB's are: what is told stays what the papers tell, and glosses are the model's
own work. The sentences that are asked are glossed first, after the rules in short (`glosses.py`), or, for comparison,
answered at once; before that is learned, glosses are asked for without forms.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from experiments.in_context_language import glosses
from experiments.in_context_language.book import grammar_text, word_list_text, write_book
from experiments.in_context_language.english import Phrase, Sentence, draw_sentence, draw_short, write
from experiments.in_context_language.grammar import Split
from experiments.in_context_language.language import Language, LanguageSize, make_language
from experiments.in_context_language.materials import Entry, Material, Pair
from experiments.in_context_language.morphemes import Word, spell
from experiments.in_context_language.prompts import Count, Direction, Prompt, Section, cut_sections
from experiments.in_context_language.speech import parse
from zoo.errors import UserError, nearest_name

CONTEXTS: dict[str, tuple[str, ...]] = {
    "none": (),
    "rules": ("rules",),
    "grammar": ("grammar",),
    "word list": ("words",),
    "sentences": ("sentences",),
    "rules + word list": ("rules", "words"),
    "word list + sentences": ("words", "sentences"),
    "grammar + word list": ("grammar", "words"),
    "all": ("grammar", "words", "sentences"),
}
"""What is told. `rules` is the grammar without its worked examples; rules and word list are all that one needs."""

HEAD = "Translate\n"
"""Before the queries."""

Task = Literal["gloss", "translate", "order"]
"""What is done with a source: glossed and then translated, translated at once, or, from English, only put into the
order of the language (`glosses.write_order`)."""


@dataclass(frozen=True)
class Query:
    """What is to be translated."""

    source: str
    """As it is given."""
    translation: str
    """What is right."""
    gloss: str = ""
    """Written before the translation; "": nothing is."""
    rules: str = ""
    """Written before the gloss: the rules in short."""

    @property
    def pair(self) -> tuple[str, str]:
        """(source, translation)"""
        return self.source, self.translation

    @property
    def answer(self) -> str:
        """All that follows the question. The space belongs to the answer: pieces of a tokenizer begin with it."""
        return self.rules + self.after_rules

    @property
    def after_rules(self) -> str:
        """The answer without the rules."""
        marker = glosses.MARKER if self.rules or self.gloss else ""
        return f"{self.gloss}{marker} {self.translation}\n"


@dataclass(frozen=True)
class Document:
    """A language, what is told of it, and sentences to be translated that are in nothing that is told."""

    language: Language
    direction: Direction
    context: str
    """One of CONTEXTS."""
    book: tuple[str, ...]
    """Its parts: the grammar, the word list, or nothing."""
    examples: tuple[tuple[str, str], ...]
    """(source, translation)"""
    queries: tuple[Query, ...]
    """What is asked."""
    task: Task
    """How it is."""


def make_document(
    seed: int,
    split: Split,
    context: str,
    direction: Direction,
    shots: int = 32,
    queries: int = 4,
    size: LanguageSize = LanguageSize(),
    *,
    longest: int | None = None,
    task: Task = "gloss",
) -> Document:
    """The document of the language `seed`. Its queries and its book are the same in every context and direction, and of
    two numbers of shots the greater has the sentences of the smaller.

    longest: queries have 1 .. `longest` words of the word list (`draw_short`), where it is given."""
    if context not in CONTEXTS:
        raise UserError(f"unknown context {context!r}; {nearest_name(context, CONTEXTS)}")
    language, parts = make_language(seed, split, size), CONTEXTS[context]
    book = write_book(language, seed)
    taken = {english for english, _ in book.examples}
    generator = random.Random(f"sentences {split} {seed}")

    def asked_for() -> Sentence | Phrase:
        if longest is None:
            return draw_sentence(generator, language.vocabulary)
        return draw_short(generator, language.vocabulary, longest)

    asked = _draw(asked_for, language, queries, taken)
    short = "" if task == "translate" else glosses.write_rules(language.grammar)
    shots = shots if "sentences" in parts else 0
    told = _draw(lambda: draw_sentence(generator, language.vocabulary), language, shots, taken)
    texts = {"rules": grammar_text(book, False), "grammar": grammar_text(book), "words": word_list_text(book)}
    return Document(
        language,
        direction,
        context,
        tuple(text for part, text in texts.items() if part in parts),
        tuple(make_query(english, words, direction, "translate").pair for english, words in told),
        tuple(make_query(english, words, direction, task, short) for english, words in asked),
        task,
    )


def make_query(english: str, words: list[Word], direction: Direction, task: Task, rules: str = "") -> Query:
    """The question whose made-up words are these; `rules` begin its answer."""
    if task == "order":
        return Query(english, glosses.write_order(words), rules=rules)
    pair = (english, " ".join(map(spell, words)))
    source, translation = pair if direction == "from English" else pair[::-1]
    return Query(source, translation, glosses.write_gloss(words, direction) if task == "gloss" else "", rules)


def material_of(document: Document) -> Material:
    """The word list and the sentences as the baselines without a model read them."""
    into, asked = document.direction == "into English", [query.pair for query in document.queries]
    examples, queries = (
        tuple(Pair(*(pair if into else pair[::-1])) for pair in pairs) for pairs in (document.examples, asked)
    )
    entries = tuple(Entry(word, english) for english, _, word in document.language.words)
    name = document.language.name
    return Material(name, f"A grammar of {name}", entries, examples, (), (), {document.direction: queries})


def make_prompts(document: Document, budget: int | None = None, count: Count | None = None) -> list[Prompt]:
    """A prompt for each query, the same tokens as in a training document up to the answer.

    With a `budget` of tokens there are as many example sentences as fit into it; the book is never cut, so that it
    stays enough: `UserError` if it alone is too long."""
    prompts = []
    for query in document.queries:
        question = _ask(query.source, document, document.task)
        sections = [Section(text, ()) for text in document.book]
        if document.examples:
            examples = tuple(_ask(source, document) + f" {translation}\n" for source, translation in document.examples)
            sections.append(Section(_sentences_head(document), examples))
        sections += [Section(HEAD, ()), Section(question, ())]
        if budget is not None and count is not None:
            sections = list(cut_sections(sections, budget, count))
        pieces = tuple(piece for section in sections[:-1] for piece in section.pieces)
        prompts.append(Prompt(document.context, pieces, question, *query.pair))
    return prompts


def training_record(document: Document, loss_on_examples: bool = True) -> dict[str, Any]:
    """A line of interleaved JSONL, with loss on the answers to the queries, glosses included, and on the translations
    of the example sentences, each of which can be worked out from what stands before it as far as that goes. The rules
    in short count in the first answer alone: in the others they are copied from it."""
    parts = [(text, False) for text in document.book]
    if document.examples:
        parts.append((_sentences_head(document), False))
    for source, translation in document.examples:
        parts += [(_ask(source, document), False), (f" {translation}\n", loss_on_examples)]
    parts.append((HEAD, False))
    for number, query in enumerate(document.queries):
        parts += [(_ask(query.source, document, document.task), False)]
        parts += [(query.rules, number == 0)] if query.rules else []
        parts += [(query.after_rules, True)]
    content = [{"text": text, "loss": loss} for text, loss in parts]
    return {"content": content, "kind": f"{document.direction}: {document.context}"}


def _sentences_head(document: Document) -> str:
    return f"Sentences of {document.language.name}\n"


def _ask(source: str, document: Document, task: Task = "translate") -> str:
    names = ("English", document.language.name)
    first, second = names if document.direction == "from English" else names[::-1]
    heads: dict[Task, str] = {"gloss": glosses.HEAD, "order": glosses.ORDER_HEAD, "translate": f"{second}:"}
    return f"{first}: {source}\n{heads[task]}"


def _draw(
    draw: Callable[[], Sentence | Phrase], language: Language, number: int, taken: set[str]
) -> list[tuple[str, list[Word]]]:
    """(English, the words of the translation) of new sentences, which are taken from then on."""
    found: list[tuple[str, list[Word]]] = []
    while len(found) < number:
        said = draw()
        if (english := write(said)) not in taken:
            taken.add(english)
            found.append((english, parse(said, language)))
    return found
