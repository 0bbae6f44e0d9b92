"""The transformers side: `Gemma2ForCausalLM` with eager attention, the only one that has the soft-cap, or compiled."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import CompileConfig, Gemma2ForCausalLM

from experiments.speed.worker import matmul_rate, peak_bytes, serve, timed
from experiments.speed.workload import FULL, QUICK
from zoo.training.optimizer import OptimizerConfig, is_decayed


class Commands:
    """What the parent may ask for."""

    def __init__(self, folder: Path, workload: Any, compiled: bool):
        self._folder, self._workload, self._compiled = folder, workload, compiled
        self._model: Any = None
        self._run: Any = None
        self._optimizer: Any = None

    def _load(self) -> None:
        self._model = self._run = None
        model = Gemma2ForCausalLM.from_pretrained(self._folder, dtype=torch.float32, attn_implementation="eager")
        model.generation_config.eos_token_id = None  # nothing ends a generation before its length
        self._model, self._run = model, torch.compile(model) if self._compiled else model

    def losses(self, steps: int) -> list[float]:
        """Losses of the first steps."""
        self._load()
        self._model.train()
        config = OptimizerConfig()
        # The same parameters are decayed on both sides, in torch's fastest AdamW.
        groups: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
        for parameter in self._model.parameters():
            groups[parameter.ndim > 1].append(parameter)
        assert is_decayed("layers/0/mlp/gate") and not is_decayed("final_norm/scale")
        self._optimizer = torch.optim.AdamW(
            [
                {"params": groups[True], "weight_decay": config.weight_decay},
                {"params": groups[False], "weight_decay": 0.0},
            ],
            lr=self._workload.learning_rate,
            betas=(config.b1, config.b2),
            eps=config.eps,
            fused=True,
        )
        return [self._step() for _ in range(steps)]

    def _step(self) -> float:
        tokens = self._tokens()
        loss = self._run(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss.item()

    def train(self) -> dict[str, float]:
        """One timed training step."""
        return timed(self._step)

    def peak_memory(self) -> int:
        """Largest resident memory so far, in bytes."""
        return peak_bytes()

    def matmul(self, size: int) -> float:
        """Rate of a large float32 product."""
        left = torch.randn(size, size)
        return matmul_rate(lambda: left @ left, size)

    def load(self) -> None:
        """Drops the optimizer and loads the initial model."""
        self._optimizer = None
        self._load()
        self._model.eval()

    @torch.inference_mode()
    def logits(self, out: str) -> None:
        """Writes the logits of the training tokens."""
        np.save(out, self._run(input_ids=self._tokens(), use_cache=False).logits.numpy())

    @torch.inference_mode()
    def forward(self) -> dict[str, float]:
        """One timed forward pass to all logits."""
        tokens = self._tokens()
        return timed(lambda: self._run(input_ids=tokens, use_cache=False).logits)

    @torch.inference_mode()
    def decode(self, batch_size: int, out: str) -> dict[str, float]:
        """Timed prefill and greedy decoding with transformers' default cache; writes the new tokens."""
        w = self._workload
        prompts = torch.from_numpy(w.tokens(batch_size, w.prompt_length, self._model.config.vocab_size)).long()
        options: dict[str, Any] = {
            "max_new_tokens": w.new_tokens,
            "do_sample": False,
            "attention_mask": torch.ones_like(prompts),
        }
        if self._compiled:
            # The only decoding that transformers compiles: prefill eager, each step with a cache of fixed size.
            compile_config: Any = CompileConfig(fullgraph=False, mode="default")
            compile_config._compile_all_devices = True  # without it a CPU is left out
            options |= {"cache_implementation": "static", "compile_config": compile_config}
        new: list[torch.Tensor] = []
        seconds = timed(lambda: new.append(self._model.generate(prompts, pad_token_id=0, **options)))
        np.save(out, new[0][:, w.prompt_length :].numpy().astype(np.int32))
        return seconds

    def _tokens(self) -> torch.Tensor:
        w = self._workload
        return torch.from_numpy(w.tokens(w.batch_size, w.length, self._model.config.vocab_size)).long()


def main() -> None:
    folder, size, mode, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    commands = Commands(Path(folder), {"full": FULL, "quick": QUICK}[size], mode == "compiled")
    names = ("losses", "train", "peak_memory", "matmul", "load", "logits", "forward", "decode")
    serve({name: getattr(commands, name) for name in names})


if __name__ == "__main__":
    main()
