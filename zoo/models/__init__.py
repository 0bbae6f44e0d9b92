"""Published architectures, one file each, their presets at the bottom of the file; found by name here."""

from zoo.models.gemma2 import Gemma2 as Gemma2
from zoo.models.gemma2 import Gemma2Config as Gemma2Config
from zoo.models.registry import ModelConfig as ModelConfig
from zoo.models.registry import build as build
from zoo.models.registry import config_from_dict as config_from_dict
from zoo.models.registry import config_to_dict as config_to_dict
from zoo.models.registry import preset as preset
from zoo.models.registry import presets as presets
