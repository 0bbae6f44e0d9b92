"""The meshes, micro-batches and remat policies that make sense for a recipe, ranked by what their compiled steps say.

An analytic model of memory and communication sorts the candidates; the best few of them are compiled, and the compiled
ones that fit are ranked by the schedule estimate. A search that is interrupted goes on: compiled programs are kept.
"""

import dataclasses
import itertools
import math
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from zoo.ahead_of_time.interconnect import links_of
from zoo.errors import UserError
from zoo.nn import Execution
from zoo.parallel import MeshConfig
from zoo.planning.estimate import Plan, make_plan, work
from zoo.planning.model import feed_forward_width, one_decoder
from zoo.planning.program import compile_recipe
from zoo.planning.table import table
from zoo.planning.topology import Topology
from zoo.recipes import Recipe

MOST_TENSOR, MOST_CONTEXT, MOST_ACCUMULATION = 16, 16, 8
MOST_PER_MESH = 2
MOST_IN_A_ROW = 16
"""Devices that share experts, along one dimension of a slice."""
COMPUTE_EFFICIENCY = 0.65
"""Share of the peak in the analytic model; only the order of the candidates depends on it."""


@dataclass(frozen=True)
class Candidate:
    """One way to run a recipe, and what the analytic model says of it."""

    recipe: Recipe
    bytes: float
    """Memory of a device."""
    seconds: float
    """Of a step."""

    @property
    def label(self) -> str:
        """Mesh, micro-batches, policy."""
        sizes = dataclasses.asdict(self.recipe.mesh)
        mesh = ",".join(f"{name}={size}" for name, size in sizes.items() if size > 1) or "one device"
        return f"{mesh} accumulation {self.recipe.optimizer.accumulation_steps} {self.recipe.execution.remat_policy}"


def candidates(recipe: Recipe, topology: Topology) -> list[Candidate]:
    """All that divide evenly and fit by the analytic model, the fastest first; if none fits, the smallest first."""
    found = []
    for mesh in meshes(recipe, len(topology.devices), topology.slices):
        shards = mesh.replica * mesh.data * mesh.fsdp * mesh.expert
        for steps in _powers_of_two(MOST_ACCUMULATION):
            if recipe.data.batch_size % (shards * steps):
                continue
            for policy in typing.get_args(typing.get_type_hints(Execution)["remat_policy"]):
                variant = dataclasses.replace(
                    recipe,
                    mesh=mesh,
                    optimizer=dataclasses.replace(recipe.optimizer, accumulation_steps=steps),
                    execution=dataclasses.replace(recipe.execution, remat_policy=policy),
                )
                found.append(Candidate(variant, *_model(variant, topology)))
    fitting = [candidate for candidate in found if candidate.bytes <= topology.hbm_bytes]
    if fitting:
        return sorted(fitting, key=lambda candidate: candidate.seconds)
    return sorted(found, key=lambda candidate: candidate.bytes)


def shortlist(ranked: list[Candidate], limit: int) -> list[Candidate]:
    """The first of them, of every mesh at most `MOST_PER_MESH`: the model tells meshes apart better than policies."""
    chosen: list[Candidate] = []
    for candidate in ranked:
        same = [other for other in chosen if other.recipe.mesh == candidate.recipe.mesh]
        if len(chosen) < limit and len(same) < MOST_PER_MESH:
            chosen.append(candidate)
    return chosen


def meshes(recipe: Recipe, devices: int, slices: int) -> Iterator[MeshConfig]:
    """Meshes whose axes divide the widths, the tokens, the experts and the batch. Parameters are divided as far as the
    width allows, what is left are copies (data); slices are copies (replica)."""
    model, data = one_decoder(recipe.sequence_model), recipe.data
    per_slice = devices // slices
    for tensor in _powers_of_two(MOST_TENSOR):
        if (
            model.num_heads % tensor
            or feed_forward_width(model) % tensor
            or model.vocab_size % tensor
            or per_slice % tensor
        ):
            continue
        for context, expert in itertools.product(_powers_of_two(MOST_CONTEXT), _expert_sizes(model)):
            rest, left = divmod(per_slice // tensor, context * expert)
            if left or data.sequence_length % (128 * context) and context > 1:
                continue
            shares = context * expert
            fsdp = math.gcd(rest, model.embed_dim // shares) if model.embed_dim % shares == 0 else 0
            if fsdp == 0 or data.batch_size % (rest * expert * slices):
                continue
            copies = rest // fsdp
            yield MeshConfig(replica=slices, data=copies, fsdp=fsdp, context=context, expert=expert, tensor=tensor)


def _expert_sizes(model: Any) -> list[int]:
    """Devices that can share the experts of a layer."""
    experts = getattr(model, "experts", None)
    if experts is None:
        return [1]
    return [size for size in _powers_of_two(experts.num_experts) if experts.num_experts % size == 0]


def _model(recipe: Recipe, topology: Topology) -> tuple[float, float]:
    """(bytes, seconds) of a device: parameters, moments and gradients, kept activations, gathered layers and embedding;
    matrix products, parameters gathered and gradients scattered, activations added within a tensor group, tokens
    exchanged between experts."""
    mesh, model, links = recipe.mesh, one_decoder(recipe.sequence_model), links_of(topology.target)
    steps, policy = recipe.optimizer.accumulation_steps, recipe.execution.remat_policy
    shards = mesh.replica * mesh.data * mesh.fsdp * mesh.expert
    divided = mesh.fsdp * mesh.context * mesh.expert * mesh.tensor
    tokens = recipe.data.batch_size * recipe.data.sequence_length / (shards * steps * mesh.context)
    parameters = model.num_parameters()
    inputs = 2 * tokens * model.embed_dim
    widths = (2 * feed_forward_width(model) + (model.num_heads + 2 * model.num_kv_heads) * model.head_dim) / mesh.tensor
    per_layer = {"full": inputs, "none": 8 * inputs + 8 * tokens * widths}.get(policy, 3 * inputs + 2 * tokens * widths)
    # Of the experts a device gathers its own.
    experts: Any = getattr(model, "experts", None)
    sparse = 0 if experts is None else model.num_sparse_layers * experts.num_parameters(model.embed_dim)
    whole = parameters - sparse + sparse / mesh.expert
    layer = whole / model.num_layers / mesh.tensor
    size = 16 * parameters / divided + model.num_layers * per_layer + 12 * layer + 10 * inputs
    size += 8 * tokens * widths
    # The embedding, gathered, and its gradient in float32.
    size += 6 * model.vocab_size * model.embed_dim / mesh.tensor
    _, useful = work(recipe, "train", len(topology.devices))
    repeats = 4 / 3 if policy == "full" else 1.0
    compute = useful * repeats / (COMPUTE_EFFICIENCY * topology.flops)
    rate = 4 * links.link
    gathered = 2 * whole / mesh.tensor * (steps * (3 if policy == "full" else 2) + steps)
    shared = gathered / rate if divided > mesh.tensor else 0.0
    if mesh.data > 1:
        shared += 4 * parameters / divided / rate
    if mesh.replica > 1:
        shared += 8 * parameters / divided / links.slow
    passes = 6 if policy == "full" else 4
    group = passes * model.num_layers * steps * inputs * 2 * (mesh.tensor - 1) / mesh.tensor / (2 * links.link)
    ring = model.num_layers * steps * 3 * 4 * tokens * model.num_kv_heads * model.head_dim / mesh.tensor / links.link
    exchange = 0.0
    if mesh.expert > 1:
        # There and back, forward and backward; over a line of 4 devices or a ring of 8, see `Network.seconds`.
        sent = 4 * model.num_sparse_layers * steps * experts.experts_per_token * inputs
        exchange = sent * max(1, min(mesh.expert, MOST_IN_A_ROW) / 8) / links.link
    # Half of the parameters' traffic is taken to be hidden.
    return size, compute + shared / 2 + group + exchange + (ring if mesh.context > 1 else 0.0)


@dataclass(frozen=True)
class Found:
    """A compiled candidate."""

    candidate: Candidate
    plan: Plan | None
    """None where the compiler refused."""
    refused: str = ""
    """Why."""

    @property
    def seconds(self) -> float:
        """By the schedule estimate, else the roofline; infinite for what does not fit."""
        if self.plan is None or not self.plan.fits:
            return math.inf
        return (self.plan.schedule or self.plan.roofline).seconds


def search(recipe: Recipe, topology: Topology, limit: int, options: dict[str, Any] | None = None) -> list[Found]:
    """Compiles the best candidates and ranks them. Raises `UserError` where nothing divides evenly."""
    best = shortlist(candidates(recipe, topology), limit)
    if not best:
        raise UserError(
            f"no mesh of {len(topology.devices)} devices divides data.batch_size={recipe.data.batch_size} and the "
            f"model's widths; choose a batch with more common factors with the number of devices"
        )
    found = []
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("compiling", total=len(best))
        for candidate in best:
            progress.update(task, description=candidate.label)
            try:
                compiled = compile_recipe(candidate.recipe, topology, "train", options, keep=True)
                found.append(Found(candidate, make_plan(candidate.recipe, topology, compiled)))
            except UserError as error:
                found.append(Found(candidate, None, str(error)))
            progress.advance(task)
    return sorted(found, key=lambda one: one.seconds)


def describe_search(found: list[Found], considered: int) -> str:
    """A table, the best first."""
    rows = []
    for one in found:
        plan = one.plan
        if plan is None:
            rows.append((one.candidate.label, "-", "-", "-", "-", one.refused))
            continue
        estimate = plan.schedule or plan.roofline
        exposed = estimate.parts.get("exposed collectives", 0.0)
        rows.append(
            (
                one.candidate.label,
                f"{estimate.seconds:.4f}",
                f"{estimate.tokens_per_second:,.0f}",
                f"{estimate.mfu:.1%}",
                f"{plan.memory_total / 1e9:.2f}",
                f"{exposed:.3f} s of collectives exposed" if plan.fits else "does not fit",
            )
        )
    heads = ("mesh, micro-batches, remat", "s / step", "tokens/s", "MFU", "GB", "")
    return "\n".join(
        [f"compiled {len(found)} of {considered} candidates that fit by the analytic model:", *table(heads, rows)]
    )


def _powers_of_two(most: int) -> list[int]:
    return [2**power for power in range(most.bit_length()) if 2**power <= most]
