"""Makes the committed goldens out of public implementations: what a tiny random Gemma 2 computes.

    python tests/goldens/make_goldens.py              # transformers and torch: tests/goldens/gemma2/
    python tests/goldens/make_goldens.py --deepmind   # the package `gemma`: expected_deepmind.npz, deepmind_tree.json

Nothing of zoo is used here, so that a mistake in zoo cannot reach what it is compared with. All in float32 on CPU.
The files in the repository were made with transformers 5.23, torch 2.13 and gemma 3.3.
"""

import argparse
import json
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "gemma2"
# Unequal to each other wherever Gemma 2 allows it; 24 tokens are four windows; 8 = D / N is the 27B's query scalar.
SHAPE = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "query_pre_attn_scalar": 8,
    "sliding_window": 6,
    "max_position_embeddings": 256,
}
TRAINING = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
NEW_TOKENS = 20
SMALLEST_GAP = 5e-3
DIFFERENT_TOKENS = 7


def make_model(seed: int):
    """A Gemma 2 with random weights and norms, in float32 with eager attention (which has the soft-cap)."""
    import torch
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(seed)
    model = Gemma2ForCausalLM._from_config(Gemma2Config(**SHAPE), attn_implementation="eager").float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape) * (0.3 if "norm" in name else 0.25))
        # A token must not simply predict itself, as it would through the tied embedding.
        model.model.embed_tokens.weight.mul_(0.5)
        model.model.norm.weight.add_(2)
    return model


def greedy(model, ids, mask) -> tuple[np.ndarray, float]:
    """New ids [B, NEW_TOKENS] by full forward passes (no cache), and the smallest gap between two largest logits."""
    import torch

    length, gap = ids.shape[1], np.inf
    for _ in range(NEW_TOKENS):
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits[:, -1]
        top = logits.topk(2).values
        gap = min(gap, float((top[:, 0] - top[:, 1]).min()))
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    return ids[:, length:].numpy().astype(np.int32), gap


def expected_arrays(model, seed: int) -> tuple[dict[str, np.ndarray], float]:
    """Logits, hidden states and greedy continuations; and the smallest gap between two largest logits on the way."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def random_ids(*shape):
        return torch.randint(3, SHAPE["vocab_size"], shape, generator=generator)

    ids = random_ids(2, 24)
    out = model(input_ids=ids, output_hidden_states=True, use_cache=False)
    arrays = {
        "input_ids": ids.numpy().astype(np.int32),
        "logits": out.logits.numpy(),
        "hidden_states_last": out.hidden_states[-1].numpy(),
    }
    gaps = []
    left_padded = random_ids(2, 10)
    mask = torch.ones_like(left_padded)
    left_padded[0, :4], mask[0, :4] = 0, 0
    short, long = random_ids(2, 3), random_ids(2, 15)
    prompts = {"short": (short, None), "long": (long, None), "leftpad": (left_padded, mask)}
    for name, (prompt, given) in prompts.items():
        new, gap = greedy(model, prompt, torch.ones_like(prompt) if given is None else given)
        gaps.append(gap)
        arrays |= {f"gen_prompt_{name}": prompt.numpy().astype(np.int32), f"gen_ids_{name}": new}
    arrays["gen_mask_leftpad"] = mask.numpy().astype(np.int32)
    return arrays, min(gaps)


def expected_training(model, seed: int, steps: int = 8) -> dict[str, np.ndarray]:
    """Losses and gradient norms of AdamW steps, every parameter decayed; `grad0_norm/NAME` of the first step."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    batches = torch.randint(3, SHAPE["vocab_size"], (steps, 2, 20), generator=generator)
    optimizer = torch.optim.AdamW(model.parameters(), **TRAINING)
    arrays: dict[str, np.ndarray] = {"batches": batches.numpy().astype(np.int32)}
    losses, norms = [], []
    for step, batch in enumerate(batches):
        logits = model(input_ids=batch, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), batch[:, 1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        if step == 0:
            arrays |= {f"grad0_norm/{name}": gradient.norm().numpy() for name, gradient in gradients.items()}
            arrays["grad0/model.layers.0.self_attn.q_proj.weight"] = gradients[
                "model.layers.0.self_attn.q_proj.weight"
            ].numpy()
        norms.append(float(torch.stack([gradient.norm() for gradient in gradients.values()]).norm()))
        losses.append(float(loss.detach()))
        optimizer.step()
    settings = {name: np.array(value) for name, value in TRAINING.items()}
    return arrays | settings | {"losses": np.array(losses), "grad_norms": np.array(norms)}


def make_transformers() -> None:
    """Writes the model folder with expected.npz and expected_train.npz."""
    import torch

    for seed in range(1000):
        model = make_model(seed)
        with torch.no_grad():
            arrays, gap = expected_arrays(model, seed)
        variety = min(
            len(set(row)) for name in ("short", "long", "leftpad") for row in arrays[f"gen_ids_{name}"].tolist()
        )
        if gap > SMALLEST_GAP and variety >= DIFFERENT_TOKENS:
            break
    else:
        raise SystemExit("no seed gives varied continuations without near-ties")
    model.save_pretrained(FOLDER)
    np.savez_compressed(FOLDER / "expected.npz", **arrays)
    np.savez_compressed(FOLDER / "expected_train.npz", **expected_training(model, seed))
    print(f"seed {seed}, smallest gap {gap:.4f}, {variety} tokens, |logits| up to {np.abs(arrays['logits']).max():.1f}")


def to_deepmind(tensors: dict[str, np.ndarray], *, transpose_gating: bool) -> dict:
    """Hugging Face's tensors as DeepMind's nested tree; the mapping of its own conversion, written out."""
    heads, kv_heads, head_dim = SHAPE["num_attention_heads"], SHAPE["num_key_value_heads"], SHAPE["head_dim"]
    tree: dict = {
        "embedder": {"input_embedding": tensors["model.embed_tokens.weight"]},
        "final_norm": {"scale": tensors["model.norm.weight"]},
    }
    for layer in range(SHAPE["num_hidden_layers"]):
        get = {name: tensors[f"model.layers.{layer}.{name}.weight"] for name in LAYER_NAMES}

        def heads_first(name: str, count: int, get=get) -> np.ndarray:
            return get[f"self_attn.{name}_proj"].reshape(count, head_dim, -1).transpose(0, 2, 1)

        gating = np.stack([get["mlp.gate_proj"], get["mlp.up_proj"]])
        tree[f"layer_{layer}"] = {
            "pre_attention_norm": {"scale": get["input_layernorm"]},
            "attn": {
                "q_einsum": {"w": heads_first("q", heads)},
                "kv_einsum": {"w": np.stack([heads_first("k", kv_heads), heads_first("v", kv_heads)])},
                "attn_vec_einsum": {"w": get["self_attn.o_proj"].reshape(-1, heads, head_dim).transpose(1, 2, 0)},
            },
            "post_attention_norm": {"scale": get["post_attention_layernorm"]},
            "pre_ffw_norm": {"scale": get["pre_feedforward_layernorm"]},
            "mlp": {
                "gating_einsum": gating if transpose_gating else gating.transpose(0, 2, 1),
                "linear": get["mlp.down_proj"].T,
            },
            "post_ffw_norm": {"scale": get["post_feedforward_layernorm"]},
        }
    return tree


LAYER_NAMES = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)


def make_deepmind() -> None:
    """Writes the logits of DeepMind's own modules with the weights of the folder, and the tree that they declare."""
    import jax
    import jax.numpy as jnp
    from gemma.gm.nn import _layers, _modules
    from safetensors.numpy import load_file

    tokens = np.load(FOLDER / "expected.npz")["input_ids"]
    tensors = load_file(FOLDER / "model.safetensors")
    width, length = SHAPE["hidden_size"], tokens.shape[1]
    positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)
    causal = jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), (*tokens.shape, length))
    kinds = (_modules.AttentionType.LOCAL_SLIDING, _modules.AttentionType.GLOBAL)
    embedder = _modules.Embedder(vocab_size=SHAPE["vocab_size"], embed_dim=width)
    listed, logits = {}, {}
    for transpose in (False, True):
        tree = to_deepmind(tensors, transpose_gating=transpose)
        shapes: dict = {"embedder": tree["embedder"], "final_norm": tree["final_norm"]}
        x = embedder.apply({"params": tree["embedder"]}, tokens, method=embedder.encode)
        for layer in range(SHAPE["num_hidden_layers"]):
            block = _modules.Block(
                num_heads=SHAPE["num_attention_heads"],
                num_kv_heads=SHAPE["num_key_value_heads"],
                embed_dim=width,
                head_dim=SHAPE["head_dim"],
                hidden_dim=SHAPE["intermediate_size"],
                use_post_attn_norm=True,
                use_post_ffw_norm=True,
                attn_type=kinds[layer % 2],
                query_pre_attn_scalar=SHAPE["query_pre_attn_scalar"] ** -0.5,
                transpose_gating_einsum=transpose,
                attn_logits_soft_cap=50.0,
                sliding_window_size=SHAPE["sliding_window"],
            )
            name = f"layer_{layer}"
            shapes[name] = jax.eval_shape(block.init, jax.random.key(0), x, positions, None, causal)["params"]
            x = block.apply({"params": tree[name]}, x, positions, None, causal)[1]
        x = _layers.RMSNorm().apply({"params": tree["final_norm"]}, x)
        raw = embedder.apply({"params": tree["embedder"]}, x, method=embedder.decode)
        key = f"transpose_gating={str(transpose).lower()}"
        logits[key] = np.asarray(30 * jnp.tanh(raw / 30))
        leaves = jax.tree_util.tree_flatten_with_path(shapes)[0]
        listed[key] = {"/".join(str(part.key) for part in path): list(leaf.shape) for path, leaf in leaves}
    np.savez_compressed(FOLDER / "expected_deepmind.npz", **logits)
    (FOLDER / "deepmind_tree.json").write_text(json.dumps(listed, indent=1) + "\n")
    reference = np.load(FOLDER / "expected.npz")["logits"]
    print({key: float(np.abs(value - reference).max()) for key, value in logits.items()}, "from transformers' logits")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deepmind", action="store_true")
    if parser.parse_args().deepmind:
        make_deepmind()
    else:
        make_transformers()
