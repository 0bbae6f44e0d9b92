"""`load`: a model from any checkpoint, whichever kind it is."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from zoo.command_line import AttentionName
from zoo.data import TOKENIZER_FILES, MediaConfig, Tokenizer, load_tokenizer
from zoo.errors import UserError
from zoo.interop import deepmind, huggingface
from zoo.interop.adapters import base_of, is_adapter_run, load_adapter
from zoo.interop.deepmind_tree import DeepMindTree
from zoo.interop.parameters import OnTensor, ParamDtype
from zoo.interop.quantised import DESCRIPTION, load_quantised, read_quantised
from zoo.interop.runs import Part, load_run, part_of, recorded_media
from zoo.models import config_from_dict
from zoo.models.decoder import Decoder
from zoo.nn import Execution
from zoo.parallel import ShardingRules, state_shardings
from zoo.peft import Adapter, merged, with_adapters
from zoo.peft.mixture import Weight
from zoo.training.run_directory import is_checkpoint_dir, is_run_dir, read_run

Source = Literal["huggingface", "run", "deepmind", "quantised"]

_ORBAX_FILES = ("_METADATA", "_CHECKPOINT_METADATA", "checkpoint")


@dataclass(frozen=True)
class Loaded:
    """A model with its weights, and what was found beside them."""

    model: Any
    """Flax module. A decoder: int32 [B, T] tokens -> float32 [B, T, vocab] logits. An encoder: called as the public
    implementation, gives hidden states."""
    path: Path
    """Where it came from."""
    source: Source
    """Kind of checkpoint: a Hugging Face folder, our own run or its checkpoint, a google-deepmind/gemma tree, a folder
    with packed weights."""
    tokenizer_folder: Path | None
    """Folder with the tokenizer's files; None if there are none."""
    adapters: tuple[Adapter, ...] = ()
    """What is in the model, or was merged into it, besides the checkpoint's own weights."""

    @property
    def config(self) -> Any:
        """The model's architecture."""
        return self.model.config

    @property
    def decoder(self) -> Decoder:
        """The model, if it generates text. Raises `UserError` for an encoder."""
        if not isinstance(self.model, Decoder):
            raise UserError(f"{self.path} holds a {type(self.model).__name__}, which is no language model")
        return self.model

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer, None if the checkpoint has none. Read when it is first asked for, since scoring may not
        need it. Raises `UserError` if it is damaged, or has more tokens than the model."""
        if self.tokenizer_folder is None:
            return None
        tokenizer = load_tokenizer(self.tokenizer_folder)
        if tokenizer.vocab_size > self.config.vocab_size:
            sizes = f"{tokenizer.vocab_size} tokens, the model {self.config.vocab_size}"
            raise UserError(f"{self.tokenizer_folder}: the tokenizer has {sizes}")
        return tokenizer

    @cached_property
    def media_config(self) -> MediaConfig | None:
        """How images, recordings and videos become tokens of this model, from the recipe that its run recorded; None
        for anything but a run that was trained on interleaved documents."""
        return recorded_media(self.path) if self.source == "run" else None


def load(
    path: str | Path,
    *,
    execution: Execution | None = None,
    param_dtype: ParamDtype | None = None,
    attention: AttentionName | None = None,
    mesh: Mesh | None = None,
    rules: ShardingRules | None = None,
    on_tensor: OnTensor | None = None,
    part: Part | None = None,
    adapter: str | Path | Sequence[str | Path] = (),
    adapter_weights: Sequence[Weight] | None = None,
    stack: bool = False,
    merge: bool = False,
) -> Loaded:
    """Loads the model of a checkpoint and says what kind of checkpoint it was.

    Args:
        path: a run directory of `zoo.train`, its `checkpoints` folder or one step of it; a Hugging Face folder; a
            google-deepmind/gemma checkpoint whose shapes are those of a Gemma 2 preset (`load_deepmind` takes others);
            a folder of `zoo.export --format quantised`, whose weights stay packed.
        execution: how the model computes. Default, with unrolled layers: float32 on CPU; elsewhere bfloat16 with
            parameters in the dtype they are stored in.
        param_dtype: dtype of the parameters in memory, "stored" for what the checkpoint has; default: the execution's.
        attention: which attention kernels; default: the execution's.
        mesh: spreads the parameters over these devices as they are read.
        rules: which logical axis lies on which mesh axis; default `ShardingRules()`.
        on_tensor: called with each tensor's name when it has been read.
        part: of a run of online distillation, which of the two models; default: the student.
        adapter: folders of adapters that are put into the model: of `zoo.export --format peft` or `adapter`, of the
            library peft, or runs of `zoo.train --peft.method`. Such a run as `path` is its base with its adapter.
        adapter_weights: one for each adapter, or an array with one for each row of a batch; default 1.
        stack: bottleneck adapters one behind the other, instead of side by side.
        merge: adapters become part of the weights.

    Raises:
        UserError: nothing that can be loaded lies there; what was found is damaged or not supported; an adapter is not
            one for this model.
    """
    source = source_of(path)
    if execution is None:
        on_cpu = jax.default_backend() == "cpu"
        execution = Execution(compute_dtype="float32" if on_cpu else "bfloat16")
        param_dtype = param_dtype or ("float32" if on_cpu else "stored")
    if attention is not None:
        execution = replace(execution, attention_implementation=attention)
    path = Path(path)
    adapters = (adapter,) if isinstance(adapter, str | Path) else tuple(adapter)
    options: Any = dict(execution=execution, param_dtype=param_dtype, mesh=mesh, rules=rules)
    if adapters or is_adapter_run(path):
        how: Any = dict(weights=adapter_weights, stack=stack, merge=merge)
        return _load_with_adapters(path, source, adapters, how, options | dict(on_tensor=on_tensor, part=part))
    if source == "run":
        model = load_run(path, execution=execution, param_dtype=param_dtype, mesh=mesh, rules=rules, part=part)
        return Loaded(model, path, source, read_run(path).tokenizer_dir)
    part_of(None, part, path)
    if source == "quantised":
        if mesh is not None:
            raise UserError(f"{path}: packed weights are for inference on one device, not for training or a mesh")
        model = load_quantised(path, execution=execution, param_dtype=param_dtype, on_tensor=on_tensor)
        return Loaded(model, path, source, path if _has_tokenizer(path) else None)
    read = huggingface.load_huggingface if source == "huggingface" else deepmind.load_deepmind
    model = read(path, execution=execution, param_dtype=param_dtype, mesh=mesh, rules=rules, on_tensor=on_tensor)
    beside = (path,) if source == "huggingface" else (path, path.parent)  # released trees lie in the tokenizer's folder
    return Loaded(model, path, source, next(filter(_has_tokenizer, beside), None))


def _load_with_adapters(
    path: Path, source: Source, folders: tuple[str | Path, ...], how: dict[str, Any], options: dict[str, Any]
) -> Loaded:
    """`load` where there are adapters; `how` they are put into the model."""
    if is_adapter_run(path):
        if folders:
            raise UserError(f"{path} holds an adapter itself: give its base as the checkpoint, and both as adapters")
        folders = (path,)
        base = load(base_of(path), **options, merge=True)
    else:
        base = load(path, **options)
    adapters = [load_adapter(folder, base.model) for folder in folders]
    merge, weights = how.pop("merge"), how["weights"]
    if merge:
        model = merged(base.model, adapters, weights)
    else:
        mesh, rules = options["mesh"], options["rules"]

        def place(state: Any) -> Any:
            if mesh is None:
                return state
            return jax.device_put(state, state_shardings(state, mesh, rules or ShardingRules()))

        model = with_adapters(base.model, adapters, place=place, **how)
    tokenizer = read_run(path).tokenizer_dir if source == "run" else base.tokenizer_folder
    return Loaded(model, path, source, tokenizer, tuple(adapters))


def read_config(path: str | Path, part: Part | None = None) -> Any:
    """The architecture of a checkpoint, without its weights. Arguments and errors are those of `load`."""
    match source_of(path):
        case "run":
            return part_of(config_from_dict(read_run(path).model_dict), part, path)
        case "huggingface":
            return huggingface.read_config(Path(path))
        case "quantised":
            return read_quantised(Path(path))[0]
        case "deepmind":
            return deepmind.preset_of(DeepMindTree(Path(path)))


def source_of(path: str | Path) -> Source:
    """Which kind of checkpoint lies at a path. Raises `UserError`, saying what was looked for, if none does."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder")
    if not path.is_dir():
        raise UserError(f"{path} is a file: give the folder of the checkpoint")
    if is_run_dir(path) or is_checkpoint_dir(path):
        return "run"
    if (path / DESCRIPTION).is_file():
        return "quantised"
    if (path / "config.json").is_file():
        return "huggingface"
    if any((path / name).is_file() for name in _ORBAX_FILES):
        return "deepmind"
    raise UserError(
        f"{path} holds no checkpoint: looked for run.json or STEP/params (zoo.train), config.json with safetensors "
        "(Hugging Face) and _METADATA (Orbax tree of google-deepmind/gemma)"
    )


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in TOKENIZER_FILES)
