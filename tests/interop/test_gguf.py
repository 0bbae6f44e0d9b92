"""GGUF files, opened with the reader of the package gguf: every number, every name, what is refused."""

import functools
from dataclasses import replace

import numpy as np
import pytest
from flax import nnx

import zoo
from zoo.data import train_tokenizer
from zoo.errors import UserError
from zoo.interop import Packing, load_quantised, packed_model, save_gguf, save_quantised
from zoo.interop.gguf import to_blocks
from zoo.models import build
from zoo.models.gemini import GeminiConfig
from zoo.nn import Execution
from zoo.nn.packed import PackedWeight, unpack
from zoo.nn.quantise import quantise
from zoo.nn.rope import LinearScaling

gguf = pytest.importorskip("gguf", reason="gguf is not installed (extra `gguf`)")
from gguf.quants import dequantize  # noqa: E402

GEMMA = replace(
    zoo.presets()["gemma2-nano"], vocab_size=320, embed_dim=64, num_layers=4, head_dim=16, query_pre_attn_scalar=16,
    hidden_dim=96,
)  # fmt: skip
GEMINI = GeminiConfig(
    vocab_size=320, embed_dim=64, num_layers=2, num_heads=4, head_dim=32, hidden_dim=96, sliding_window=8,
    attn_logit_soft_cap=50.0,
)  # fmt: skip


@functools.cache
def model_of(config, scan=False):
    return build(config, execution=Execution(scan_layers=scan), rngs=nnx.Rngs(0))


def read(path) -> dict[str, np.ndarray]:
    """All tensors as the package's own reader and own arithmetic give them."""
    tensors = gguf.GGUFReader(path).tensors
    return {t.name: dequantize(t.data, t.tensor_type).reshape(t.shape[::-1].tolist()) for t in tensors}


def field(path, key):
    return gguf.GGUFReader(path).fields[key].contents()


@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_are_the_packed_weights_bit_for_bit(bits):
    weight = np.random.default_rng(0).standard_normal((64, 48)).astype(np.float32)
    packed = quantise(weight, bits, num_contracted=1)
    found = dequantize(to_blocks(packed), gguf.GGMLQuantizationType[f"Q{bits}_0"])
    np.testing.assert_array_equal(found, np.asarray(unpack(packed, np.float32)).T)


@pytest.mark.parametrize("config", [GEMMA, GEMINI], ids=["Gemma 2", "Gemini Nano's block"])
@pytest.mark.parametrize("bits", [None, 4, 8])
def test_every_tensor_of_the_file_equals_ours(config, bits, tmp_path):
    model = model_of(config)
    packing = None if bits is None else Packing(bits)
    file = save_gguf(model, tmp_path / "out", packing)
    ours = model if packing is None else packed_model(model, packing)
    found, layer = read(file), ours.layers[1]

    def values(variable):
        value = variable.get_value()
        return np.asarray(unpack(value, np.float32) if isinstance(value, PackedWeight) else value)

    width = config.embed_dim
    expected = {
        "token_embd.weight": values(ours.embedder.embedding),
        "output_norm.weight": values(ours.final_norm.scale) + 1,
        "blk.1.attn_norm.weight": values(layer.pre_attention_norm.scale) + 1,
        "blk.1.attn_q.weight": values(layer.attention.query).reshape(width, -1).T,
        "blk.1.attn_k.weight": values(layer.attention.key).reshape(width, -1).T,
        "blk.1.attn_v.weight": values(layer.attention.value).reshape(width, -1).T,
        "blk.1.attn_output.weight": values(layer.attention.output).reshape(-1, width).T,
        "blk.1.post_attention_norm.weight": values(layer.post_attention_norm.scale) + 1,
        "blk.1.ffn_norm.weight": values(layer.pre_ffw_norm.scale) + 1,
        "blk.1.ffn_gate.weight": values(layer.mlp.gate).T,
        "blk.1.ffn_up.weight": values(layer.mlp.up).T,
        "blk.1.ffn_down.weight": values(layer.mlp.down).T,
        "blk.1.post_ffw_norm.weight": values(layer.post_ffw_norm.scale) + 1,
    }
    assert len(found) == 2 + 11 * config.num_layers
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_scanned_layers_and_folders_of_packed_weights_give_the_same_file(tmp_path):
    unrolled = save_gguf(model_of(GEMMA), tmp_path / "unrolled", Packing(4))
    scanned = save_gguf(model_of(GEMMA, scan=True), tmp_path / "scanned", Packing(4))
    save_quantised(model_of(GEMMA), tmp_path / "packed", Packing(4))
    again = save_gguf(load_quantised(tmp_path / "packed"), tmp_path / "again")
    assert unrolled.read_bytes() == scanned.read_bytes() == again.read_bytes()


def test_bfloat16_matrices_and_float32_norms(tmp_path):
    file = save_gguf(model_of(GEMMA), tmp_path / "out", dtype="bfloat16")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}
    assert kinds["token_embd.weight"] == kinds["blk.0.attn_q.weight"] == "BF16"
    assert kinds["output_norm.weight"] == kinds["blk.0.ffn_norm.weight"] == "F32"


def test_metadata_is_what_a_runtime_asks_for(tmp_path):
    file = save_gguf(model_of(GEMMA), tmp_path / "out", Packing(4), name="tiny")
    expected = {
        "general.architecture": "gemma2",
        "general.name": "tiny",
        "general.file_type": int(gguf.LlamaFileType.MOSTLY_Q4_0),
        "gemma2.block_count": 4,
        "gemma2.embedding_length": 64,
        "gemma2.feed_forward_length": 96,
        "gemma2.attention.head_count": 4,
        "gemma2.attention.head_count_kv": 2,
        "gemma2.attention.key_length": 16,
        "gemma2.attention.value_length": 16,
        "gemma2.attention.sliding_window": 64,
        "gemma2.attn_logit_softcapping": 50.0,
        "gemma2.final_logit_softcapping": 30.0,
        "gemma2.rope.freq_base": 10_000.0,
        "gemma2.vocab_size": 320,
        "tokenizer.ggml.model": "none",
    }
    assert {key: field(file, key) for key in expected} == expected


def test_the_vocabulary_goes_along_with_its_scores_and_types(tmp_path):
    tokenizer = train_tokenizer(["a little text to learn a few pieces from"] * 30, 280)
    file = save_gguf(model_of(GEMMA), tmp_path / "out", tokenizer=tokenizer)
    pieces, types = field(file, "tokenizer.ggml.tokens"), field(file, "tokenizer.ggml.token_type")
    assert len(pieces) == len(types) == len(field(file, "tokenizer.ggml.scores")) == 320
    assert pieces[:4] == ["<pad>", "<eos>", "<bos>", "<unk>"] and pieces[-1] == "[PAD319]"
    assert [types[i] for i in (0, 1, 2, 3, 319)] == [3, 3, 3, 2, 5]
    assert types[pieces.index("<end_of_turn>")] == 3 and types[pieces.index("<0x41>")] == 6
    assert field(file, "tokenizer.ggml.bos_token_id") == 2 and field(file, "tokenizer.ggml.eos_token_id") == 1
    assert field(file, "tokenizer.ggml.add_bos_token") and not field(file, "tokenizer.ggml.add_space_prefix")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (replace(GEMMA, query_pre_attn_scalar=24), "scores divided by sqrt"),
        (replace(GEMMA, final_logit_soft_cap=None), "final_logit_soft_cap"),
        (replace(GEMMA, layer_types=("global", "local")), "layer_types"),
        (replace(GEMINI, block="parallel", post_norms=False), "block = serial"),
        (replace(GEMINI, global_rope=False), "global_rope"),
        (replace(GEMINI, global_rope_theta=1e6), "one rope_theta for all layers"),
        (replace(GEMINI, global_rope_scaling=LinearScaling(2.0)), "no global_rope_scaling"),
    ],
)
def test_what_the_format_cannot_say_is_refused_and_leaves_nothing(config, said, tmp_path):
    with pytest.raises(UserError, match=said):
        save_gguf(model_of(config), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_groups_and_scales_than_those_of_the_format_are_refused(tmp_path):
    for packing in (Packing(4, group=16, search=False), Packing(4, scale_dtype="bfloat16", search=False)):
        with pytest.raises(UserError, match="groups of 32 with float16 scales"):
            save_gguf(model_of(GEMMA), tmp_path / "out", packing)
