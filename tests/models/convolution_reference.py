"""ResNet and DenseNet in NumPy, from torchvision's names of tensors: written from the papers' equations, float64."""

import re

import numpy as np


def convolved(x, weight, stride=1):
    """x [B, C, H, W], weight [O, C, k, k]."""
    kernel = weight.shape[-1]
    side = (kernel - 1) // 2
    padded = np.pad(x, ((0, 0), (0, 0), (side, side), (side, side)))
    height, width = (x.shape[2] - 1) // stride + 1, (x.shape[3] - 1) // stride + 1
    out = np.zeros((len(x), len(weight), height, width))
    for i in range(kernel):
        for j in range(kernel):
            part = padded[:, :, i : i + stride * height : stride, j : j + stride * width : stride]
            out += np.einsum("bchw,oc->bohw", part[:, :, :height, :width], weight[:, :, i, j])
    return out


def normed(x, tensors, name):
    mean, variance, weight, bias = (
        tensors[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / np.sqrt(variance + 1e-5) * weight + bias


def relu(x):
    return np.maximum(x, 0)


def max_pooled(x):
    """3 x 3, every second one."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    height, width = (x.shape[2] - 1) // 2 + 1, (x.shape[3] - 1) // 2 + 1
    parts = [padded[:, :, i : i + 2 * height : 2, j : j + 2 * width : 2] for i in range(3) for j in range(3)]
    return np.max([part[:, :, :height, :width] for part in parts], axis=0)


def resnet(tensors, x):
    """(features, logits)."""
    x = max_pooled(relu(normed(convolved(x, tensors["conv1.weight"], 2), tensors, "bn1")))
    for block in sorted({match[0] for name in tensors if (match := re.match(r"layer\d+\.\d+", name))}):
        stride = 2 if block.endswith(".0") and block != "layer1.0" else 1
        residual = x
        if f"{block}.downsample.0.weight" in tensors:
            residual = convolved(x, tensors[f"{block}.downsample.0.weight"], stride)
            residual = normed(residual, tensors, f"{block}.downsample.1")
        last = 3 if f"{block}.conv3.weight" in tensors else 2
        for number in range(1, last + 1):
            weight = tensors[f"{block}.conv{number}.weight"]
            here = stride if number == last - 1 else 1
            x = normed(convolved(x, weight, here), tensors, f"{block}.bn{number}")
            x = relu(x if number < last else x + residual)
    features = x.mean((2, 3))
    return features, features @ tensors["fc.weight"].T + tensors["fc.bias"]


def densenet(tensors, x):
    """(features, logits)."""
    x = max_pooled(relu(normed(convolved(x, tensors["features.conv0.weight"], 2), tensors, "features.norm0")))
    blocks = max(int(match[1]) for name in tensors if (match := re.match(r"features\.denseblock(\d+)", name)))
    for block in range(1, blocks + 1):
        layer = 1
        while f"features.denseblock{block}.denselayer{layer}.conv1.weight" in tensors:
            name, new = f"features.denseblock{block}.denselayer{layer}", x
            for number in (1, 2):
                new = relu(normed(new, tensors, f"{name}.norm{number}"))
                new = convolved(new, tensors[f"{name}.conv{number}.weight"])
            x, layer = np.concatenate([x, new], 1), layer + 1
        if block < blocks:
            name = f"features.transition{block}"
            x = convolved(relu(normed(x, tensors, f"{name}.norm")), tensors[f"{name}.conv.weight"])
            x = x[:, :, : x.shape[2] // 2 * 2, : x.shape[3] // 2 * 2]
            x = (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4
    features = relu(normed(x, tensors, "features.norm5")).mean((2, 3))
    return features, features @ tensors["classifier.weight"].T + tensors["classifier.bias"]
