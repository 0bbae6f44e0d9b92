"""LoRA as the library peft writes it: names, orientation and configuration.

    base_model.model.MODULE.lora_A.weight [r, in],  base_model.model.MODULE.lora_B.weight [out, r]

MODULE is the path of a linear layer in transformers, whose weight lies as [out, in]; ours come from the same table as
whole models (`zoo.interop.architectures`). Source: peft 0.21, tuners/lora/config.py and utils/save_and_load.py.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zoo.errors import UserError
from zoo.interop.architecture import Architecture
from zoo.interop.layouts import Layout
from zoo.interop.places import Place, stored_sources
from zoo.nn import lora
from zoo.peft import PeftConfig

_ROOT = "base_model.model."
_RANK = "R"

NOT_COMPUTED: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "use_dora": (False,),
    "lora_bias": (False,),
    "fan_in_fan_out": (False,),
    "use_qalora": (False,),
    "modules_to_save": ([],),
    "rank_pattern": ({},),
    "alpha_pattern": ({},),
    "exclude_modules": ([],),
    "layer_replication": ([],),
    "target_parameters": ([],),
    "trainable_token_indices": ([], {}),
    "alora_invocation_tokens": ([],),
    "arrow_config": ({},),
    "corda_config": ({},),
    "eva_config": ({},),
    "kasa_config": ({},),
    "monteclora_config": ({},),
    "use_bdlora": ({},),
    # The others (pissa, olora, corda, loftq, lora_ga) change the base's weights, which no tensor of the folder says.
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva", "mica"),
}
"""Keys of adapter_config.json, and the values besides null with which this is computed here."""


@dataclass(frozen=True)
class Module:
    """A linear layer of transformers that is one of our matrices."""

    name: str
    """Our per-layer name of the weight."""
    place: Place
    """The weight."""

    @property
    def paths(self) -> Place:
        """The same with the path of the module for a name; `{expert}` stands for each expert."""
        return Place(self.place.name.removesuffix(".weight"), self.place.layout)

    def factor(self, which: str) -> tuple[str, Place]:
        """(our name, place) of A or B."""
        stored, ours = self.place.layout.equation.split("->")
        out, inner = re.findall(r"\([^)]*\)|\w+", stored)
        wanted = ours.split()

        def axes(group: str) -> str:
            return " ".join(axis for axis in wanted if axis in group.strip("()").split())

        path = f"{_ROOT}{self.place.name.removesuffix('.weight')}"
        if which == "A":
            return self.name + lora.A, Place(
                f"{path}.lora_A.weight", Layout(f"{_RANK} {inner} -> {axes(inner)} {_RANK}")
            )
        return self.name + lora.B, Place(f"{path}.lora_B.weight", Layout(f"{out} {_RANK} -> {_RANK} {axes(out)}"))


def modules(config: Any, architecture: Architecture) -> list[Module]:
    """The linear layers inside of the layers of a model that are matrices of ours."""
    found = []
    for name, place in architecture.places(config).items():
        is_matrix = re.search(r"/(?:query|key|value|output|gate|up|down)$", name)
        two_sided = len(re.findall(r"\([^)]*\)|\w+", place.layout.equation.split("->")[0])) == 2
        if is_matrix and "layers/" in name and place.slot is None and two_sided and place.name.endswith(".weight"):
            found.append(Module(name, place))
    return found


def stored_factors(config: Any, architecture: Architecture, rank: int, names: set[str]):
    """(places, sizes) of the factors of these of our matrices, by our per-layer names. Raises `UserError` for one that
    is no linear layer in transformers."""
    known = {module.name: module for module in modules(config, architecture)}
    for name in names:
        if name not in known:
            raise UserError(
                f"{name} is no linear layer of {architecture.family} in transformers: peft has no name for it"
            )
    places = dict(known[name].factor(which) for name in known if name in names for which in "AB")
    return places, architecture.axis_sizes(config) | {_RANK: rank}


def targeted(config: Any, architecture: Architecture, values: Mapping[str, Any], where: str) -> list[str]:
    """Our names of the matrices that `target_modules` and `layers_to_transform` of an adapter_config.json choose, by
    peft's rules: a text is a regular expression of the whole path, a list of paths' ends. Raises `UserError` for one
    that chooses none."""
    target, layers = values.get("target_modules"), values.get("layers_to_transform")
    layers = [layers] if isinstance(layers, int) else layers or None
    sizes = architecture.axis_sizes(config)
    found, seen = [], set()
    for module in modules(config, architecture):
        paths = module.paths.stored_names(sizes)
        hits = {
            t for t in _texts(target, where) for path in paths if _chooses(t, path, is_list=isinstance(target, list))
        }
        layer = int(module.name.split("layers/")[1].split("/")[0])
        if hits and (layers is None or layer in layers):
            found.append(module.name)
        seen |= hits
    unknown = [one for one in _texts(target, where) if one not in seen]
    if unknown:
        raise UserError(
            f"{where}: target_modules has {unknown[0]!r}, which is no linear layer of this {architecture.family}"
        )
    return found


def _texts(target: Any, where: str) -> list[str]:
    texts = [target] if isinstance(target, str) else target
    if not isinstance(texts, list) or not texts or not all(isinstance(one, str) for one in texts):
        raise UserError(f"{where}: target_modules must be a text or a list of texts, got {target!r}")
    return texts


def _chooses(target: str, path: str, *, is_list: bool) -> bool:
    if is_list:
        return path == target or path.endswith("." + target)
    try:
        return re.fullmatch(target, path) is not None
    except re.error as error:
        raise UserError(f"target_modules {target!r} is no regular expression: {error}") from None


def config_from_peft(values: Mapping[str, Any], where: str) -> PeftConfig:
    """Our configuration of an adapter_config.json, without its targets. Raises `UserError` for what is not computed
    here."""
    if values.get("peft_type") != "LORA":
        raise UserError(f"{where}: peft_type {values.get('peft_type')!r} is not read, 'LORA' is")
    for key, accepted in NOT_COMPUTED.items():
        value = values.get(key)
        if value is not None and value not in accepted:
            raise UserError(f"{where}: {key} = {value!r} is not computed here; {accepted[0]!r} is")
    rank, alpha = values.get("r"), values.get("lora_alpha", 8)
    if not isinstance(rank, int) or isinstance(rank, bool) or not isinstance(alpha, int | float) or not alpha > 0:
        raise UserError(
            f"{where}: r = {rank!r} and lora_alpha = {alpha!r} must be positive numbers, the first a whole one"
        )
    try:
        return PeftConfig("lora", rank=rank, alpha=float(alpha), rslora=bool(values.get("use_rslora", False)))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def config_to_peft(
    config: PeftConfig, target_modules: list[str], base: str | None, *, is_decoder: bool
) -> dict[str, Any]:
    """An adapter_config.json that peft opens."""
    alpha = int(config.alpha) if config.alpha == int(config.alpha) else config.alpha
    return {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": alpha,
        "lora_dropout": config.dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": config.rank,
        "rank_pattern": {},
        "revision": None,
        "target_modules": target_modules,
        "task_type": "CAUSAL_LM" if is_decoder else None,
        "use_dora": False,
        "use_rslora": config.rslora,
    }


def target_modules(config: Any, architecture: Architecture, names: set[str]) -> list[str]:
    """The shortest list that chooses exactly these of our matrices: last parts of paths where they are enough, whole
    paths where they would choose others, too."""
    sizes, found = architecture.axis_sizes(config), modules(config, architecture)
    ours = {module.name: module.paths.stored_names(sizes) for module in found}
    by_end: dict[str, set[str]] = {}
    for name, paths in ours.items():
        for path in paths:
            by_end.setdefault(path.rsplit(".", 1)[-1], set()).add(name)
    chosen: list[str] = []
    for name in ours:
        if name in names:
            for path in ours[name]:
                end = path.rsplit(".", 1)[-1]
                chosen.append(end if by_end[end] <= names else path)
    return sorted(dict.fromkeys(chosen))


def expected_tensors(places: Mapping[str, Place], sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every stored tensor of these factors."""
    return {name: source.place.stored_shape(sizes) for name, source in stored_sources(places, sizes).items()}
