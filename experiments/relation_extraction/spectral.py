"""What pieces of words stand beside each other, before anything is trained: embeddings and biases out of counts.

    PPMI(a, b) = max(0, log(p(a, b) / (p(a) q(b)))),   q(b) ~ p(b)^0.75
    PPMI = U S V^T,   embedding of a = row a of U S^(1/2), as long as 1

(Levy, Goldberg and Dagan, TACL 2015, with their shift of 0; the pairs of two neighbours at distance d count 1 / d, as
GloVe's.) A small BERT that begins with them gets off the plateau where words are guessed by their frequency in a part
of the steps (docs/decisions.md, 2026-11-28).
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
import scipy.sparse as sparse
from jaxtyping import Float32
from scipy.sparse.linalg import svds

from zoo.data import Batch
from zoo.errors import UserError
from zoo.models.bert import Bert

WINDOW = 4
"""Largest distance, in pieces, of two that are neighbours."""
SMOOTHING = 0.75
"""Power of q: rare neighbours say less."""


def cooccurrences(batches: Sequence[Batch], vocab_size: int) -> sparse.csr_array:
    """Symmetric float64 [V, V]: sums of 1 / distance over all pairs of neighbours in the same text of the same row.
    Only tokens that may be masked are counted: not those of BERT, not padding.

    batches: of the format masked, rows of one length. vocab_size: V.
    """
    tokens, segments, counted = (
        np.concatenate([np.asarray(getattr(batch, name)) for batch in batches])
        for name in ("tokens", "segment_ids", "loss_weights")
    )
    found = sparse.csr_array((vocab_size, vocab_size), dtype=np.float64)
    for distance in range(1, min(WINDOW, tokens.shape[1] - 1) + 1):
        left, right = slice(None, -distance), slice(distance, None)
        both = (counted[:, left] > 0) & (counted[:, right] > 0) & (segments[:, left] == segments[:, right])
        pairs = tokens[:, left][both], tokens[:, right][both]
        ones = np.full(len(pairs[0]), 1 / distance)
        one_way = sparse.coo_array((ones, pairs), shape=found.shape).tocsr()
        found = found + one_way + one_way.T
    return found


def ppmi(counts: sparse.csr_array) -> sparse.csr_array:
    """Float64 [V, V]: the PPMI of the head of this file, in nats, of a symmetric matrix of counts."""
    pairs, sums = counts.tocoo(), np.asarray(counts.sum(axis=1))
    share = sums**SMOOTHING / (sums**SMOOTHING).sum()
    information = np.log(pairs.data / sums[pairs.row] / share[pairs.col])
    kept = information > 0
    return sparse.csr_array((information[kept], (pairs.row[kept], pairs.col[kept])), shape=counts.shape)


def spectral_embeddings(counts: sparse.csr_array, width: int, seed: int = 0) -> Float32[np.ndarray, "v d"]:
    """One row for each piece, of length 1 (a zero row for one that was not seen), turned by a random rotation so that
    no column is larger than another.

    counts: of `cooccurrences`. width: D.

    Raises:
      UserError: D is not below V, so that there are not so many singular vectors to choose from.
    """
    if width >= counts.shape[0]:
        raise UserError(f"a vocabulary of {counts.shape[0]} pieces is too small for embeddings of width {width}: need "
                        "more text, or a size with mlm_counted_batches=0")  # fmt: skip
    rng = np.random.default_rng(seed)
    vectors, values, _ = svds(ppmi(counts), k=width, v0=rng.standard_normal(counts.shape[0]))
    rows = vectors * np.sqrt(values)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = np.where(lengths > 1e-6, rows / np.maximum(lengths, 1e-6), 0)
    rotation, _ = np.linalg.qr(rng.standard_normal((width, width)))
    return (rows @ rotation).astype(np.float32)


def begin_with(model: Bert, batches: Sequence[Batch]) -> None:
    """Gives a new model with a masked-token head the spectral embeddings of what batches of the format masked hold, and
    log((n + 1) / (N + V)) as the bias of the logit of a piece that was seen n times among N. Pieces that were not seen
    keep their random embeddings. Raises `UserError` as `spectral_embeddings`."""
    table = model.embedder.embedding
    rows = spectral_embeddings(cooccurrences(batches, table.shape[0]), table.shape[1])
    table[...] = jnp.where(rows.any(axis=1, keepdims=True), rows, table[...]).astype(table[...].dtype)
    counts = np.zeros(len(rows))
    for batch in batches:
        counts += np.bincount(batch.tokens.ravel(), batch.loss_weights.ravel(), len(rows))
    model.head.bias[...] = jnp.log((counts + 1) / (counts.sum() + len(rows))).astype(model.head.bias[...].dtype)
