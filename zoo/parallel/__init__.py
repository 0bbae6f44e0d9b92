"""Mesh, sharding rules and the placement of parameters, batches and activations. Models never mention a mesh axis."""

from zoo.parallel.mesh import MeshConfig as MeshConfig
from zoo.parallel.mesh import make_mesh as make_mesh
from zoo.parallel.mesh import mesh_sizes as mesh_sizes
from zoo.parallel.per_shard import per_shard as per_shard
from zoo.parallel.sharding import ShardingRules as ShardingRules
from zoo.parallel.sharding import activation_sharding as activation_sharding
from zoo.parallel.sharding import axis_divisions as axis_divisions
from zoo.parallel.sharding import batch_sharding as batch_sharding
from zoo.parallel.sharding import constrain as constrain
from zoo.parallel.sharding import init_sharded as init_sharded
from zoo.parallel.sharding import state_shardings as state_shardings
