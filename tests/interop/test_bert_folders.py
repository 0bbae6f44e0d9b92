"""Folders of BERT come in as transformers writes them today and as the hub holds them, and go out as they came."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import zoo
import zoo.export
from tests.models.bert_reference import TINY, parameters, randomised
from tests.models.encoder_folders import assert_export_repeats, encoder_folder
from zoo.data import train_wordpiece
from zoo.errors import UserError
from zoo.interop import load_huggingface, save_huggingface
from zoo.interop.architectures import config_from_huggingface
from zoo.models.bert import Head
from zoo.nn import Execution

HEADS: tuple[Head, ...] = ("pooler", "masked_lm")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder for each head, and the model that is in it."""
    found = {}
    for head in HEADS:
        model, folder = randomised(replace(TINY, head=head)), tmp_path_factory.mktemp(head) / "model"
        save_huggingface(model, folder)
        found[head] = (folder, model)
    return found


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("scan", [False, True])
def test_what_was_saved_is_loaded_and_saved_again_bit_for_bit(folders, head, scan, tmp_path):
    folder, model = folders[head]
    loaded = load_huggingface(folder, execution=Execution(scan_layers=scan))
    # What stands for a masked token is no part of the folder.
    assert loaded.config == replace(model.config, mask_token_id=103)
    if not scan:
        for name, value in parameters(model).items():
            np.testing.assert_array_equal(parameters(loaded)[name], value, err_msg=name)
    assert_export_repeats(loaded, folder, tmp_path / "copy")


@pytest.mark.parametrize("name", ["bert-tiny", "bert-mlm-tiny"])
def test_an_export_repeats_every_tensor_of_a_folder_of_transformers(name, tmp_path):
    folder, _ = encoder_folder(name)
    assert_export_repeats(load_huggingface(folder), folder, tmp_path / "copy")


def as_on_the_hub(folder, copy, **more):
    """The folder as the pre-training of 2018 left it: old names of norms, a pooler, the head of the next sentence, and
    the output layer written twice."""
    tensors = load_file(folder / "model.safetensors")
    width = tensors["bert.embeddings.LayerNorm.weight"].shape[0]
    hub: dict[str, np.ndarray] = {
        "bert.pooler.dense.weight": np.ones((width, width), np.float32),
        "bert.pooler.dense.bias": np.ones(width, np.float32),
        "cls.seq_relationship.weight": np.ones((2, width), np.float32),
        "cls.seq_relationship.bias": np.ones(2, np.float32),
        "bert.embeddings.position_ids": np.arange(TINY.num_positions)[None],
        "cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"],
    }
    for name, tensor in tensors.items():
        old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        hub[old] = tensor
    copy.mkdir()
    save_file(hub | more, copy / "model.safetensors")
    (copy / "config.json").write_text((folder / "config.json").read_text())
    return copy


def test_a_folder_of_the_hub_is_the_same_model(folders, tmp_path):
    folder, model = folders["masked_lm"]
    loaded = zoo.load(as_on_the_hub(folder, tmp_path / "hub"))
    assert loaded.source == "huggingface" and loaded.tokenizer is None
    for name, value in parameters(model).items():
        np.testing.assert_array_equal(parameters(loaded.model)[name], value, err_msg=name)


@pytest.mark.parametrize(
    ("name", "shape", "problem"),
    [
        ("cls.predictions.decoder.weight", (23, 12), "decoder.weight differs from bert.embeddings.word_embeddings"),
        ("bert.embeddings.LayerNorm.weight", (12,), "under its old name and under today's"),
        ("bert.encoder.layer.2.output.dense.bias", (12,), "weights of 3 layers, config.json has num_hidden_layers = 2"),
        ("bert.embeddings.other", (12,), "unexpected tensor bert.embeddings.other"),
    ],
)
def test_what_makes_it_another_model_is_refused(folders, name, shape, problem, tmp_path):
    hub = as_on_the_hub(folders["masked_lm"][0], tmp_path / "hub", **{name: np.zeros(shape, np.float32)})
    with pytest.raises(UserError, match=problem):
        load_huggingface(hub)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("architectures", ["BertForPreTraining"]),
        ("hidden_act", "gelu_new"),
        ("position_embedding_type", "relative_key"),
        ("is_decoder", True),
        ("tie_word_embeddings", False),
        ("num_attention_heads", 5),
        ("hidden_dropout_prob", 1.5),
        ("pad_token_id", 23),
    ],
)
def test_a_folder_that_asks_for_something_else_is_refused_by_key(folders, key, value):
    values = json.loads((folders["masked_lm"][0] / "config.json").read_text())
    with pytest.raises(UserError, match=key):
        config_from_huggingface(values | {key: value})


def test_the_export_command_takes_the_vocabulary_along_and_names_the_class_that_opens_it(folders, tmp_path, capsys):
    folder, _ = folders["masked_lm"]
    hub = as_on_the_hub(folder, tmp_path / "hub")
    (hub / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abc"]) + "\n")
    zoo.export.main([str(hub), str(tmp_path / "out"), "--format", "huggingface"])
    assert "AutoModelForMaskedLM.from_pretrained" in capsys.readouterr().out
    assert (tmp_path / "out" / "vocab.txt").read_bytes() == (hub / "vocab.txt").read_bytes()
    tokenizer = zoo.load(tmp_path / "out").tokenizer
    assert tokenizer is not None and tokenizer.encode("a c", bos=True) == [2, 5, 7]


def test_a_vocabulary_that_was_trained_here_is_exported_so_that_its_case_is_kept(folders, tmp_path):
    _, model = folders["masked_lm"]
    tokenizer = train_wordpiece(["a Bc Bc"] * 3, 120)
    save_huggingface(model, tmp_path / "out", tokenizer=tokenizer)
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert settings == {"tokenizer_class": "BertTokenizer", "do_lower_case": False}
