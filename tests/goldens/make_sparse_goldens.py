"""Makes the committed goldens of the sparse decoders out of transformers: Mixtral, Qwen3-MoE and gpt-oss, tiny, random.

    python tests/goldens/make_sparse_goldens.py      # tests/goldens/{mixtral,qwen3_moe,gpt_oss}/

Nothing of zoo is used here, so that a mistake in zoo cannot reach what it is compared with. Weights are stored in
bfloat16; all is computed in float32 on CPU with these values. The files in the repository were made with transformers
5.24 and torch 2.13.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

FOLDER = Path(__file__).parent
SHAPE = {
    "vocab_size": 48,
    "hidden_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 256,
    "pad_token_id": None,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 150_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "truncate": False,
}
# Windows shorter than the 14 tokens, a dense layer, weights that are not renormalised: all that a family has.
MODELS = {
    "mixtral": (
        MixtralForCausalLM,
        MixtralConfig(num_local_experts=4, intermediate_size=12, num_hidden_layers=2, sliding_window=5, **SHAPE),
    ),
    "qwen3_moe": (
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig(
            num_experts=4,
            moe_intermediate_size=12,
            intermediate_size=20,
            num_hidden_layers=2,
            mlp_only_layers=[0],
            norm_topk_prob=False,
            **SHAPE,
        ),
    ),
    "gpt_oss": (
        GptOssForCausalLM,
        GptOssConfig(
            num_local_experts=4,
            intermediate_size=12,
            num_hidden_layers=2,
            sliding_window=5,
            rope_parameters=YARN,
            **SHAPE,
        ),
    ),
}
NEW_TOKENS, SMALLEST_GAP, SMALLEST_MARGIN, DIFFERENT_TOKENS = 8, 5e-3, 2e-3, 5


def make_model(kind: str, seed: int):
    """A model with random weights and norms that bfloat16 holds exactly."""
    model_type, config = MODELS[kind]
    torch.manual_seed(seed)
    model = model_type._from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            around = 1 if "norm" in name else 0
            deviation = 0.6 if "sinks" in name or "bias" in name or "mlp.gate.weight" in name else 0.35
            parameter.copy_((around + deviation * torch.randn(parameter.shape)).bfloat16().float())
    return model


def greedy(model, ids, mask) -> tuple[np.ndarray, float]:
    """New ids by full forward passes (no cache), and the smallest gap between two largest logits."""
    length, gap = ids.shape[1], np.inf
    for _ in range(NEW_TOKENS):
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits[:, -1]
        top = logits.topk(2).values
        gap = min(gap, float((top[:, 0] - top[:, 1]).min()))
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    return ids[:, length:].numpy().astype(np.int32), gap


def expected_arrays(model, seed: int) -> tuple[dict[str, np.ndarray], float, float]:
    """What the model computes; the smallest gap of a greedy choice and the smallest margin of a router's."""
    generator = torch.Generator().manual_seed(seed)

    def random_ids(*shape):
        return torch.randint(3, SHAPE["vocab_size"], shape, generator=generator)

    ids = random_ids(2, 14)
    out = model(input_ids=ids, output_hidden_states=True, output_router_logits=True, use_cache=False)
    arrays = {
        "input_ids": ids.numpy().astype(np.int32),
        "logits": out.logits.numpy(),
        "hidden_states": torch.stack(out.hidden_states).numpy(),
    }
    margin, count = np.inf, SHAPE["num_experts_per_tok"]
    for i, scores in enumerate(out.router_logits):
        scores = scores.reshape(-1, scores.shape[-1])
        top = scores.topk(count + 1)
        margin = min(margin, float((top.values[:, :-1] - top.values[:, 1:]).min()))
        arrays |= {f"router_logits_{i}": scores.numpy(), f"router_topk_{i}": top.indices[:, :count].numpy()}
    prompt = random_ids(2, 9)
    mask = torch.ones_like(prompt)
    prompt[0, :4], mask[0, :4] = 0, 0
    new, gap = greedy(model, prompt, mask)
    arrays |= {
        "gen_prompt_leftpad": prompt.numpy().astype(np.int32),
        "gen_mask_leftpad": mask.numpy().astype(np.int32),
        "gen_ids_leftpad": new,
    }
    return arrays, gap, margin


def main() -> None:
    """Writes the three folders."""
    for kind in MODELS:
        for seed in range(10_000):
            model = make_model(kind, seed)
            with torch.no_grad():
                arrays, gap, margin = expected_arrays(model, seed)
            variety = min(len(set(row)) for row in arrays["gen_ids_leftpad"].tolist())
            if gap > SMALLEST_GAP and margin > SMALLEST_MARGIN and variety >= DIFFERENT_TOKENS:
                break
        else:
            raise SystemExit(f"{kind}: no seed gives varied continuations without near-ties")
        model.bfloat16().save_pretrained(FOLDER / kind)
        np.savez_compressed(FOLDER / kind / "expected.npz", **arrays)
        print(f"{kind}: seed {seed}, gap {gap:.4f}, margin {margin:.4f}, {variety} tokens")


if __name__ == "__main__":
    main()
