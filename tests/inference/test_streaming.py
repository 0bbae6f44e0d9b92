import pytest

from zoo.inference import TextStream


class Bytes:
    """A tokenizer of one token per byte, that drops the space before a text's first word as SentencePiece may."""

    def decode(self, ids) -> str:
        return bytes(ids).decode(errors="replace").removeprefix(" ")


def pieces(data: bytes) -> list[str]:
    stream = TextStream(Bytes())
    return [stream.push([byte]) for byte in data] + [stream.flush()]


@pytest.mark.parametrize("character", ["a", "é", "€", "😀"])
def test_a_character_appears_when_its_last_byte_has_arrived(character):
    data = character.encode()
    assert pieces(data) == [""] * (len(data) - 1) + [character, ""]


@pytest.mark.parametrize("text", ["plain", "naïve café", "汉字 and 😀😀", " leading space", "a\n\nb  c"])
def test_the_pieces_add_up_to_the_text(text):
    assert "".join(pieces(text.encode())) == text.removeprefix(" ")


def test_bytes_that_are_no_text_do_not_hold_back_what_follows():
    shown = pieces(b"\xff\xff\xff\xff\xffabc")
    assert "".join(shown[4:]).endswith("abc")
    assert all(len(text) <= 5 for text in shown)


def test_an_unfinished_character_is_shown_at_the_end():
    assert pieces("€".encode()[:2]) == ["", "", "\N{REPLACEMENT CHARACTER}"]


def test_several_tokens_may_arrive_at_once():
    stream = TextStream(Bytes())
    assert [stream.push("a€".encode()[:3]), stream.push("a€".encode()[3:]), stream.flush()] == ["", "a€", ""]
