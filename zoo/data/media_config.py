"""How images, recordings and videos become soft tokens, and how many of them a row holds."""

from dataclasses import dataclass
from typing import Literal

from zoo.errors import UserError


@dataclass(frozen=True)
class MediaConfig:
    """The media of interleaved documents. With the defaults a run takes text only. What Gemini does is not published
    beyond "variable resolution", "16 kHz" and the numbers of frames."""

    patch_size: int = 16
    """Pixels along a patch; as the image encoder's."""

    merge: int = 2
    """merge x merge patches become one soft token; as the model's `vision_merge`."""

    max_patches: int = 256
    """Most patches of one image. Larger images are made smaller at the same aspect ratio; smaller ones keep their size,
    but for a shorter side below one square of merge x merge patches, which becomes one square."""

    patches_per_row: int = 0
    """Patches that a row of the batch holds, over all of its images; 0 = no images."""

    min_image_side: int = 4
    """An image with fewer pixels on a side is refused."""

    max_image_side: int = 16_384
    """An image with more pixels on a side is refused before it is decoded."""

    max_image_pixels: int = 2**26
    """An image with more pixels is refused before it is decoded."""

    clips_per_row: int = 0
    """Clips of audio that a row of the batch holds, over all of its recordings; 0 = no audio."""

    clip_frames: int = 96
    """Log-mel frames, of 10 ms each, in a clip; a longer recording takes several clips. A multiple of
    `audio_reduction`."""

    audio_reduction: int = 16
    """Log-mel frames that become one soft token; as the audio encoder's `reduction`."""

    mel_bins: int = 128
    """Bands of the log-mel features; as the audio encoder's `num_mel_bins`."""

    log_mel: Literal["usm", "whisper"] = "usm"
    """Which log-mel features (`zoo.data.log_mel`)."""

    video_fps: float = 1.0
    """Frames that are taken from a second of video; 1 as in Gemini 1.5."""

    video_frames: int = 16
    """Most frames of one video; a longer one gives so many, equally spaced, as in Gemini 1.0."""

    video_max_patches: int | None = None
    """Most patches of a video's frame; None: `max_patches`."""

    image_codes: int = 0
    """Codes of the VQ tokenizer in which images are written; 0 = no images are written."""

    image_tokenizer: str | None = None
    """A run of the recipe image-vq, whose codes stand for images to be generated that bring none of their own; None =
    all bring theirs."""

    image_side: int = 0
    """For training a tokenizer of images: of a document only images are read, those to be generated and the frames of
    videos among them, each cut to the square in its middle and resized to so many pixels a side; a multiple of
    `patch_size` x `merge`. 0 = whole documents."""

    check: Literal["files", "contents"] = "files"
    """What is looked at before training starts. files: each exists, is not empty and has a known extension. contents:
    each is decoded once, too; otherwise that happens when its document is read."""

    bad_media: Literal["stop", "skip"] = "stop"
    """stop: a document whose media cannot be used, or that does not fit into a row, ends the run. skip: it is left out
    and counted."""

    def __post_init__(self):
        least = {"patches_per_row": 0, "clips_per_row": 0, "image_codes": 0, "image_side": 0}
        for name in ("patch_size", "merge", "max_patches", "patches_per_row", "min_image_side", "max_image_side",
                     "max_image_pixels", "clips_per_row", "clip_frames", "audio_reduction", "mel_bins", "video_frames",
                     "image_codes", "image_side"):  # fmt: skip
            _whole(name, getattr(self, name), least.get(name, 1))
        if self.video_max_patches is not None:
            _whole("video_max_patches", self.video_max_patches, 1)
        if not 0 < self.video_fps <= 1000:
            raise UserError(f"media.video_fps must be above 0 and at most 1000, not {self.video_fps!r}")
        for name, allowed in (
            ("log_mel", ("usm", "whisper")), ("check", ("files", "contents")), ("bad_media", ("stop", "skip")),
        ):  # fmt: skip
            if getattr(self, name) not in allowed:
                raise UserError(f"media.{name} must be {' or '.join(map(repr, allowed))}, not {getattr(self, name)!r}")
        square = self.merge**2
        for name in ("max_patches", "video_max_patches", "patches_per_row"):
            value = getattr(self, name)
            if value and value % square:
                raise UserError(f"media.{name}={value} must be a multiple of merge x merge = {square}")
        if self.image_side % (self.patch_size * self.merge):
            raise UserError(
                f"media.image_side={self.image_side} must be a multiple of patch_size x merge = "
                f"{self.patch_size * self.merge}"
            )
        if self.clip_frames % self.audio_reduction:
            raise UserError(
                f"media.clip_frames={self.clip_frames} must be a multiple of audio_reduction={self.audio_reduction}"
            )

    @property
    def patch_dim(self) -> int:
        """Numbers of one patch."""
        return 3 * self.patch_size**2

    @property
    def clip_tokens(self) -> int:
        """Soft tokens of a full clip."""
        return self.clip_frames // self.audio_reduction


def _whole(name: str, value: int, least: int):
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31:
        raise UserError(f"media.{name} must be a whole number of at least {least}, not {value!r}")
