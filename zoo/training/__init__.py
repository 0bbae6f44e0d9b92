"""How a model is trained: losses, optimizers, the train state and step, checkpoints, the loop, metrics.

Nothing here knows a particular model: a model is any Flax NNX module, an objective any function of it and a batch.
"""

from zoo.training.losses import LossSums, chunked_cross_entropy, next_token_loss
from zoo.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from zoo.training.state import TrainState, abstract_state, create_state, tokens_seen
from zoo.training.step import jit_train_step, make_eval_step, make_train_step

__all__ = [
    "LossSums",
    "OptimizerConfig",
    "TrainState",
    "abstract_state",
    "chunked_cross_entropy",
    "create_state",
    "jit_train_step",
    "make_eval_step",
    "make_optimizer",
    "make_schedule",
    "make_train_step",
    "next_token_loss",
    "tokens_seen",
]
