"""RELX and RELX-Distant (Köksal and Özgür, Findings of EMNLP 2020; github.com/boun-tabi/RELX): five languages.

RELX is 502 sentences with 18 relations, translated by people. A sentence takes four lines: its number, a tab, and the
sentence in quotes with <e1> and <e2>; the relation with its direction, as in `per:spouse(e2,e1)`; a comment; a blank.
Sentence i of all files is the same one, so that its number is an id of the pair in all languages. RELX-Distant is a
JSON list with Wikidata ids.
"""

import json
import re
from collections.abc import Collection
from pathlib import Path

from experiments.relation_extraction.reader import NA, Instance, Mention
from zoo.errors import UserError

NO_RELATION = "no_relation"
"""RELX's `NA`."""
BROKEN = frozenset({"17785"})
"""A sentence whose <e1> has no words in the English file."""
MARK = re.compile(r"(<e[12]> ?| ?</e[12]>)")


def read_relx(path: Path, language: str, leave_out: Collection[str] = BROKEN) -> list[Instance]:
    """The sentences of a RELX_xx.txt but for those of these numbers.

    The head is the relation's subject, whichever comes first; ids are NUMBER:h and NUMBER:t, the same in all languages.
    The blank inside of a mark is the mark's.

    Raises `UserError` with file and line for anything else.
    """
    lines = _read(path).split("\n")
    instances = []
    for at in range(0, len(lines), 4):
        if not lines[at].strip():
            continue
        place = f"{path}, line {at + 1}"
        number, tab, quoted = lines[at].rstrip("\r").partition("\t")
        if not tab or not re.fullmatch(r'".*"', quoted):
            raise UserError(f'{place}: need a number, a tab and a sentence in quotes, "<e1> A </e1> .. <e2> B </e2>"')
        if number in leave_out:
            continue
        text, spans = _unmarked(quoted[1:-1], place)
        if at + 1 == len(lines):
            raise UserError(f"{place}: the relation, which the next line should name, is missing")
        named = re.fullmatch(r"([^()]+?)(?:\((e[12]),(e[12])\))?", lines[at + 1].strip())
        if not named or (named[2] is None) != (named[1] == NO_RELATION) or (named[2] and named[2] == named[3]):
            raise UserError(f"{path}, line {at + 2}: need a relation like per:spouse(e1,e2), or {NO_RELATION}")
        head, tail = (named[2], named[3]) if named[2] else ("e1", "e2")
        relation = NA if named[1] == NO_RELATION else named[1]
        mentions = [
            Mention(text[slice(*spans[which])], f"{number}:{role}", *spans[which])
            for which, role in ((head, "h"), (tail, "t"))
        ]
        instances.append(Instance(text, mentions[0], mentions[1], relation, language, place))
    if not instances:
        raise UserError(f"{path}: no sentences")
    return instances


def read_relx_distant(path: Path, language: str) -> list[Instance]:
    """The sentences of a RELX-Distant file; entity1 is the head, the relation's Wikidata number its name.

    Raises `UserError` with the file and the number of the entry for anything else.
    """
    try:
        entries = json.loads(_read(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from None
    if not isinstance(entries, list):
        raise UserError(f"{path}: need a JSON list")
    instances = []
    for number, entry in enumerate(entries, start=1):
        place = f"{path}, entry {number}"
        try:
            text, relation = str(entry["sentence"]), str(entry["relation"])
            mentions = []
            for name in ("entity1", "entity2"):
                start, stop = map(int, entry[f"{name}_indices"])
                mentions.append(Mention(text[start:stop], str(entry[name]), start, stop))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{place}: {type(error).__name__}: {error}") from None
        if any(not 0 <= one.start < one.stop <= len(text) for one in mentions):
            raise UserError(f"{place}: a mention is not inside the sentence of {len(text)} characters")
        instances.append(Instance(text, mentions[0], mentions[1], relation, language, place))
    return instances


def _unmarked(marked: str, place: str) -> tuple[str, dict[str, tuple[int, int]]]:
    """(the sentence without marks, where e1 and e2 stand in it)."""
    text, starts, spans = "", {}, {}
    for part in MARK.split(marked):
        if not MARK.fullmatch(part):
            text += part
        elif part.startswith("<e"):
            starts[part[1:3]] = len(text)
        else:
            which = part.strip()[2:4]
            spans[which] = (starts.get(which, len(text)), len(text))
    if set(spans) != {"e1", "e2"} or any(start >= stop for start, stop in spans.values()):
        raise UserError(f"{place}: need one <e1> .. </e1> and one <e2> .. </e2> around words")
    return text, spans


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
