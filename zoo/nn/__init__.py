"""The blocks that models are composed from, the attention cache among them. They know logical axes, no mesh axes."""

from zoo.nn.attention import Attention as Attention
from zoo.nn.cache import LayerCache as LayerCache
from zoo.nn.cache import empty_cache as empty_cache
from zoo.nn.embedder import Embedder as Embedder
from zoo.nn.execution import Execution as Execution
from zoo.nn.experts import ExpertsConfig as ExpertsConfig
from zoo.nn.experts import SparseFeedForward as SparseFeedForward
from zoo.nn.feed_forward import GatedFeedForward as GatedFeedForward
from zoo.nn.feed_forward import PlainFeedForward as PlainFeedForward
from zoo.nn.norm import RMSNorm as RMSNorm
from zoo.nn.rope import rope_angles as rope_angles
from zoo.nn.router import RouterStatistics as RouterStatistics
from zoo.nn.soft_tokens import SoftTokenProjector as SoftTokenProjector
from zoo.nn.soft_tokens import place_soft_tokens as place_soft_tokens
from zoo.nn.stacking import build_layers as build_layers
from zoo.nn.stacking import gathered_outside_layers as gathered_outside_layers
from zoo.nn.stacking import run_layers as run_layers
from zoo.nn.stacking import stack_layers as stack_layers
from zoo.nn.stacking import unstack_layers as unstack_layers
