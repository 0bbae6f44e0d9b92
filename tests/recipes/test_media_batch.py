"""The shapes and shardings that a program is compiled for are those of the batches that the data give."""

import dataclasses

import jax

from zoo.data import DataConfig, MediaConfig, media_shapes
from zoo.parallel import MeshConfig, batch_sharding, make_mesh, rows_only
from zoo.recipes import recipe
from zoo.recipes.program import abstract_batch


def test_media_of_an_abstract_batch_have_the_pipelines_shapes_and_are_divided_by_rows_only():
    media = MediaConfig(patches_per_row=64, clips_per_row=2)
    data = DataConfig(format="interleaved", packing="first_fit", media=media, batch_size=8, sequence_length=64)
    chosen = dataclasses.replace(recipe("gemini-tiny-pro"), data=data)
    mesh = make_mesh(MeshConfig(data=4, context=2))
    found = abstract_batch(chosen, mesh).media
    promised = media_shapes(data)
    assert jax.tree.structure(found) == jax.tree.structure(promised)
    for leaf, shape in zip(jax.tree.leaves(found), jax.tree.leaves(promised), strict=True):
        assert (leaf.shape, leaf.dtype) == (shape.shape, shape.dtype)
        assert leaf.sharding == rows_only(batch_sharding(mesh, chosen.rules))
    assert found.images.patches.sharding.shard_shape(found.images.patches.shape) == (2, 64, 768)
    text = dataclasses.replace(chosen, data=DataConfig())
    assert abstract_batch(text, mesh).media is None
