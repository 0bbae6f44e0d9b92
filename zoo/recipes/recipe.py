"""A complete training run as one value: model, data, optimizer, mesh, and what happens while it runs."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from zoo.data import DataConfig
from zoo.errors import UserError
from zoo.models import BertConfig, ClassifierConfig, RewardModelConfig, TrainedConfig, VqImageConfig
from zoo.nn import Execution
from zoo.parallel import DistributedConfig, MeshConfig, ShardingRules
from zoo.peft import PeftConfig
from zoo.training.classification_loss import ClassificationConfig
from zoo.training.loop import LoopConfig
from zoo.training.optimizer import OptimizerConfig
from zoo.training.policy_gradient import PolicyGradientConfig
from zoo.training.preference import PreferenceConfig
from zoo.training.teacher import DistillationConfig

MAY_CHANGE_ON_RESUME = (
    "run_dir",
    "init_from",
    "mesh",
    "rules",
    "optimizer.accumulation_steps",
    "optimizer.skip_spikes",
    "optimizer.spike_window",
    "optimizer.spike_limit",
    "data.read_threads",
    "distributed",
    "loop.steps",
    "loop.stop_at_step",
    "loop.log_every",
    "loop.evaluate_every",
    "loop.checkpoint_every",
    "loop.keep_last",
    "loop.checksums",
    "loop.profile_steps",
    "loop.replay_check",
    "loss_chunk_tokens",
    "tensorboard",
    "wandb",
    "sample_prompt",
    "sample_tokens",
)
"""What a run may be resumed with other values of: nothing here changes which numbers are computed, but for rounding.
`loop.steps` is an exception (the schedule ends at it), and a run that was made longer says so. The rule for spikes is
another: it is wanted when a run has met one."""


@dataclass(frozen=True)
class Recipe:
    """One training run."""

    name: Annotated[str, tyro.conf.Suppress]
    """What the recipe is called on the command line."""
    needs_data: Annotated[bool, tyro.conf.Suppress]
    """Whether there is nothing to train on unless `--data` says so."""
    loop: Annotated[LoopConfig, tyro.conf.OmitArgPrefixes]
    """How long, and what happens on the way; `--profile` is short for `--profile-steps 5`."""
    data: DataConfig
    """What it is trained on; `--data PATH ...` is short for `--data.paths PATH ...`."""
    optimizer: OptimizerConfig
    """How it is trained."""
    model: Annotated[TrainedConfig | ClassifierConfig, tyro.conf.AvoidSubcommands]
    """Architecture."""
    execution: Execution = Execution()
    """How the model is computed."""
    mesh: MeshConfig = MeshConfig()
    """Devices."""
    rules: Annotated[ShardingRules, tyro.conf.Suppress] = ShardingRules()
    """What lies on which mesh axis."""
    distributed: DistributedConfig = DistributedConfig()
    """Several hosts."""
    run_dir: str = ""
    """Folder of the run; an existing one is resumed. Empty: runs/RECIPE."""
    init_from: str | None = None
    """Weights to start from: a run directory, one of its checkpoints, or a Hugging Face folder."""
    model_from_init: bool = False
    """Take the architecture from `init_from` instead of from this recipe."""
    freeze: tuple[str, ...] = ()
    """Parameters that stay as they are: patterns such as `embedder` or `layers/0/*`."""
    distillation: DistillationConfig = DistillationConfig()
    """A fixed teacher, and how the model learns from it; `--teacher CKPT` names one."""
    peft: PeftConfig = PeftConfig()
    """Fine-tuning of few parameters beside a model that stays (`--init-from`)."""
    preference: PreferenceConfig = PreferenceConfig()
    """How the model learns from pairs of answers (`--data.format preference`)."""
    policy: PolicyGradientConfig = PolicyGradientConfig()
    """How the model learns from rewards of its own answers (`--data.format prompts`)."""
    classification: ClassificationConfig = ClassificationConfig()
    """How a classifier of images learns (`--data.format labelled_images`)."""
    seed: int = 0
    """Seed of the initial weights (the order of the data has a seed of its own)."""
    z_loss: float = 0.0
    """Coefficient of logsumexp(logits)**2, which keeps the logits near 0."""
    loss_chunk_tokens: int | None = None
    """Tokens of the batch whose logits exist at once; None = about 16 MB of them."""
    sample_prompt: str = ""
    """Text that the sample at the end continues; empty = the beginning of a document."""
    sample_tokens: int = 100
    """Length of the sample at the end; 0 = none."""
    tensorboard: bool = True
    """Write RUN/tensorboard."""
    wandb: str | None = None
    """Weights & Biases project to log to (needs the wandb package)."""

    def __post_init__(self):
        object.__setattr__(self, "freeze", tuple(self.freeze))
        if not self.run_dir:
            object.__setattr__(self, "run_dir", f"runs/{self.name}")
        if "://" in self.run_dir:
            raise UserError(f"run_dir must be a folder on this machine (or mounted on it), not {self.run_dir}")
        if not 0 <= self.seed < 2**31:
            raise UserError(f"seed must lie in 0 .. 2^31 - 1, got {self.seed}")
        if not 0 <= self.z_loss <= 1:
            raise UserError(f"z_loss must lie in 0 .. 1, got {self.z_loss}")
        if self.loss_chunk_tokens is not None and self.loss_chunk_tokens < 1:
            raise UserError(f"loss_chunk_tokens must be at least 1, got {self.loss_chunk_tokens}")
        if not 0 <= self.sample_tokens <= 100_000:
            raise UserError(f"sample_tokens must lie in 0 .. 100,000, got {self.sample_tokens}")
        if self.model_from_init and not self.init_from:
            raise UserError("model_from_init needs init_from, which is not set")

    @property
    def teacher(self) -> str | None:
        """The checkpoint of the fixed teacher, None without one."""
        return self.distillation.teacher

    @property
    def trains_images(self) -> bool:
        """Whether the model is a tokenizer of images, which reads no text."""
        return isinstance(self.model, VqImageConfig)

    @property
    def sequence_model(self) -> TrainedConfig:
        """The architecture of a model that reads sequences. TypeError of a classifier of images."""
        if isinstance(self.model, ClassifierConfig):
            raise TypeError(f"{self.name} classifies images: it has no tokens")
        return self.model

    @property
    def classifies(self) -> bool:
        """Whether the model is a classifier of images, which reads no text."""
        return isinstance(self.model, ClassifierConfig)

    @property
    def reads_text(self) -> bool:
        """Whether the run has a tokenizer."""
        return not (self.trains_images or self.classifies)

    @property
    def trains_masked(self) -> bool:
        """Whether the model guesses masked tokens, and continues no text."""
        return isinstance(self.model, BertConfig)

    @property
    def trains_rewards(self) -> bool:
        """Whether the model is a reward model, and continues no text."""
        return isinstance(self.model, RewardModelConfig)

    @property
    def samples_answers(self) -> bool:
        """Whether the model learns from rewards of its own answers."""
        return self.data.format == "prompts"

    @property
    def post_trains(self) -> bool:
        """Whether the run ends with a report of answers: pairs, prompts, or a generated task."""
        return self.data.format in ("preference", "prompts") or self.data.task.name != "none"

    @property
    def reference(self) -> str | None:
        """The checkpoint that the model is held near to, None where there is none."""
        if self.data.format == "preference" and not self.trains_rewards:
            return self.preference.reference or self.init_from
        if self.samples_answers and self.policy.kl_coefficient:
            return self.policy.reference or self.init_from
        return None


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON: nested dictionaries, lists and numbers."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, tuple | list) else value

    return plain(dataclasses.asdict(recipe))


def first_difference(saved: Mapping[str, Any], current: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first field, (dotted name, saved value, current value), that keeps a run from being resumed, or None.

    A field that the saved recipe does not know (it is older than the field) counts as equal.
    """
    flat_saved = _flatten(saved)
    for name, value in _flatten(current).items():
        free = any(name == prefix or name.startswith(prefix + ".") for prefix in MAY_CHANGE_ON_RESUME)
        if not free and name in flat_saved and flat_saved[name] != value:
            return name, flat_saved[name], value
    return None


def same_on_all_processes(recipe: Recipe) -> dict[str, Any]:
    """Every field by its dotted name, but for those that say which process this is."""
    fields = _flatten(recipe_to_dict(recipe))
    return {name: value for name, value in fields.items() if not name.startswith("distributed.")}


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
