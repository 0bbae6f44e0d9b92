import numpy as np
import pytest
from PIL import Image

from tests.data.media_files import write_image
from zoo.data import BadMedia, MediaConfig
from zoo.data.images import fitted_squares, patches_of, read_image, resized, scaled

CONFIG = MediaConfig(patch_size=4, merge=2, max_patches=64)


def read(path, **fields):
    return read_image(path, MediaConfig(**fields))


def test_an_image_within_its_budget_keeps_its_size_and_a_larger_one_its_aspect_ratio():
    assert fitted_squares(64, 32, square=16, max_squares=16) == (4, 2)
    assert fitted_squares(640, 320, square=16, max_squares=18) == (6, 3)
    assert fitted_squares(300, 1000, square=16, max_squares=48) == (4, 12)


def test_every_image_has_at_least_a_square_and_no_more_than_the_budget():
    random = np.random.default_rng(0)
    for height, width in random.integers(1, 3000, (300, 2)):
        for most in (4, 30):
            if max(height, width) > most * min(height, width):
                with pytest.raises(ValueError, match="too elongated"):
                    fitted_squares(height, width, square=16, max_squares=most)
                continue
            rows, columns = fitted_squares(height, width, square=16, max_squares=most)
            assert rows >= 1 and columns >= 1 and rows * columns <= most


def test_a_small_image_is_enlarged_only_until_its_shorter_side_is_one_square():
    assert fitted_squares(8, 24, square=16, max_squares=16) == (1, 3)
    assert fitted_squares(17, 17, square=16, max_squares=16) == (1, 1)


def test_patches_of_a_square_follow_each_other_and_carry_their_place():
    rows, columns = np.meshgrid(np.arange(16), np.arange(24), indexing="ij")
    pixels = np.stack([rows, columns, 0 * rows], -1).astype(np.uint8)
    patches, centres = patches_of(pixels, patch_size=4, merge=2)
    assert patches.shape == (24, 48) and centres.shape == (24, 2)
    corners = patches.reshape(24, 4, 4, 3)[:, 0, 0, :2].tolist()  # row and column of the patch's first pixel
    assert corners[:5] == [[0, 0], [0, 4], [4, 0], [4, 4], [0, 8]]
    assert corners[12:14] == [[8, 0], [8, 4]]
    np.testing.assert_allclose(centres, [((r + 2) / 16, (c + 2) / 24) for r, c in corners], rtol=1e-6)
    # within a patch: row, column, channel
    assert patches[0].reshape(4, 4, 3)[1, 2].tolist() == [1, 2, 0]


def test_pixels_are_scaled_to_minus_one_to_one():
    assert scaled(np.array([0, 255], np.uint8)).tolist() == [-1.0, 1.0]


def test_resizing_gives_whole_squares_and_refuses_what_is_too_elongated():
    assert resized(np.zeros((100, 50, 3), np.uint8), CONFIG, 64).shape == (40, 24, 3)
    with pytest.raises(BadMedia, match="100 x 4 pixels are too elongated for 16 squares of 8 x 8"):
        resized(np.zeros((4, 100, 3), np.uint8), CONFIG, 64)


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "bmp", "tiff"])
def test_images_of_every_kind_are_read_as_rgb(tmp_path, extension):
    Image.new("RGB", (20, 10), (200, 100, 50)).save(tmp_path / f"a.{extension}")
    pixels = read(tmp_path / f"a.{extension}")
    assert pixels.shape == (10, 20, 3) and pixels.dtype == np.uint8
    assert abs(pixels.astype(int) - [200, 100, 50]).max() <= 3


def test_transparency_is_white(tmp_path):
    Image.new("RGBA", (8, 8), (10, 20, 30, 0)).save(tmp_path / "a.png")
    assert (read(tmp_path / "a.png") == 255).all()
    Image.new("RGBA", (8, 8), (0, 0, 0, 128)).save(tmp_path / "b.png")
    assert abs(int(read(tmp_path / "b.png")[0, 0, 0]) - 127) <= 1
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 9, 8, 7])
    palette.save(tmp_path / "c.png")
    assert read(tmp_path / "c.png")[0, 0].tolist() == [9, 8, 7]
    palette.save(tmp_path / "d.png", transparency=1)
    assert (read(tmp_path / "d.png") == 255).all()


def test_sixteen_bits_are_scaled_and_cmyk_is_converted(tmp_path):
    Image.fromarray(np.full((8, 8), 257 * 100, np.uint16)).save(tmp_path / "a.png")
    assert (read(tmp_path / "a.png") == 100).all()
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "b.jpg", quality=95)
    red, green, blue = read(tmp_path / "b.jpg")[0, 0].tolist()
    assert red > 240 and green < 20 and blue < 20


def test_a_photograph_is_turned_upright_as_its_exif_says(tmp_path):
    image = Image.fromarray(np.arange(8 * 16, dtype=np.uint8).reshape(8, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image.save(tmp_path / "a.png", exif=exif)
    assert read(tmp_path / "a.png").shape == (16, 8, 3)
    assert read(tmp_path / "a.png")[0, :, 0].tolist() == [112, 96, 80, 64, 48, 32, 16, 0]


def test_a_missing_image_and_one_that_is_not_what_its_extension_says_are_refused(tmp_path):
    with pytest.raises(BadMedia, match="a.png: no such file"):
        read(tmp_path / "a.png")
    write_image(tmp_path / "a.jpg").rename(tmp_path / "a.png")
    with pytest.raises(BadMedia, match="a.png: not a PNG file but JPEG: mend its extension"):
        read(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(b"no image at all")
    with pytest.raises(BadMedia, match="a.png: not a PNG file, or a damaged one"):
        read(tmp_path / "a.png")


@pytest.mark.parametrize("extension", ["png", "jpg"])
def test_a_truncated_image_is_refused(tmp_path, extension):
    path = write_image(tmp_path / f"a.{extension}", 64, 64)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BadMedia, match=f"a.{extension}: a damaged (PNG|JPEG) file: image file is truncated"):
        read(path)


@pytest.mark.parametrize(
    "size, message",
    [
        ((1, 1), "1 x 1 pixels, a side has fewer than media.min_image_side=4"),
        ((20_000, 20), "20,000 x 20 pixels, a side has more than media.max_image_side=16,384"),
        ((9000, 9000), "9,000 x 9,000 pixels, more than media.max_image_pixels=67,108,864"),
    ],
)
def test_images_of_absurd_sizes_are_refused_before_they_are_decoded(tmp_path, monkeypatch, size, message):
    Image.new("1", size).save(tmp_path / "a.png")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    with pytest.raises(BadMedia, match=f"a.png: {message}"):
        read(tmp_path / "a.png")


def test_an_animation_is_refused(tmp_path):
    frames = [Image.new("RGB", (8, 8), (level, 0, 0)) for level in (0, 100)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    with pytest.raises(BadMedia, match="2 images in one file; give an animation as a video"):
        read(tmp_path / "a.png")
