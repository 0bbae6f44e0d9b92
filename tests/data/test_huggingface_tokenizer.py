import json

import hypothesis
import pytest
from hypothesis import strategies as st

from zoo.data import load_tokenizer
from zoo.errors import UserError

tokenizers = pytest.importorskip("tokenizers")

AWKWARD = st.sampled_from(["<bos>", "<end_of_turn>", "  ", "\n\n", "def f", "\u00e9"])
TEXT = st.lists(AWKWARD | st.text(max_size=5)).map("".join)


def gemma_like() -> "tokenizers.Tokenizer":
    """Byte-fallback BPE with spaces written as U+2581, as Gemma's tokenizer.json."""
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    pieces += [f"<0x{byte:02X}>" for byte in range(256)]
    pieces += ["\u2581", *map(chr, range(0x21, 0x7F)), "de", "\u2581f", "\n"]
    model = tokenizers.models.BPE(
        {piece: id for id, piece in enumerate(pieces)},
        [("d", "e"), ("\u2581", "f")],
        byte_fallback=True,
        fuse_unk=True,
        unk_token="<unk>",
    )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = tokenizers.normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("\u2581", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
        ]
    )
    special = [tokenizers.AddedToken(piece, special=True, normalized=False) for piece in pieces[:6]]
    tokenizer.add_special_tokens(special)
    return tokenizer


def byte_level() -> "tokenizers.Tokenizer":
    """Byte-level BPE, as GPT-2's."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["def f(x): return x"] * 10, trainer)
    return tokenizer


@pytest.fixture(scope="module", params=[gemma_like, byte_level])
def loaded(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    request.param().save(str(path))
    return load_tokenizer(path.parent)


@hypothesis.given(text=TEXT.filter(lambda text: "\u2581" not in text))
@hypothesis.settings(max_examples=100)
def test_decoding_gives_back_the_text_and_its_bytes_are_counted_exactly(loaded, text):
    ids = loaded.encode(text)
    assert loaded.decode(ids) == text
    assert loaded.num_bytes(ids) == len(text.encode())
    assert {loaded.bos_id, loaded.eos_id, loaded.id_of("<end_of_turn>")}.isdisjoint(ids)


def test_the_special_tokens_are_found_by_their_names(loaded):
    if loaded.id_of("<bos>") is None:
        assert loaded.bos_id == loaded.eos_id == loaded.id_of("<|endoftext|>")
    else:
        assert (loaded.pad_id, loaded.eos_id, loaded.bos_id) == (0, 1, 2)
    assert loaded.decode([loaded.bos_id, *loaded.encode("a"), loaded.eos_id]) == "a"


def test_the_configuration_beside_the_file_names_the_special_tokens_and_travels_along(tmp_path):
    gemma_like().save(str(tmp_path / "tokenizer.json"))
    settings = {"eos_token": "<end_of_turn>", "bos_token": {"content": "<start_of_turn>"}, "pad_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    loaded = load_tokenizer(tmp_path)
    assert (loaded.bos_id, loaded.eos_id, loaded.pad_id) == (4, 5, 0)
    loaded.save(tmp_path / "copy")
    assert load_tokenizer(tmp_path / "copy").eos_id == 5
    assert load_tokenizer(tmp_path / "copy").fingerprint == loaded.fingerprint


def test_control_tokens_are_read_from_a_prompt_only_when_asked_for(tmp_path):
    gemma_like().save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(tmp_path)
    assert loaded.encode("<start_of_turn>a", parse_special=True) == [4, loaded.id_of("a")]
    assert loaded.encode("<start_of_turn>a")[0] == loaded.id_of("<")


@pytest.mark.parametrize("data", ["", "{}", "[1, 2", '{"model": {"type": "nope"}}'])
def test_a_damaged_file_is_refused_with_its_name(tmp_path, data):
    (tmp_path / "tokenizer.json").write_text(data)
    with pytest.raises(UserError, match="tokenizer.json: not a Hugging Face tokenizer, or damaged"):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_bits_per_byte_are_refused_where_tokens_are_no_stretches_of_text(tmp_path):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0, "[SEP]": 1, "a": 2}, unk_token="[UNK]"))
    tokenizer.decoder = tokenizers.decoders.WordPiece()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="bits per byte .* WordPiece"):
        load_tokenizer(tmp_path).num_bytes([2])


def test_a_missing_tokenizers_package_is_named_with_the_way_to_install_it(tmp_path, monkeypatch):
    import sys

    byte_level().save(str(tmp_path / "tokenizer.json"))
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match="pip install '.\\[hf\\]'"):
        load_tokenizer(tmp_path)
