"""Published architectures, one file each, their presets at the bottom of the file; found by name here."""

from zoo.models.co_distilled import CoDistilled as CoDistilled
from zoo.models.co_distilled import CoDistilledConfig as CoDistilledConfig
from zoo.models.decoder import Decoder as Decoder
from zoo.models.gemini import Gemini as Gemini
from zoo.models.gemini import GeminiConfig as GeminiConfig
from zoo.models.gemma2 import Gemma2 as Gemma2
from zoo.models.gemma2 import Gemma2Config as Gemma2Config
from zoo.models.gpt_oss import GptOss as GptOss
from zoo.models.gpt_oss import GptOssConfig as GptOssConfig
from zoo.models.mixtral import Mixtral as Mixtral
from zoo.models.mixtral import MixtralConfig as MixtralConfig
from zoo.models.qwen3_moe import Qwen3Moe as Qwen3Moe
from zoo.models.qwen3_moe import Qwen3MoeConfig as Qwen3MoeConfig
from zoo.models.registry import DecoderConfig as DecoderConfig
from zoo.models.registry import EncoderConfig as EncoderConfig
from zoo.models.registry import ModelConfig as ModelConfig
from zoo.models.registry import TrainedConfig as TrainedConfig
from zoo.models.registry import build as build
from zoo.models.registry import config_from_dict as config_from_dict
from zoo.models.registry import config_to_dict as config_to_dict
from zoo.models.registry import preset as preset
from zoo.models.registry import presets as presets
from zoo.models.vq_image import VqImage as VqImage
from zoo.models.vq_image import VqImageConfig as VqImageConfig
