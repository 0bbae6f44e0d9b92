"""A student and the teacher that it is distilled from, trained at the same time (Gemini 1.5 Flash from 1.5 Pro).

The report says "online distilled" (arXiv 2403.05530) and nothing else. Here one step trains the teacher on real labels
and the student on the teacher's distribution of that same step: `zoo.training.teacher.online_distillation_loss`.
Outside of training the pair is its student: that is what generates, is scored, exported and loaded.
"""

from dataclasses import dataclass
from typing import Any

from flax import nnx

from zoo.errors import UserError
from zoo.models.gemini import Gemini, GeminiConfig
from zoo.nn import Execution, ExpertsConfig


@dataclass(frozen=True)
class CoDistilledConfig:
    """Two architectures with one vocabulary, and how one learns from the other."""

    teacher: GeminiConfig
    """Trained on real labels."""
    student: GeminiConfig
    """Trained on the teacher's distribution; the model that comes out."""
    temperature: float = 1.0
    """Both distributions are softmax(logits / temperature). Not published; 1 as in Gemma 2 (arXiv 2408.00118)."""
    hard_label_weight: float = 0.0
    """Part of the student's loss that is cross-entropy with real labels. Not published; none as in Gemma 2."""

    def __post_init__(self):
        for name in ("vocab_size", "bos_token_id", "eos_token_ids", "pad_token_id", "vision_merge"):
            ours, theirs = getattr(self.student, name), getattr(self.teacher, name)
            if ours != theirs:
                raise UserError(f"model.student.{name} must be that of the teacher, {theirs}; got {ours}")
        for name in ("vision", "audio"):
            if (getattr(self.student, name) is None) != (getattr(self.teacher, name) is None):
                raise UserError(f"model.student.{name} and model.teacher.{name} must be set both or neither")
        if self.student.experts is not None:
            raise UserError(
                "model.student.experts must be none: only a teacher is sparse here, its routers are balanced"
            )
        if not 0 < self.temperature <= 100:
            raise UserError(f"model.temperature must lie above 0 and be at most 100, got {self.temperature}")
        if not 0 <= self.hard_label_weight <= 1:
            raise UserError(f"model.hard_label_weight must lie in 0 .. 1, got {self.hard_label_weight}")

    @property
    def vocab_size(self) -> int:
        """Of both."""
        return self.student.vocab_size

    @property
    def pad_token_id(self) -> int:
        """Of both."""
        return self.student.pad_token_id

    @property
    def bos_token_id(self) -> int:
        """Of both."""
        return self.student.bos_token_id

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Of both."""
        return self.student.eos_token_ids

    @property
    def max_position_embeddings(self) -> int:
        """Longest context of both."""
        return min(self.student.max_position_embeddings, self.teacher.max_position_embeddings)

    @property
    def embed_dim(self) -> int:
        """Of the student."""
        return self.student.embed_dim

    @property
    def num_layers(self) -> int:
        """Of the student."""
        return self.student.num_layers

    @property
    def final_logit_soft_cap(self) -> float | None:
        """Of the student."""
        return self.student.final_logit_soft_cap

    @property
    def experts(self) -> Any:
        """Sparse layers of the teacher; None if it is dense."""
        return self.teacher.experts

    @property
    def vision(self) -> Any:
        """Image encoder of the student."""
        return self.student.vision

    @property
    def vision_merge(self) -> int:
        """Of both."""
        return self.student.vision_merge

    @property
    def audio(self) -> Any:
        """Audio encoder of the student."""
        return self.student.audio

    def num_parameters(self) -> int:
        """Of both together."""
        return self.student.num_parameters() + self.teacher.num_parameters()

    def flops_per_token(self, sequence_length: int) -> float:
        """Forward floating-point operations per token of both; a training step takes three times as many."""
        return self.student.flops_per_token(sequence_length) + self.teacher.flops_per_token(sequence_length)


class CoDistilled(nnx.Module):
    """Holds both models; called, it is the student."""

    def __init__(self, config: CoDistilledConfig, *, execution: Execution | None = None, rngs: nnx.Rngs):
        self.config, self.execution = config, execution or Execution()
        self.teacher = Gemini(config.teacher, execution=self.execution, rngs=rngs)
        self.student = Gemini(config.student, execution=self.execution, rngs=rngs)

    def __call__(self, tokens: Any, **inputs: Any) -> Any:
        """The student's logits, see `Decoder`."""
        return self.student(tokens, **inputs)

    def hidden_states(self, tokens: Any, **inputs: Any) -> Any:
        """The student's hidden states, see `Decoder`."""
        return self.student.hidden_states(tokens, **inputs)

    def logits(self, hidden: Any) -> Any:
        """The student's logits of its hidden states."""
        return self.student.logits(hidden)

    def output_embedding(self) -> Any:
        """The student's output head."""
        return self.student.output_embedding()

    def init_cache(self, batch_size: int, max_length: int, dtype: Any = None) -> Any:
        """The student's empty cache."""
        return self.student.init_cache(batch_size, max_length, dtype)


def _tiny(**fields: Any) -> GeminiConfig:
    shared: dict[str, Any] = {"vocab_size": 4096, "head_dim": 32, "sliding_window": 64, "max_position_embeddings": 256}
    return GeminiConfig(**shared, **fields)


PRESETS = {
    # Minutes on two CPU cores: a sparse teacher of 2.1M active parameters and a dense student of half of them.
    "gemini-tiny-flash": CoDistilledConfig(
        teacher=_tiny(
            embed_dim=160,
            num_layers=4,
            num_heads=5,
            hidden_dim=640,
            experts=ExpertsConfig(num_experts=8, experts_per_token=2, hidden_dim=320),
        ),
        student=_tiny(embed_dim=128, num_layers=4, num_heads=4, hidden_dim=384, block="parallel", post_norms=False),
    ),
}
