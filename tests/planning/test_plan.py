"""`python -m zoo.plan`: topologies, wrong input, reports, the search; CPU programs stand in for those of chips."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import pytest

import zoo.plan
from zoo.ahead_of_time import tpu
from zoo.ahead_of_time.hlo import parse_program
from zoo.ahead_of_time.interconnect import Links, Network
from zoo.ahead_of_time.kernel_calls import KernelCall
from zoo.ahead_of_time.schedule import KernelTime, Machine, Timeline, follow
from zoo.errors import UserError
from zoo.parallel import MeshConfig, activation_sharding, make_mesh
from zoo.parallel.compiler_options import compiler_options
from zoo.planning.estimate import work
from zoo.planning.kernels import _from_reading
from zoo.planning.program import memory_by_kind
from zoo.planning.search import _model, candidates, meshes, shortlist
from zoo.planning.table import table
from zoo.planning.topology import Topology, open_topology
from zoo.recipes import recipe
from zoo.recipes.program import training_program
from zoo.training.mfu import attention_pairs

needs_libtpu = pytest.mark.skipif(
    not tpu.has_libtpu(), reason="libtpu is not installed (it comes with the extra `tpu`)"
)


def tiny(layers: int = 4, *, scan: bool = True, batch: int = 8, remat: str = "full", mesh: MeshConfig = MeshConfig()):
    """gemma2-nano with small widths: 4 layers are two units of a local and a global one."""
    nano = recipe("gemma2-nano")
    model = dataclasses.replace(
        nano.model,
        num_layers=layers,
        embed_dim=32,
        hidden_dim=64,
        vocab_size=128,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        sliding_window=16,
    )
    return dataclasses.replace(
        nano,
        needs_data=False,
        model=model,
        mesh=mesh,
        execution=dataclasses.replace(
            nano.execution, scan_layers=scan, remat_policy=remat, attention_implementation="xla"
        ),
        data=dataclasses.replace(nano.data, vocab_size=128, batch_size=batch, sequence_length=64),
    )


def cpu_step(changed) -> tuple[Timeline, dict[str, float]]:
    """The recipe's training step compiled for the virtual CPU devices: (timeline, memory by kind)."""
    mesh = make_mesh(changed.mesh)
    program = training_program(changed, mesh)
    with activation_sharding(mesh, changed.rules):
        compiled = program.step.lower(program.state, program.batch).compile()
    parts = {"parameters": program.state.params, "optimizer state": program.state.opt_state, "batch": program.batch}
    network = Network([SimpleNamespace(slice_index=0)] * mesh.size, Links(1e9, 1e9, 0.0, None))
    line = follow(
        parse_program(compiled.as_text()), mesh.shape, Machine(1e9, 1e9), network, lambda *_: KernelTime(0, 0, "")
    )
    return line, memory_by_kind(parts, compiled.memory_analysis())


def traffic(line: Timeline) -> dict[tuple[str, ...], float]:
    """Bytes by mesh axes that a device sends for parameters, activations and gradients, whatever collectives do it."""
    found: dict[tuple[str, ...], float] = {}
    for one in line.collectives:
        if one.bytes > 1024:
            found[one.axes] = found.get(one.axes, 0.0) + one.times * one.wire_bytes
    return found


def test_scanned_layers_have_the_flops_and_the_traffic_of_unrolled_ones_and_twice_the_layers_twice_as_much():
    mesh = MeshConfig(fsdp=4, tensor=2)
    lines = {}
    for layers, scan in ((2, True), (2, False), (4, True)):
        # Recomputed layers that are unrolled may share products with the forward pass; those of a scan cannot.
        changed = tiny(layers, scan=scan, mesh=mesh, remat="none")
        local = dataclasses.replace(changed.model, layer_types=("local",))
        lines[layers, scan], _ = cpu_step(dataclasses.replace(changed, model=local))
    scanned, unrolled = lines[2, True], lines[2, False]
    assert scanned.matrix_flops == unrolled.matrix_flops
    assert traffic(scanned).keys() == traffic(unrolled).keys()
    for axes, size in traffic(unrolled).items():
        assert traffic(scanned)[axes] == pytest.approx(size, rel=0.02), axes
    # Twice the layers take twice the products, but for those of the output head: 3 of D x V per token.
    head = 3 * 2 * 32 * 128 * 8 * 64 / 8
    assert lines[4, True].matrix_flops - head == 2 * (scanned.matrix_flops - head)


def test_useful_flops_are_those_of_the_program_when_nothing_is_recomputed_or_masked():
    changed = tiny(remat="none", mesh=MeshConfig(fsdp=8))
    line, memory = cpu_step(changed)
    tokens, useful = work(changed, "train", 8)
    assert tokens == 8 * 64
    model = changed.model
    pairs = sum(attention_pairs(64, model.window(layer)) for layer in range(4))
    attention = 3 * 4 * model.num_heads * model.head_dim * pairs  # of one sequence
    # The blocked path on CPU computes masked scores, too, and its backward pass the scores once more.
    assert useful - attention < line.matrix_flops < useful + 4 * attention
    norms = (4 * 4 + 1) * 32  # kept whole
    assert memory["parameters"] == 4 * ((model.num_parameters() - norms) / 8 + norms)
    assert memory["optimizer state"] == pytest.approx(2 * memory["parameters"], rel=0.01)
    assert memory["batch"] == 5 * 4 * 64
    assert memory["temporaries"] > 0 and memory["other arguments"] < 1000


def test_decode_attends_to_the_window_or_the_context_and_prefill_projects_one_token_to_logits():
    changed = tiny()
    model = changed.model
    tokens, flops = work(changed, "decode", 1)
    assert tokens == 16 * 8
    dense = 2 * (model.num_parameters() - 4 * 4 * model.embed_dim - model.embed_dim)
    attention = 4 * model.num_heads * model.head_dim * 2 * (16 + 64)
    assert flops == pytest.approx((dense + attention) * 16 * 8)
    head = 2 * model.embed_dim * model.vocab_size
    assert work(changed, "prefill", 1)[1] == pytest.approx(8 * (64 * (model.flops_per_token(64) - head) + head))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("gemma2-2b", "name the chips"),
        ("--topology v5e:2x2", "name a recipe"),
        ("gemma2-3b --topology v5e:2x2", "did you mean 'gemma2-[29]b'"),
        ("gemma2-2b --topology v5x:2x2", "unknown topology.*did you mean 'v5[ep]'"),
        ("gemma2-2b --topology v5e", "no shape"),
        ("gemma2-2b --topology v5e:2x2x1", "two dimensions"),
        ("gemma2-2b --topology v5p:4x4", "three dimensions"),
        ("gemma2-2b --topology v5e:2x2 --slices 0", "--slices needs a whole number"),
        ("gemma2-2b --topology v5e:2x2 --program sing", "unknown --program"),
        ("gemma2-2b --topology v5e:2x2 --mesh fsdb=4", "did you mean 'fsdp'"),
        ("gemma2-2b --topology v5e:2x2 --mesh fsdp=four", "whole number"),
        ("gemma2-2b --topology", "--topology needs a value"),
        ("gemma2-2b --topology v5e:2x2 --topology v5e:2x2", "given twice"),
        ("gemma2-2b --topology v5e:2x2 --search --mesh fsdp=4", "leave out --mesh"),
        ("gemma2-2b --topology v5e:2x2 --search --program decode", "leave out --program"),
        ("gemma2-2b --topology v5e:2x2 --program decode --peft.method lora", "a model without an adapter"),
        ("gemma2-2b --topology v5e:2x2 --peft.method sparse --peft.mask-from run", "its mask is read off"),
        ("gemma2-2b --topology v5e:2x2 --learning-rate 1", "did you mean '--optimizer.learning-rate'"),
        ("gemma2-2b --topology v5e:2x2 --options yes", "NAME=VALUE"),
        ("gemma2-2b --topology v5e:2x2 --json no/such/folder/plan.json", "no/such/folder does not exist"),
    ],
)
def test_wrong_arguments_are_named_in_one_line(arguments, message):
    with pytest.raises(UserError, match=message):
        zoo.plan.main(arguments.split())


@needs_libtpu
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--topology v5e:2x2 --mesh fsdp=3", "takes 3 devices, there are 4"),
        ("--topology v5e:2x2 --data.batch-size 6", "data.batch_size=6 is not divisible"),
        ("--topology v5e:2x2 --mesh tensor=4 --model.num-heads 6 --model.num-kv-heads 3", "not divisible by 4"),
        ("--topology v5p:3x3x5", "v5p:3x3x5"),
        ("--topology v5e:2x2 --mesh context=4 --peft.method prefix", "peft.method=prefix is not supported"),
        ("--topology v5e:2x2 --slices 2", "replica must be a multiple"),
    ],
)
def test_sizes_that_do_not_fit_each_other_are_named_in_one_line(arguments, message):
    with pytest.raises(UserError, match=message):
        zoo.plan.main(["gemma2-nano", *arguments.split()])


def test_without_libtpu_the_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(tpu, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install libtpu"):
        open_topology("v5e:2x2")


@needs_libtpu
@pytest.mark.parametrize(
    ("name", "slices", "chips", "devices"), [("v4:2x2x4", 1, 16, 16), ("V5E:4x4", 2, 32, 32), ("tpu7x:2x2x1", 1, 4, 8)]
)
def test_a_topology_has_the_chips_that_its_name_says(name, slices, chips, devices):
    found = open_topology(name, slices)
    assert (found.chips, len(found.devices)) == (chips, devices)
    assert found.flops * devices == pytest.approx(found.target.flops * chips)
    assert {getattr(device, "slice_index", 0) for device in found.devices} == set(range(slices))


def described(devices: int, slices: int = 1) -> Topology:
    return Topology("v5p:test", tpu.V5P, slices, [None] * devices, 1)


def test_a_search_tries_only_meshes_that_divide_and_prefers_what_fits():
    changed = dataclasses.replace(
        recipe("gemma2-27b"), data=dataclasses.replace(recipe("gemma2-27b").data, batch_size=768)
    )
    found = list(meshes(changed, 6144, 1))
    assert MeshConfig(replica=1, data=1, fsdp=768, context=1, expert=1, tensor=8) in found
    for mesh in found:
        sizes = dataclasses.asdict(mesh)
        assert mesh.replica * mesh.data * mesh.fsdp * mesh.context * mesh.tensor == 6144, sizes
        assert 4608 % (mesh.fsdp * mesh.context) == 0 and 768 % (mesh.data * mesh.fsdp) == 0, sizes
    assert all(mesh.replica == 2 for mesh in meshes(changed, 512, 2))
    ranked = candidates(changed, described(6144))
    assert ranked == sorted(ranked, key=lambda one: one.seconds)
    assert all(one.bytes <= tpu.V5P.hbm_bytes for one in ranked)
    few = shortlist(ranked, 6)
    assert len(few) == 6 and few[0] == ranked[0]
    assert max(sum(other.recipe.mesh == one.recipe.mesh for other in few) for one in few) == 2
    # On one chip nothing fits: the smallest come first.
    alone = candidates(changed, described(1))
    assert alone[0].bytes == min(one.bytes for one in alone) > tpu.V5P.hbm_bytes


def test_a_kernel_whose_grid_only_the_run_knows_takes_the_tiles_of_its_declared_products():
    """The readings of a grouped product on v4, 256 x 2048 x 1024 numbers a tile, of which the matrix units need 8,192
    bundles of each of two cores."""
    reading = {"trips": None, "one_core": False, "matrix_units": 4, "overhead": 227, "row": 1649}
    reading["tiles"] = [[6586, 25852], [8059, 31625]]
    topology, call = Topology("v4:test", tpu.V4, 1, [None], 1), KernelCall("grouped_matmul", "", (), ())
    declared = 2 * 10_240 * 8192 * 6144
    found = [_from_reading(tpu.V4, topology, call, reading, times * declared) for times in (1, 2)]
    assert [one.flops for one in found] == [declared, 2 * declared]
    assert found[1].seconds == pytest.approx(2 * found[0].seconds)
    assert declared / tpu.V4.flops < found[0].seconds < 1.1 * declared / tpu.V4.flops


def test_a_search_divides_experts_which_takes_memory_and_traffic_from_a_sparse_model():
    sparse = recipe("gemini-pro-like-v4-4096")
    found = {(mesh.expert, mesh.tensor): mesh for mesh in meshes(sparse, 4096, 1)}
    assert {expert for expert, _ in found} == {1, 2, 4, 8, 16, 32}
    for mesh in found.values():
        shares = mesh.fsdp * mesh.context * mesh.expert
        assert mesh.data * shares * mesh.tensor == 4096 and 8192 % shares == 0
        assert sparse.data.batch_size % (mesh.data * mesh.fsdp * mesh.expert) == 0
    together, apart = (dataclasses.replace(sparse, mesh=found[experts, 2]) for experts in (1, 32))
    (more_bytes, more_seconds), (fewer_bytes, fewer_seconds) = (
        _model(one, described(4096)) for one in (together, apart)
    )
    # Of a sparse layer, one device gathers all experts or one of them.
    one_layer = 31 / 32 * 32 * 3 * 8192 * 12288 / 2 / 2
    assert more_bytes - fewer_bytes == pytest.approx(12 * one_layer, rel=0.01)
    assert fewer_seconds < more_seconds


def test_the_compiler_options_of_a_platform_are_one_set():
    assert compiler_options("tpu") and not compiler_options("cpu")
    assert compiler_options("tpu", "TPU v5")["xla_tpu_scoped_vmem_limit_kib"] == str(48 * 1024)
    assert zoo.plan.parse_options(None, "tpu") is None
    assert zoo.plan.parse_options("a=true,b=3", "tpu") == {"a": True, "b": "3"}
    off = {**dict.fromkeys(compiler_options("tpu"), False), "xla_tpu_scoped_vmem_limit_kib": "16384"}
    assert zoo.plan.parse_options("none,a=1", "tpu") == {**off, "a": "1"}


def test_numbers_of_a_table_stand_to_the_right():
    assert table(("name", "GB"), [("a", "1.5"), ("bc", "12.25")]) == ["name      GB", "a        1.5", "bc     12.25"]


@needs_libtpu
@pytest.mark.slow
def test_a_plan_of_a_described_slice_reports_every_figure(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = tmp_path / "plan.json"
    sizes = "--model.embed-dim 256 --model.head-dim 128 --model.num-kv-heads 4 --data.sequence-length 256"
    mesh = "--mesh fsdp=2,tensor=2 --execution.compute-dtype bfloat16 --execution.scan-layers"
    zoo.plan.main(f"gemma2-nano --topology v5e:2x2 {sizes} {mesh} --json {file}".split())
    said, found = capsys.readouterr().out, json.loads(file.read_text())
    for part in ("memory per device", "FLOPs per device", "collective", "roofline", "schedule", "MFU", "assumptions"):
        assert part in said
    assert found["fits"] and 0 < found["schedule"]["mfu"] < 1 and found["roofline"]["mfu"] < 1
    assert found["schedule"]["seconds"] > found["roofline"]["seconds"]
    assert found["executed_flops"] > 0.9 * found["useful_flops"]
    assert {axis for group in found["collectives"] for axis in group["axes"]} == {"fsdp", "tensor"}
    assert all(kernel["source"].startswith("its b") for kernel in found["kernels"]) and found["kernels"]
    assert found["memory_total"] == pytest.approx(sum(found["memory"].values()))


@needs_libtpu
@pytest.mark.slow
def test_on_a_tpu_scanned_layers_take_the_time_and_traffic_of_unrolled_ones():
    from zoo.planning.estimate import make_plan
    from zoo.planning.program import compile_recipe

    topology = open_topology("v5e:2x2")
    plans = {}
    for scan in (True, False):
        changed = tiny(scan=scan, batch=4, mesh=MeshConfig(fsdp=2, tensor=2))
        model = dataclasses.replace(changed.model, embed_dim=256, hidden_dim=1024, num_kv_heads=4, head_dim=128)
        execution = dataclasses.replace(changed.execution, compute_dtype="bfloat16")
        changed = dataclasses.replace(changed, model=model, execution=execution)
        plans[scan] = make_plan(changed, topology, compile_recipe(changed, topology), read_kernels=False)
    scanned, unrolled = plans[True], plans[False]
    assert scanned.executed_flops == unrolled.executed_flops
    assert scanned.schedule.seconds == pytest.approx(unrolled.schedule.seconds, rel=0.1)
    sent = [sum(group["wire_bytes"] for group in plan.collectives) for plan in (scanned, unrolled)]
    assert sent[0] == pytest.approx(sent[1], rel=0.25)  # an all-reduce may be written as a reduce-scatter


@needs_libtpu
@pytest.mark.slow
def test_decode_of_a_described_slice_has_a_plan(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    sizes = "--model.embed-dim 256 --model.head-dim 128 --model.num-kv-heads 4 --data.sequence-length 256"
    zoo.plan.main(f"gemma2-nano --topology v5e:2x2 --program decode --mesh fsdp=2,tensor=2 {sizes}".split())
    said = capsys.readouterr().out
    assert "cache" in said and "16 passes" in said
    assert jax.default_backend() == "cpu"
