"""Makes the committed goldens of the convolutional classifiers of images out of transformers and torchvision.

    python -m tests.goldens.make_classifier_goldens      # tests/goldens/classifiers/

A folder has network.json (versions, seed, shape of the images, name and shape of every tensor), expected.npz (results)
and, of transformers, its config.json. Weights and images are not stored: `drawn_weights` makes them again. Nothing of
zoo is used here, so that a mistake in zoo cannot reach what it is compared with. All in float32 on CPU.
"""

import json
from pathlib import Path

import numpy as np
import torch
import torchvision
import transformers
from torchvision.models.densenet import DenseNet
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from tests.goldens.drawn_weights import drawn_images, drawn_weights

FOLDER = Path(__file__).parent / "classifiers"
CLASSES = 3
# Sides that are odd on the way down, and no square.
SHAPE = (3, 3, 40, 27)
LABELS = (2, 0, 1)
# Blocks whose shortcut is a convolution, for its stride or for its width alone, and blocks whose shortcut is none.
RESNETS = {
    "resnet_basic": {"layer_type": "basic", "embedding_size": 6, "hidden_sizes": [6, 8], "depths": [1, 2]},
    "resnet_bottleneck": {"layer_type": "bottleneck", "embedding_size": 4, "hidden_sizes": [8, 12], "depths": [2, 1]},
}
TORCHVISION_RESNETS = {
    "torchvision_resnet_basic": (BasicBlock, (2, 1, 1, 1), (6, 8, 10, 12)),
    "torchvision_resnet_bottleneck": (Bottleneck, (1, 1, 2, 1), (2, 3, 4, 5)),
}


def narrow_resnet(block, depths, widths) -> ResNet:
    """torchvision's network with other widths than 64 to 512, which it has as constants: its own blocks, its forward
    pass."""
    model = ResNet(block, list(depths), num_classes=CLASSES)
    model.inplanes = widths[0]
    model.conv1 = torch.nn.Conv2d(3, widths[0], 7, stride=2, padding=3, bias=False)
    model.bn1 = torch.nn.BatchNorm2d(widths[0])
    for stage, (depth, width) in enumerate(zip(depths, widths)):
        setattr(model, f"layer{stage + 1}", model._make_layer(block, width, depth, stride=2 if stage else 1))
    model.fc = torch.nn.Linear(widths[-1] * block.expansion, CLASSES)
    return model


def make(name: str, seed: int, model: torch.nn.Module, classifier: torch.nn.Module, *, training: bool = False) -> None:
    """Logits, and what the classifier reads; with `training` also a step's logits, gradients and moved statistics."""
    state = model.state_dict()
    shapes = {key: list(value.shape) for key, value in state.items()}
    model.load_state_dict({key: torch.as_tensor(value) for key, value in drawn_weights(shapes, seed).items()})
    seen: list[torch.Tensor] = []
    hook = classifier.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].flatten(1)))
    pixels = torch.as_tensor(drawn_images(SHAPE, seed + 1))

    def logits() -> torch.Tensor:
        out = model(pixels)
        return out if torch.is_tensor(out) else out.logits

    model.eval()
    with torch.no_grad():
        arrays = {"logits": logits(), "features": seen[0]}
    hook.remove()
    if training:
        model.train()
        trained = logits()
        loss = torch.nn.functional.cross_entropy(trained, torch.as_tensor(LABELS))
        loss.backward()
        arrays |= {"labels": torch.as_tensor(LABELS), "training_logits": trained, "training_loss": loss}
        arrays |= {f"gradient/{key}": parameter.grad for key, parameter in model.named_parameters()}
        arrays |= {f"after/{key}": value for key, value in model.named_buffers() if ".running_" in key}
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "expected.npz", **{key: value.detach().numpy() for key, value in arrays.items()})
    versions = {module.__name__: module.__version__.split("+")[0] for module in (torch, torchvision, transformers)}
    described = {"versions": versions, "seed": seed, "pixel_values": SHAPE, "tensors": shapes}
    (folder / "network.json").write_text(json.dumps(described) + "\n")


if __name__ == "__main__":
    for number, (name, values) in enumerate(RESNETS.items()):
        config = transformers.ResNetConfig(**values, num_labels=CLASSES)
        model = transformers.ResNetForImageClassification(config)
        make(name, 10 * number, model, model.classifier, training=name == "resnet_basic")
        # What save_pretrained of a model adds.
        config.dtype = torch.float32
        config.architectures = [type(model).__name__]
        config.save_pretrained(FOLDER / name)
    for number, (name, sizes) in enumerate(TORCHVISION_RESNETS.items()):
        model = narrow_resnet(*sizes)
        make(name, 20 + 10 * number, model, model.fc)
    model = DenseNet(growth_rate=4, block_config=(2, 2, 1), num_init_features=6, bn_size=2, num_classes=CLASSES)
    make("torchvision_densenet", 40, model, model.classifier, training=True)
