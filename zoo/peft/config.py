"""Which parameter-efficient method a run fine-tunes with, and its sizes."""

import dataclasses
from dataclasses import dataclass
from typing import Literal, get_args

from zoo.errors import UserError, nearest_name

Method = Literal["none", "lora", "bottleneck", "prefix", "bitfit", "sparse"]

_OWN_FIELDS: dict[str, tuple[str, ...]] = {
    "none": (),
    "lora": ("rank", "alpha", "rslora", "dropout", "target"),
    "bottleneck": ("bottleneck_dim", "placement"),
    "prefix": ("prefix_length",),
    "bitfit": ("norm_scales",),
    "sparse": ("density", "mask_from", "target"),
}
"""Fields that mean something to each method."""


@dataclass(frozen=True)
class PeftConfig:
    """Parameter-efficient fine-tuning: the model stays as it is, few parameters beside it are trained."""

    method: Method = "none"
    """none: the whole model is trained. lora: low-rank changes of weights (arXiv 2106.09685). bottleneck: adapters
    behind sub-layers (arXiv 1902.00751, 2005.00247). prefix: learned keys and values (arXiv 2101.00190). bitfit: biases
    (arXiv 2106.10199). sparse: a few entries of the weights (lottery-ticket fine-tuning, arXiv 2110.07560)."""
    rank: int = 8
    """lora: rank r of a change."""
    alpha: float = 16.0
    """lora: a change is multiplied with alpha / r."""
    rslora: bool = False
    """lora: multiply with alpha / sqrt(r) instead (arXiv 2312.03732)."""
    dropout: float = 0.0
    """lora: probability that an input of a change is zeroed in training."""
    target: tuple[str, ...] = ()
    """lora, sparse: which weights, by name (`query`, `mlp/up`) or pattern (`layers/1/*`). Default: query and value for
    lora (arXiv 2106.09685, section 7.1), all matrices of layers for sparse."""
    bottleneck_dim: int = 64
    """bottleneck: width of an adapter."""
    placement: Literal["pfeiffer", "houlsby"] = "pfeiffer"
    """bottleneck: behind feed-forward layers (pfeiffer), or behind attention as well (houlsby)."""
    prefix_length: int = 16
    """prefix: learned keys and values of each layer."""
    norm_scales: bool = False
    """bitfit: train the scales of norms besides. In a model without biases they are all there is to train."""
    density: float = 0.01
    """sparse: part of the targets' entries that is trained: those that `mask_from` changed most."""
    mask_from: str | None = None
    """sparse: a run that fine-tuned the whole base on the same task."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", tuple(self.target))
        if self.method not in get_args(Method):
            raise UserError(f"peft.method {self.method!r} is unknown; {nearest_name(self.method, get_args(Method))}")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "method" and value != field.default and field.name not in _OWN_FIELDS[self.method]:
                raise UserError(f"peft.{field.name}={value} has no meaning for peft.method={self.method}: leave it out")
        for name, low, high in (
            ("rank", 1, 2**16),
            ("alpha", 1e-6, 1e6),
            ("dropout", 0.0, 0.99),
            ("bottleneck_dim", 1, 2**16),
            ("prefix_length", 1, 2**16),
            ("density", 1e-9, 1.0),
        ):
            if not low <= getattr(self, name) <= high:  # also refuses NaN
                raise UserError(f"peft.{name} must be between {low:g} and {high:g}, not {getattr(self, name)}")
        if self.placement not in ("pfeiffer", "houlsby"):
            raise UserError(f"peft.placement must be 'pfeiffer' or 'houlsby', not {self.placement!r}")

    @property
    def trains_adapter(self) -> bool:
        """Whether the model itself stays as it is."""
        return self.method != "none"

    @property
    def scale(self) -> float:
        """Factor of a low-rank change."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)

    @property
    def is_change(self) -> bool:
        """Whether the adapter is nothing but other values of the model's own parameters."""
        return self.method in ("bitfit", "sparse")
