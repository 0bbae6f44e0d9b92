"""The library peft opens our LoRA folders and we open its own, with equal logits; needs the extra `verify`."""

import json

import numpy as np
import pytest
from flax import nnx

from tests.marks import slow
from tests.peft.small import CONFIG, TOKENS, logits, random_adapter, sparse_model
from zoo.errors import UserError
from zoo.interop import load_adapter, save_huggingface, save_peft
from zoo.models import build
from zoo.peft import PeftConfig, with_adapters

torch = pytest.importorskip("torch", reason="torch is not installed (extra `verify`)")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra `verify`)")
peft = pytest.importorskip("peft", reason="peft is not installed (extra `verify`)")

TOLERANCE = 1e-4
ALL = ("query", "key", "value", "attention/output", "mlp/gate", "mlp/up", "mlp/down")


@pytest.fixture(scope="module")
def base():
    return build(CONFIG, rngs=nnx.Rngs(0))


@pytest.fixture
def theirs(base, tmp_path):
    """The same weights in transformers."""
    save_huggingface(base, tmp_path / "base")
    return transformers.Gemma2ForCausalLM.from_pretrained(
        tmp_path / "base", attn_implementation="eager", dtype=torch.float32
    )


def logits_of(model) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.as_tensor(TOKENS).long(), use_cache=False).logits.numpy()


@pytest.mark.parametrize(
    "config",
    [
        PeftConfig("lora", rank=3, alpha=6.0, target=ALL),
        PeftConfig("lora", rank=2, alpha=5.0, rslora=True, target=("layers/2/attention/query", "down")),
    ],
    ids=["every matrix", "some layers, rank-stabilised"],
)
def test_peft_opens_what_we_write_and_computes_the_same(config, base, theirs, tmp_path):
    adapter = random_adapter(base, config)
    save_peft(adapter, tmp_path / "lora", config=CONFIG)
    wanted = logits(with_adapters(base, [adapter]))
    assert np.abs(wanted - logits(base)).max() > 0.1
    np.testing.assert_allclose(logits_of(theirs), logits(base), atol=TOLERANCE)
    opened = peft.PeftModel.from_pretrained(theirs, tmp_path / "lora")
    np.testing.assert_allclose(logits_of(opened), wanted, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(logits_of(opened.merge_and_unload()), wanted, rtol=0, atol=TOLERANCE)


def test_peft_opens_experts_under_their_names_of_transformers_4(tmp_path):
    model = sparse_model("mixtral-8x7b")
    experts = PeftConfig("lora", rank=2, rslora=True, target=("query", "mlp/gate", "mlp/up", "mlp/down"))
    adapter = random_adapter(model, experts)
    save_peft(adapter, tmp_path / "lora", config=model.config)
    save_huggingface(model, tmp_path / "base")
    theirs = transformers.MixtralForCausalLM.from_pretrained(
        tmp_path / "base", attn_implementation="eager", dtype=torch.float32
    )
    wanted = logits(with_adapters(model, [adapter]))
    assert np.abs(wanted - logits(model)).max() > 0.1
    opened = peft.PeftModel.from_pretrained(theirs, tmp_path / "lora")
    np.testing.assert_allclose(logits_of(opened), wanted, rtol=0, atol=TOLERANCE)


def written_by_peft(model, folder, **options):
    """What peft computes with a LoRA of random values, which it saves."""
    changed = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **options))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in changed.named_parameters():
            if ".lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape))
    changed.save_pretrained(folder)
    return logits_of(changed)


@pytest.mark.parametrize(
    "options",
    [
        dict(target_modules="all-linear", r=3, lora_alpha=6),
        dict(target_modules=["q_proj", "down_proj"], r=2, lora_alpha=5, use_rslora=True, layers_to_transform=[1, 3]),
        *slow(
            dict(target_modules=r".*\.[02]\.self_attn\.(q|o)_proj", r=2, lora_dropout=0.5),
            dict(target_modules=["v_proj"], r=2, layers_to_transform=2, layers_pattern="layers"),
            dict(target_modules=["o_proj"], r=2, init_lora_weights="orthogonal", layers_to_transform=[]),
        ),
    ],
    ids=["all-linear", "list and layers", "regular expression", "one layer", "orthogonal"],
)
def test_what_peft_writes_is_opened_and_computes_the_same(options, base, theirs, tmp_path):
    wanted = written_by_peft(theirs, tmp_path / "lora", **options)
    assert np.abs(wanted - logits(base)).max() > 0.1
    adapter = load_adapter(tmp_path / "lora", base)
    np.testing.assert_allclose(logits(with_adapters(base, [adapter])), wanted, rtol=0, atol=TOLERANCE)


def test_an_initialisation_that_changes_the_base_is_refused(base, theirs, tmp_path):
    """PiSSA takes a part out of the base's weights, so that its factors belong to no other base."""
    written_by_peft(theirs, tmp_path / "lora", target_modules=["q_proj"], r=2, init_lora_weights="pissa")
    assert json.loads((tmp_path / "lora" / "adapter_config.json").read_text())["init_lora_weights"] == "pissa"
    with pytest.raises(UserError, match="init_lora_weights = 'pissa' is not computed here"):
        load_adapter(tmp_path / "lora", base)
