"""How images with classes become what a classifier reads."""

from dataclasses import dataclass

from zoo.errors import UserError


@dataclass(frozen=True)
class LabelledImagesConfig:
    """Images of the format labelled_images. In training a random rectangle of each image is taken; otherwise the square
    in its middle."""

    classes: tuple[str, ...] = ()
    """Names, as the data's labels have them; a class's number is its place here."""

    side: int = 224
    """Pixels of a side of what the model reads."""

    channels: int = 3
    """Of a pixel: 3, or 1 for grey (luma, Rec. 601)."""

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Subtracted from values in 0..1, one for each channel; the default is that of the public weights for ImageNet."""

    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """What is left is divided by it."""

    crop: float = 0.08
    """Least share of an image's area that is taken in training; 1 takes all of it."""

    elongation: float = 4 / 3
    """Most that one side of what is taken may be times the other, relative to the image's own sides."""

    mirror: bool = True
    """In training, half of the images are mirrored left to right."""

    contrast: float = 0.0
    """In training, differences from the image's mean are multiplied with 1 - contrast .. 1 + contrast."""

    brightness: float = 0.0
    """In training, values in 0..1 get between -brightness and brightness added."""

    def __post_init__(self):
        for name in ("classes", "mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(set(self.classes)) != len(self.classes):
            twice = next(name for name in self.classes if self.classes.count(name) > 1)
            raise UserError(f"images.classes names {twice!r} more than once")
        if self.side < 1 or self.channels not in (1, 3):
            raise UserError(f"images.side={self.side} must be at least 1, images.channels={self.channels} 1 or 3")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != self.channels:
                raise UserError(f"images.{name} has {len(values)} numbers, one for each of {self.channels} channels")
        if min(self.std) <= 0:
            raise UserError(f"images.std={self.std} must be above 0")
        if not (0 < self.crop <= 1 and 1 <= self.elongation <= 10):
            raise UserError(
                f"images.crop={self.crop} must lie in 0 .. 1, images.elongation={self.elongation} in 1 .. 10"
            )
        if not (0 <= self.contrast < 1 and 0 <= self.brightness < 1):
            raise UserError(
                f"images.contrast={self.contrast}, images.brightness={self.brightness} must be at least 0 and below 1"
            )
