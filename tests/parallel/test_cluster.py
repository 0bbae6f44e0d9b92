"""Which process of how many: from the options, or from what each launcher sets."""

import pytest

from zoo.errors import UserError
from zoo.parallel.cluster import DEFAULT_PORT, FIRST_PORT, Cluster, find_cluster, first_host, split_address

SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "n[03-04,9],m1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "1(x4)",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}
SKYPILOT = {"SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "10.0.0.5\n10.0.0.6", "SKYPILOT_NUM_NODES": "2"}
KUBERNETES = {"JAX_COORDINATOR_ADDRESS": "run-0.run:8482", "JAX_NUM_PROCESSES": "4", "JOB_COMPLETION_INDEX": "3"}
GKE_TPU = {"TPU_WORKER_ID": "1", "TPU_WORKER_HOSTNAMES": "t-0.t,t-1.t,t-2.t,t-3.t"}
TWO_SLICES = {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1", "MEGASCALE_COORDINATOR_ADDRESS": "s0-w0:8080"}


def find(environ, metadata=None, **options):
    options = {"address": None, "num_processes": None, "process_id": None} | options
    return find_cluster(**options, environ=environ, metadata=(metadata or {}).get)


@pytest.mark.parametrize(
    ("environ", "source", "count", "index"),
    [
        (SLURM, "SLURM", 4, 2),
        (OPEN_MPI, "Open MPI", 4, 3),
        (SKYPILOT, "SkyPilot", 2, 1),
        (KUBERNETES, "Kubernetes", 4, 3),
        ({**KUBERNETES, "JAX_PROCESS_ID": "1"}, "JAX_* variables", 4, 1),
        (GKE_TPU, "TPU", 4, 1),
        (GKE_TPU | TWO_SLICES, "TPU", 8, 5),
        (OPEN_MPI | SLURM | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}, "Open MPI", 4, 3),
    ],
)
def test_launchers_are_recognised(environ, source, count, index):
    found = find(environ)
    assert (found.source, found.num_processes, found.process_id) == (source, count, index)


def test_every_process_of_a_launcher_finds_the_same_address():
    for environ, name, host in [
        (SLURM, "SLURM_PROCID", "n03"),
        (OPEN_MPI, "OMPI_COMM_WORLD_RANK", "10.96.0.1"),
        (SKYPILOT, "SKYPILOT_NODE_RANK", "10.0.0.5"),
        (GKE_TPU, "TPU_WORKER_ID", "t-0.t"),
    ]:
        [address] = {find(environ | {name: str(rank)}).address for rank in range(2)}
        found, port = split_address(address)
        assert found == host and (port == DEFAULT_PORT or port >= FIRST_PORT)


def test_a_tpu_machine_is_asked_for_its_workers():
    metadata = {
        "worker-network-endpoints": "unknown:unknown:10.1.0.2,unknown:unknown:10.1.0.3",
        "agent-worker-number": "1",
        "tpu-env": "ZONE: 'z'\nMEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\n"
        "MEGASCALE_COORDINATOR_ADDRESS: '10.0.0.1'\n",
    }
    assert find({}, metadata) == Cluster("TPU", 4, 3, f"10.0.0.1:{DEFAULT_PORT}")
    assert find({}, metadata | {"tpu-env": ""}) == Cluster("TPU", 2, 1, f"10.1.0.2:{DEFAULT_PORT}")


@pytest.mark.parametrize(
    "environ",
    [
        {},
        SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"},  # a batch script, no task of a step
        {"SKYPILOT_NODE_RANK": "0", "SKYPILOT_NODE_IPS": "10.0.0.5", "SKYPILOT_NUM_NODES": "1"},
        {"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"},
        {"JOB_COMPLETION_INDEX": "3"},  # one of many runs that know nothing of each other
    ],
)
def test_a_single_process_is_left_alone(environ):
    assert find(environ) is None


def test_the_options_go_before_the_environment():
    found = find(SLURM, address="h:1234", num_processes=2, process_id=1)
    assert found == Cluster("options", 2, 1, "h:1234")
    assert find(SLURM, address="h:1234", num_processes=1, process_id=0) is None


def test_the_coordinators_address_alone_replaces_that_of_a_launcher():
    assert find(SLURM | {"JAX_COORDINATOR_ADDRESS": "h:1234"}).address == "h:1234"


@pytest.mark.parametrize(
    ("visible", "device"), [(None, 1), ("0,1,2,3", 1), ("2", None)], ids=["all", "several", "its own"]
)
def test_processes_that_share_a_host_take_one_device_each(visible, device):
    environ = SLURM | {"SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}
    assert find(environ | ({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})).local_device == device
    assert find(SLURM).local_device is None


@pytest.mark.parametrize(
    ("environ", "options", "message"),
    [
        ({}, {"address": "h:1"}, "--distributed.num-processes and --distributed.process-id missing"),
        ({}, {"num_processes": 2, "process_id": 0}, "--distributed.coordinator-address missing"),
        ({}, {"address": "h:1", "num_processes": 2, "process_id": 2}, "process 2 of 2; processes are numbered from 0"),
        ({}, {"address": "h", "num_processes": 2, "process_id": 0}, "address is 'h'; it must be HOST:PORT"),
        ({"JAX_COORDINATOR_ADDRESS": "h:1"}, {}, "JAX_NUM_PROCESSES and JAX_PROCESS_ID are not"),
        ({"JAX_NUM_PROCESSES": "2"}, {}, "JAX_NUM_PROCESSES is set, JOB_COMPLETION_INDEX is not"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}, {}, "does not say where process 0 runs"),
        (KUBERNETES | {"JAX_NUM_PROCESSES": "some"}, {}, "JAX_NUM_PROCESSES is 'some'; it must be a number"),
        (KUBERNETES | SKYPILOT, {}, "Kubernetes say.s. process 3 of 4, SkyPilot process 1 of 2: give --distributed"),
        (SKYPILOT | {"SKYPILOT_NUM_NODES": "3"}, {}, "SKYPILOT_NUM_NODES is 3, SKYPILOT_NODE_IPS names 2 hosts"),
        (GKE_TPU | {"MEGASCALE_NUM_SLICES": "2"}, {}, "MEGASCALE_COORDINATOR_ADDRESS is not set"),
        (GKE_TPU | {"TPU_WORKER_ID": "7"}, {}, "TPU: process 7 of 4"),
    ],
)
def test_half_of_it_and_contradictions_are_named(environ, options, message):
    with pytest.raises(UserError, match=message):
        find(environ, **options)


def test_the_first_host_of_a_node_list():
    lists = {"n1": "n1", "n1,n2": "n1", "n[01-04,7],m2": "n01", "n[7,9]": "n7", "r[1-2]n[3-4]": "r1n3"}
    assert {text: first_host(text) for text in lists} == lists
