"""The shared workspace in float64, one specialist, slot and head after the other, as its equations are written."""

import numpy as np
from flax import nnx

EPS = 1e-5


def parameters_of(workspace) -> dict[str, np.ndarray]:
    """The parameters in float64 by their path."""
    state = nnx.to_flat_state(nnx.state(workspace))
    return {"/".join(map(str, path)): np.asarray(variable[...], np.float64) for path, variable in state}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def norm(x, scale, bias):
    centred = x - x.mean()
    return centred / np.sqrt((centred**2).mean() + EPS) * scale + bias


def mapped(p, side, name, head, x):
    """One head's query, key or value of one vector."""
    bias = p.get(f"{side}/{name}_bias")
    return x @ p[f"{side}/{name}"][:, head] + (0 if bias is None else bias[head])


def weights_of(config, scores, may, held):
    """Weights of the specialists of one slot and head. `held`: the losers' scores as the gradient sees them."""
    n = len(scores)
    order = sorted((i for i in range(n) if may[i]), key=lambda i: (-scores[i], i))
    kept = order if config.top_k is None else order[: config.top_k]
    if not kept:
        return np.zeros(n)
    if not (config.renormalised or config.losers_gradient):
        scores = np.array([scores[i] if i in kept else held[i] for i in range(n)])
    over = kept if config.renormalised else order
    total = sum(np.exp(scores[i] - scores[order[0]]) for i in over)
    return np.array([np.exp(scores[i] - scores[order[0]]) / total if i in kept else 0.0 for i in range(n)])


def exchange(p, config, x, memory, writers=None, scores_at=None):
    """(read [n, d], memory [m, w], weights [h, m, n]) of one row.

    scores_at: dictionary of the scores where the derivative is taken; filled at the first call, read afterwards.
    """
    n, m, heads = len(x), len(memory), config.num_heads
    may = np.ones(n, bool) if writers is None else writers
    reading = "writing" if config.tied else "reading"
    scale = config.key_dim**-0.5 if config.scaled else 1.0
    z = x @ p["input"] + p["input_bias"] if config.input_projection else x

    weights, attended = np.zeros((heads, m, n)), []
    for j in range(m):
        parts = []
        for head in range(heads):
            query = mapped(p, "writing", "query", head, memory[j])
            scores = np.array([scale * query @ mapped(p, "writing", "key", head, z[i]) for i in range(n)])
            held = scores if scores_at is None else scores_at.setdefault((head, j), scores)
            weights[head, j] = weights_of(config, scores, may, held)
            parts.append(sum(weights[head, j, i] * mapped(p, "writing", "value", head, z[i]) for i in range(n)))
        attended.append(np.concatenate(parts))

    new = []
    for j in range(m):
        update = attended[j]
        if config.mlp_layers:
            update = norm(memory[j] + update, p["attended_norm/scale"], p["attended_norm/bias"])
            hidden = update
            for layer in range(config.mlp_layers):
                place = 0 if config.mlp_shared else layer
                hidden = np.maximum(hidden @ p["mlp"][place] + p["mlp_bias"][place], 0)
            update = norm(update + hidden, p["mlp_norm/scale"], p["mlp_norm/bias"])
        gates = []
        for kind in range(2):
            if config.gates == "shared":
                mean = sum(np.maximum(z[i] @ p["gate_input"], 0) for i in range(n) if may[i]) / max(may.sum(), 1)
                gate = (mean + np.tanh(memory[j])) @ p["gate"][:, kind]
            else:
                mean = sum(np.maximum(p["gate_scale"] * z[i], 0) for i in range(n) if may[i]) / max(may.sum(), 1)
                gate = mean @ p["gate_input"][:, kind] + np.tanh(memory[j]) @ p["gate"][j][:, kind]
            gates.append(sigmoid(gate + p["gate_bias"][kind]))
        new.append(gates[0] * np.tanh(update) + gates[1] * memory[j])
    new = np.array(new)

    read = []
    for i in range(n):
        parts = []
        for head in range(heads):
            query = mapped(p, reading, "query", head, z[i])
            scores = np.array([scale * query @ mapped(p, reading, "key", head, new[j]) for j in range(m)])
            share = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
            parts.append(sum(share[j] * mapped(p, reading, "value", head, new[j]) for j in range(m)))
        read.append(np.concatenate(parts))
    return np.array(read), new, weights


def causal(p, config, x, width, chunk, segments, scores_at=None):
    """What is read [n, d] in one row, zeros for padding on the left: every position by an exchange of its own with all
    that it may see."""
    empty = np.eye(config.num_slots, width)
    first = int(np.argmax(segments != 0))
    read, held = [np.zeros(x.shape[1])] * first, empty
    for t in range(first, len(x)):
        start = t - (t - first) % chunk
        if t == start:
            before = held
        run = next(s for s in range(t + 1) if (segments[s : t + 1] == segments[t]).all())
        begins = empty if run >= start else before
        at = None if scores_at is None else scores_at.setdefault(t, {})
        got, held, _ = exchange(p, config, x[max(start, run) : t + 1], begins, scores_at=at)
        read.append(got[-1])
    return np.array(read)


def directional_derivatives(function, arguments: dict[str, np.ndarray], rng, step=1e-6) -> dict:
    """For each argument a direction and the derivative of function(arguments) along it."""
    found = {}
    for name, value in arguments.items():
        direction = rng.normal(size=value.shape)
        direction /= np.linalg.norm(direction)
        ends = [function({**arguments, name: value + sign * step * direction}) for sign in (1, -1)]
        found[name] = direction, (ends[0] - ends[1]) / (2 * step)
    return found
