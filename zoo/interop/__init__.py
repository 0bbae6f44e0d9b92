"""Checkpoints in and out: Hugging Face folders, google-deepmind/gemma trees, and our own run directories.

`load` finds out which kind a path is; `save_*` write a folder that appears whole or not at all.
"""

from zoo.interop.adapters import load_adapter as load_adapter
from zoo.interop.adapters import save_adapter as save_adapter
from zoo.interop.adapters import save_peft as save_peft
from zoo.interop.deepmind import load_deepmind as load_deepmind
from zoo.interop.deepmind import save_deepmind as save_deepmind
from zoo.interop.gguf import save_gguf as save_gguf
from zoo.interop.huggingface import load_huggingface as load_huggingface
from zoo.interop.huggingface import save_huggingface as save_huggingface
from zoo.interop.load import Loaded as Loaded
from zoo.interop.load import load as load
from zoo.interop.load import read_config as read_config
from zoo.interop.load import source_of as source_of
from zoo.interop.quantised import Packing as Packing
from zoo.interop.quantised import load_quantised as load_quantised
from zoo.interop.quantised import packed_bytes as packed_bytes
from zoo.interop.quantised import packed_model as packed_model
from zoo.interop.quantised import save_quantised as save_quantised
from zoo.interop.runs import load_run as load_run
from zoo.interop.runs import save_run as save_run
from zoo.interop.torchvision import load_torchvision as load_torchvision
