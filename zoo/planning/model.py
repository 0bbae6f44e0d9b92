"""What the plan asks of a model's config, whatever the architecture."""

from typing import Any

from zoo.errors import UserError
from zoo.models import TrainedConfig


def one_decoder(model: TrainedConfig) -> Any:
    """The config, whose widths can be read. Raises `UserError` for a pair of models that train together."""
    if not hasattr(model, "num_kv_heads"):
        raise UserError(f"this part of the plan is about one decoder; {type(model).__name__} is not one")
    return model


def feed_forward_width(model: TrainedConfig) -> int:
    """Width of the feed-forward layer that one token uses; of models with dense layers, of those."""
    model = one_decoder(model)
    return model.hidden_dim if hasattr(model, "hidden_dim") else model.experts.active_hidden_dim
