"""A tokenizer that has English words whole and spells made-up ones letter by letter.

So the stem and the affixes of a word are written alike wherever they stand, and there is one token for each form of an
English word: what is looked up in a word list is the token that the sentence has. Pieces that are learned (BPE) do
neither: "dog" was three tokens in a word list and one in a sentence, and a suffix changed how its stem was cut.
"""

import io
import re
from collections.abc import Iterable

import sentencepiece

from zoo.data import Tokenizer
from zoo.data.sentencepiece_tokenizer import SPACE, SentencePieceTokenizer
from zoo.data.tokenizer import END_OF_TURN, START_OF_TURN

SHORTEST = 3
"""Letters at least of a word that is one token: made-up words often begin with shorter ones."""
WORD = rf'(?:^| "?)[A-Za-z]{{{SHORTEST},}}| ='
"""With the space before it, and perhaps a quotation mark; at the beginning of a line without. The sign of a word list
counts as one."""
BYTES_AND_CONTROLS = 256 + 6
"""<pad>, <eos>, <bos>, <unk> and the two turn tokens, as `zoo.data.train_tokenizer` has them."""


def make_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """The words of `texts` as tokens, their characters, and bytes for all others; nothing is learned from how often
    they are there. The same texts give the same tokenizer. Lossless."""
    texts = list(texts)
    words = sorted({word.replace(" ", SPACE) for text in texts for word in re.findall(WORD, text, re.MULTILINE)})
    characters = sorted(set("".join(texts)))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["".join(characters)]),
        model_writer=model,
        model_type="bpe",
        vocab_size=BYTES_AND_CONTROLS + len(words) + len(characters),  # no room for any merge
        user_defined_symbols=[START_OF_TURN, END_OF_TURN, *words],
        character_coverage=1.0,
        byte_fallback=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        eos_piece="<eos>",
        bos_piece="<bos>",
        num_threads=1,
        minloglevel=2,
    )
    return SentencePieceTokenizer(model.getvalue())
