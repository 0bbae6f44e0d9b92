"""Records of a .jsonl file as prompts, and new tokens as text with images in it."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image as Pillow

from tests.data.media_files import write_image, write_records
from zoo.data import BadMedia, MediaConfig, MediaVocabulary
from zoo.errors import UserError
from zoo.inference import ImageOutput
from zoo.inference.drawn_images import Image, image_output_of, image_pieces, images_folder, write_answer
from zoo.inference.interleaved import read_records

TOKENIZER = SimpleNamespace(vocab_size=128, bos_id=2, encode=lambda text: list(text.encode()))
WORDS = MediaVocabulary(128, 8)
MEDIA = MediaConfig(patch_size=4, merge=2, max_patches=16, patches_per_row=32, image_codes=8)
IMAGES = ImageOutput(WORDS, codes_per_image=2)
BEGIN, END, CODE = WORDS.image_begin, WORDS.image_end, WORDS.first_code
ASK = {"image": "", "output": True}


def read(tmp_path, *records, config=MEDIA, encode=None):
    return read_records(write_records(tmp_path / "a.jsonl", list(records)), TOKENIZER, config, encode)


def test_each_line_is_a_prompt_in_any_form_of_a_document(tmp_path):
    write_image(tmp_path / "0.png", 8, 16)
    lists, content, text = read(
        tmp_path, [{"text": "a"}, {"image": "0.png"}], {"content": [{"text": "b"}], "loss": False}, {"text": "c"}
    )
    assert lists.prompt[0].tolist() == [[2, 97, BEGIN, WORDS.image_soft, WORDS.image_soft, END]]
    assert lists.prompt[1].images.patches.shape == (1, 8, 48) and lists.prompt[1].image_slots[0, 3:5].tolist() == [0, 1]
    assert (content.prompt[0].tolist(), content.prompt[1], text.prompt[0].tolist()) == ([[2, 98]], None, [[2, 99]])
    assert [record.where[-2:] for record in (lists, content, text)] == [":1", ":2", ":3"]
    assert not any(record.opens_image for record in (lists, content, text))


@pytest.mark.parametrize("ask", [ASK, {"image": None, "output": True}, ASK | {"loss": True}], ids=str)
def test_a_last_image_without_a_file_asks_for_one(tmp_path, ask):
    write_image(tmp_path / "0.png", 8, 8)
    alone, after = read(tmp_path, [ask], {"content": [{"image": "0.png"}, {"text": "b"}, ask]})
    assert alone.opens_image and after.opens_image
    assert alone.prompt[0].tolist() == [[2, BEGIN]]
    assert after.prompt[0].tolist() == [[2, BEGIN, WORDS.image_soft, END, 98, BEGIN]]
    assert after.prompt[1].image_slots.tolist() == [[-1, -1, 0, -1, -1, -1]]


def test_an_image_that_was_drawn_before_is_given_as_codes(tmp_path):
    write_image(tmp_path / "0.png", 8, 8)
    given = {"image": "0.png", "output": True}
    first, second = read(tmp_path, [given, ASK], [given | {"codes": [3, 1]}], encode=lambda pixels: np.array([7, 0]))
    assert first.prompt[0].tolist() == [[2, BEGIN, CODE + 7, CODE, END, BEGIN]]
    assert second.prompt[0].tolist() == [[2, BEGIN, CODE + 3, CODE + 1, END]]


BAD_RECORDS = {
    "missing image": ([[{"text": "a"}], [{"image": "no.png"}]], "a.jsonl:2: part 1: .*no.png: no such file"),
    "audio": ([[{"audio": "a.wav"}]], "a.jsonl:1: part 1: an audio, but data.media.clips_per_row is 0"),
    "unknown part": ([[{"txt": "a"}]], "a.jsonl:1: part 1 must be an object with one of text"),
    "no parts": ([{"prompt": "a"}], "a.jsonl:1: need a list of parts"),
    "empty record": ([[{"text": "a"}], []], "a.jsonl:2: an empty prompt"),
    "no records": ([], "a.jsonl: holds no prompt"),
    "a wanted image before the end": ([[ASK, {"text": "a"}]], "a.jsonl:1: part 1: .*no such file"),
    "a wanted image with more": ([[ASK | {"size": 3}]], "a.jsonl:1: part 1: image has no field 'size'"),
    "a number": ([3], "a.jsonl:1: expected a JSON object or list on each line, found a number"),
}


@pytest.mark.parametrize("case", BAD_RECORDS)
def test_records_that_cannot_be_used_are_named(tmp_path, case):
    records, said = BAD_RECORDS[case]
    with pytest.raises(UserError, match=said) as raised:
        read(tmp_path, *records)
    assert "\n" not in str(raised.value)
    assert isinstance(raised.value, BadMedia) == ("no such file" in said)


def test_files_that_hold_no_records_are_refused(tmp_path):
    for name, said in (("no.jsonl", "no such file"), ("a.png", "prompts with media are .jsonl files")):
        with pytest.raises(UserError, match=said):
            read_records(tmp_path / name, TOKENIZER, MEDIA)
    with pytest.raises(UserError, match="a.jsonl:1: asks for an image, and this model writes none"):
        read(tmp_path, [ASK], config=MediaConfig())


def test_new_tokens_are_words_and_images_in_their_order():
    ids = [5, 6, BEGIN, CODE, CODE + 3, END, 7, BEGIN, CODE + 1, CODE + 2, END, BEGIN, CODE + 4]
    whole = [[5, 6], Image((0, 3), True), [7], Image((1, 2), True), Image((4,), False)]
    assert image_pieces(ids, IMAGES) == whole
    assert image_pieces(ids[3:], IMAGES, inside=True) == whole[1:]
    assert image_pieces([], IMAGES) == [] and image_pieces([], IMAGES, inside=True) == [Image((), False)]
    assert image_pieces([5, BEGIN, CODE, CODE], IMAGES) == [[5], Image((0, 0), True)]  # the marker is not missed


def test_images_are_files_and_the_text_names_them(tmp_path):
    def paint(codes):
        return np.full((4, 4, 3), 10 * codes[0] + codes[1], np.uint8)

    ids = [97, BEGIN, CODE + 1, CODE + 3, END, 98, BEGIN, CODE + 2, CODE + 1, END, 99, BEGIN, CODE]
    decode = lambda ids: bytes(ids).decode()  # noqa: E731
    text, cut = write_answer(ids, IMAGES, decode, paint, tmp_path / "p")
    assert text == "a[p-image-1.png]b[p-image-2.png]c[image 3 cut off after 1 of 2 codes]" and cut == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["p-image-1.png", "p-image-2.png"]
    for number, value in ((1, 13), (2, 21)):
        with Pillow.open(tmp_path / f"p-image-{number}.png") as image:
            assert image.format == "PNG" and image.size == (4, 4) and set(np.asarray(image).ravel()) == {value}


def test_nothing_is_overwritten_by_images(tmp_path):
    (tmp_path / "drawn").mkdir()
    with images_folder(tmp_path / "drawn") as folder:
        (folder / "a.png").write_text("a")
    assert (tmp_path / "drawn" / "a.png").read_text() == "a"
    for path in (tmp_path / "drawn", tmp_path / "drawn" / "a.png"):
        with pytest.raises(UserError, match="--images-out .*exists already"), images_folder(path):
            raise AssertionError("the block does not begin")


def test_a_folder_of_images_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), images_folder(tmp_path / "drawn") as folder:
        (folder / "a.png").write_text("a")
        raise RuntimeError("interrupted")
    assert list(tmp_path.iterdir()) == []


def test_an_image_tokenizer_of_other_codes_is_refused():
    painter = SimpleNamespace(num_codes=8, codes_per_image=2)
    assert image_output_of(painter, TOKENIZER, MEDIA) == IMAGES
    with pytest.raises(UserError, match="has 4 codes, data.media.image_codes .* is 8"):
        image_output_of(SimpleNamespace(num_codes=4, codes_per_image=2), TOKENIZER, MEDIA)
    with pytest.raises(UserError, match="writes no images"):
        image_output_of(painter, TOKENIZER, MediaConfig())
