"""`zoo.generate --interleaved`: records with media in, text and PNG files out."""

import dataclasses
import json
import re

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from tests.data.media_files import write_image, write_records, write_wav
from zoo.data import MediaVocabulary, train_tokenizer
from zoo.errors import UserError
from zoo.generate import main
from zoo.inference.image_tokens import codes_to_images
from zoo.interop import load, save_run
from zoo.models import VqImage, VqImageConfig, build
from zoo.models.gemini import GeminiConfig
from zoo.models.siglip import SiglipConfig

pytestmark = pytest.mark.slow  # what they are made of is tested in tests/inference

TEXT = ["the quick brown fox jumps over the lazy dog"] * 20
MEDIA = dict(patch_size=4, merge=2, max_patches=16, patches_per_row=32, image_codes=8)
WORDS = MediaVocabulary(290, 8)
PAINTER = VqImageConfig(
    image_size=8, patch_size=4, num_codes=8, code_dim=4, embed_dim=8, num_layers=1, num_heads=1, hidden_dim=8
)


def record_media(run, media, format="interleaved"):
    """What a training run would have recorded of its recipe."""
    described = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(described | {"config": {"data": {"format": format, "media": media}}}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """runs/painter, an image tokenizer; runs/model, which reads images and writes them; runs/text, which knows none."""
    folder = tmp_path_factory.mktemp("generate_media")
    tokenizer = train_tokenizer(TEXT, WORDS.text_size)
    assert tokenizer.vocab_size == WORDS.text_size
    config = GeminiConfig(
        vocab_size=WORDS.size,
        embed_dim=16,
        num_layers=1,
        num_heads=1,
        head_dim=16,
        hidden_dim=16,
        layer_types=("global",),
        max_position_embeddings=64,
        vision=SiglipConfig(embed_dim=8, num_layers=1, num_heads=1, hidden_dim=8, patch_size=4, image_size=16),
    )
    model = build(config, rngs=nnx.Rngs(0))
    save_run(VqImage(PAINTER, rngs=nnx.Rngs(1)), folder / "painter")
    save_run(VqImage(dataclasses.replace(PAINTER, num_codes=4), rngs=nnx.Rngs(1)), folder / "other")
    save_run(model, folder / "model", tokenizer=tokenizer)
    save_run(model, folder / "text", tokenizer=tokenizer)
    record_media(folder / "model", MEDIA | {"image_tokenizer": str(folder / "painter")})
    for number in range(2):
        write_image(folder / f"{number}.png", 8, 8 * (number + 1), seed=number)
    write_wav(folder / "a.wav")
    return folder


def run(folder, records, *arguments, checkpoint="model"):
    prompts = write_records(folder / "prompts.jsonl", records)
    main(["--checkpoint", str(folder / checkpoint), "--interleaved", str(prompts), *map(str, arguments)])


def test_images_are_written_and_named_in_the_text_where_they_stand(folder, tmp_path, capsys):
    """At a temperature at which all that may be drawn is drawn; 24 tokens are 4 images at most."""
    records = [
        [{"image": "0.png"}, {"text": "the fox"}, {"image": "1.png"}],
        {"content": [{"text": "draw"}, {"image": "", "output": True}]},
        {"text": "the dog"},
        [{"image": "1.png", "output": True}, {"text": "again"}, {"image": None, "output": True}],
    ]
    drawn, ids = tmp_path / "drawn", tmp_path / "new.npy"
    run(folder, records, "--max-new-tokens", 24, "--temperature", 20, "--images-out", drawn, "--out", ids)
    printed = capsys.readouterr().out
    tokenizer, painter = load(folder / "model").tokenizer, load(folder / "painter").model
    for number, row in enumerate(np.load(ids).tolist(), 1):
        row = [WORDS.image_begin] * (number in (2, 4)) + (row[: row.index(1)] if 1 in row else row)
        text, images = "", 0
        while row:
            if row[0] == WORDS.image_begin:
                images += 1
                name = f"prompt-{number}-image-{images}.png"
                codes = WORDS.codes_of_ids(row[1:5])
                with Image.open(drawn / name) as image:
                    np.testing.assert_array_equal(np.asarray(image), codes_to_images(painter, codes[None])[0])
                assert row[5] == WORDS.image_end
                text, row = text + f"[{name}]", row[6:]
            else:
                end = row.index(WORDS.image_begin) if WORDS.image_begin in row else len(row)
                text, row = text + tokenizer.decode(row[:end]), row[end:]
        assert f"[{folder}/prompts.jsonl:{number}]\n{text}\n\n" in printed
        assert images > 0 or number % 2
    assert sorted(set(re.findall(r"prompt-\d-image-\d.png", printed))) == sorted(file.name for file in drawn.iterdir())


def test_an_image_that_new_tokens_end_in_is_reported_and_not_written(folder, tmp_path, capsys):
    drawn = tmp_path / "drawn"
    run(folder, [[{"text": "draw"}, {"image": "", "output": True}]], "--max-new-tokens", 3, "--images-out", drawn)
    printed = capsys.readouterr()
    assert printed.out == "[image 1 cut off after 3 of 4 codes]\n"
    assert "prompts.jsonl:1: --max-new-tokens ended inside of an image" in printed.err
    assert list(drawn.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--prompt", "the"], ["--interleaved", "PROMPTS"]], ids=lambda words: words[0])
def test_without_a_folder_for_images_only_words_are_drawn(folder, tmp_path, arguments):
    prompts = write_records(folder / "prompts.jsonl", [[{"image": "0.png"}]])
    arguments = [str(prompts) if word == "PROMPTS" else word for word in arguments]
    ids = tmp_path / "new.npy"
    main(["--checkpoint", str(folder / "model"), *arguments, "--temperature", "20", "--out", str(ids)])
    assert np.load(ids).max() < WORDS.text_size


ASK = {"image": "", "output": True}
BAD_INPUT = {
    "missing image": ([[{"text": "a"}], [{"image": "no.png"}]], [], "prompts.jsonl:2: part 1: .*no.png: no such file"),
    "an image without a folder": ([[ASK]], [], "prompts.jsonl:1: asks for an image: say --images-out"),
    "another tokenizer": ([[ASK]], ["--images-out", "NEW", "--image-tokenizer", "OTHER"], "has 4 codes, .* is 8"),
    "no image tokenizer": ([[ASK]], ["--images-out", "NEW", "--image-tokenizer", "text"], "no image tokenizer"),
    "no such tokenizer": ([[ASK]], ["--images-out", "NEW", "--image-tokenizer", "no/such"], "no/such"),
    "a run of text": ([[ASK]], ["--checkpoint", "text"], "--interleaved needs a run that was trained on interleaved"),
    "a long prompt": ([[{"text": "the fox " * 99}]], [], "fills the model's context"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_what_cannot_be_used_is_one_line_and_leaves_nothing(folder, tmp_path, case):
    records, arguments, said = BAD_INPUT[case]
    names = {"NEW": tmp_path / "drawn", "OTHER": folder / "other", "text": folder / "text"}
    arguments = [str(names.get(argument, argument)) for argument in arguments]
    if "--checkpoint" not in arguments:
        arguments += ["--checkpoint", str(folder / "model")]
    prompts = write_records(folder / "prompts.jsonl", records)
    with pytest.raises(UserError, match=said) as raised:
        main(["--interleaved", str(prompts), *arguments])
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []
