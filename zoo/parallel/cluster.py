"""Which process this is, of how many, and where they meet: from options, or from what the launcher left behind.

    source       what it is read from
    options      --distributed.coordinator-address, --distributed.num-processes, --distributed.process-id
    JAX_*        JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID (in an Indexed Job or a JobSet of Kubernetes
                 JOB_COMPLETION_INDEX stands for the last one)
    TPU          TPU_WORKER_HOSTNAMES, TPU_WORKER_ID, MEGASCALE_* in the environment or in the VM's metadata
    Open MPI     OMPI_COMM_WORLD_*
    SLURM        SLURM_* of a job step (`srun`)
    SkyPilot     SKYPILOT_NODE_IPS, SKYPILOT_NODE_RANK, SKYPILOT_NUM_NODES

The first source that names several processes is used. JAX_COORDINATOR_ADDRESS alone replaces the address of the others.
"""

import importlib.util
import os
import re
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from zoo.errors import UserError

DEFAULT_PORT = 8482
FIRST_PORT, PORTS = 61440, 4094
"""Ports above those that Linux gives to outgoing connections; several jobs on one host get different ones."""


@dataclass(frozen=True)
class Cluster:
    """The place of this process among the processes of a run."""

    source: str
    """What said so."""
    num_processes: int
    process_id: int
    """0 .. num_processes - 1."""
    address: str | None
    """HOST:PORT of process 0; None if the source does not say."""
    local_device: int | None = None
    """The only local accelerator that is this process's own where several share a host; None = all of them."""


def find_cluster(
    address: str | None,
    num_processes: int | None,
    process_id: int | None,
    environ: Mapping[str, str] = os.environ,
    metadata: Callable[[str], str | None] | None = None,
) -> Cluster | None:
    """The place of this process, None if it is the only one.

    Args:
        address, num_processes, process_id: the three options; all of them, or none.
        environ: the environment.
        metadata: from the name of an attribute of this virtual machine to its value, None where there is none.

    Raises:
        UserError: half of the options or variables, numbers that contradict each other, or no address.
    """
    given = {"coordinator-address": address, "num-processes": num_processes, "process-id": process_id}
    missing = [f"--distributed.{name}" for name, value in given.items() if value is None]
    if len(missing) < 3:
        if missing:
            raise UserError(f"several processes: {' and '.join(missing)} missing (give all three options, or none)")
        assert num_processes is not None and process_id is not None
        return _checked(Cluster("options", num_processes, process_id, address))
    tpu = _tpu(environ, metadata or _metadata_of_tpu(environ))
    found = [_jax_variables(environ), tpu, _open_mpi(environ), _slurm(environ), _skypilot(environ)]
    several = [cluster for cluster in map(_checked, found) if cluster is not None]
    if not several:
        if environ.get("JAX_COORDINATOR_ADDRESS") and not any(found):
            raise UserError("JAX_COORDINATOR_ADDRESS is set, JAX_NUM_PROCESSES and JAX_PROCESS_ID are not")
        return None
    first = several[0]
    for other in several[1:]:
        # `mpirun` inside a SLURM job has a job step of its own, one task a host.
        nested = (first.source, other.source) == ("Open MPI", "SLURM")
        same = first.num_processes == other.num_processes
        if first.source == "JAX_* variables" and other.source == "TPU":
            same = same and first.process_id == other.process_id
        if not same and not nested:
            raise UserError(
                f"{first.source} say(s) process {first.process_id} of {first.num_processes}, {other.source} process "
                f"{other.process_id} of {other.num_processes}: give --distributed.coordinator-address, "
                "--distributed.num-processes and --distributed.process-id to decide"
            )
    chosen = replace(first, address=environ.get("JAX_COORDINATOR_ADDRESS") or first.address)
    if chosen.address is None:
        raise UserError(
            f"{chosen.source} does not say where process 0 runs: set JAX_COORDINATOR_ADDRESS=HOST:PORT everywhere"
        )
    return _checked(chosen)


def split_address(address: str) -> tuple[str, int]:
    """(host, port) of HOST:PORT, brackets of an IPv6 host removed. Raises `UserError` for anything else."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 2**16 - 1:
        raise UserError(f"the coordinator's address is {address!r}; it must be HOST:PORT, port 1 .. 65534")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _checked(cluster: Cluster | None) -> Cluster | None:
    """The cluster, None for a single process."""
    if cluster is None:
        return None
    if cluster.num_processes < 1 or not 0 <= cluster.process_id < cluster.num_processes:
        raise UserError(
            f"{cluster.source}: process {cluster.process_id} of {cluster.num_processes}; processes are numbered from 0 "
            "to one less than their number"
        )
    if cluster.address is not None:
        split_address(cluster.address)
    return cluster if cluster.num_processes > 1 else None


def _number(environ: Mapping[str, str], name: str) -> int:
    value = environ.get(name, "")
    if not re.fullmatch(r"-?\d{1,9}", value.strip()):
        raise UserError(f"the environment variable {name} is {value!r}; it must be a number")
    return int(value)


def _jax_variables(environ: Mapping[str, str]) -> Cluster | None:
    count, index = "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
    if count not in environ and index not in environ:
        if environ.get("JAX_COORDINATOR_ADDRESS") and "JOB_COMPLETION_INDEX" in environ:
            raise UserError("JAX_COORDINATOR_ADDRESS is set in an Indexed Job, JAX_NUM_PROCESSES (its pods) is not")
        return None
    if index not in environ:
        index = "JOB_COMPLETION_INDEX"
    missing = [name for name in (count, index) if name not in environ]
    if missing:
        raise UserError(f"{' and '.join({count, index} - {*missing})} is set, {' and '.join(missing)} is not")
    source = "Kubernetes" if index == "JOB_COMPLETION_INDEX" else "JAX_* variables"
    return Cluster(source, _number(environ, count), _number(environ, index), environ.get("JAX_COORDINATOR_ADDRESS"))


def _tpu(environ: Mapping[str, str], metadata: Callable[[str], str | None]) -> Cluster | None:
    """The workers of a slice (Google Kubernetes Engine: environment; a bare VM: metadata), and of all slices."""
    names = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES")
    if names and "TPU_WORKER_ID" in environ:
        workers, worker = names.split(","), _number(environ, "TPU_WORKER_ID")
    else:
        endpoints, number = metadata("worker-network-endpoints"), metadata("agent-worker-number")
        if not endpoints or number is None:
            return None
        # Each is a host name, or name:id:address.
        workers, worker = [entry.split(":")[-1] for entry in endpoints.split(",")], int(number)
    slices = dict(re.findall(r"^\s*(MEGASCALE_\w+)\s*:\s*'?([^'\n]*?)'?\s*$", metadata("tpu-env") or "", re.M))
    slices |= {name: value for name, value in environ.items() if name.startswith("MEGASCALE_")}
    count = _number(slices, "MEGASCALE_NUM_SLICES") if slices.get("MEGASCALE_NUM_SLICES") else 1
    index = _number(slices, "MEGASCALE_SLICE_ID") if slices.get("MEGASCALE_SLICE_ID") else 0
    if count > 1 and not slices.get("MEGASCALE_COORDINATOR_ADDRESS"):
        raise UserError(f"MEGASCALE_NUM_SLICES is {count}, MEGASCALE_COORDINATOR_ADDRESS is not set")
    host = (slices.get("MEGASCALE_COORDINATOR_ADDRESS") or workers[0]) if count > 1 else workers[0]
    host = host.strip().partition(":")[0]
    return Cluster("TPU", count * len(workers), index * len(workers) + worker, f"{host}:{DEFAULT_PORT}")


def _metadata_of_tpu(environ: Mapping[str, str]) -> Callable[[str], str | None]:
    """Asks the metadata server of a Google VM that has TPUs; on any other machine nothing is asked."""
    platforms = environ.get("JAX_PLATFORMS", "")
    has_tpu = any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*"))
    wanted = (not platforms or "tpu" in platforms) and "TPU_SKIP_MDS_QUERY" not in environ
    if not (wanted and has_tpu and importlib.util.find_spec("libtpu") is not None):
        return lambda _name: None
    server = environ.get("GCE_METADATA_IP", "metadata.google.internal")

    def ask(name: str) -> str | None:
        request = urllib.request.Request(
            f"http://{server}/computeMetadata/v1/instance/attributes/{name}", headers={"Metadata-Flavor": "Google"}
        )
        try:
            with urllib.request.urlopen(request, timeout=5) as reply:
                return reply.read().decode()
        except (OSError, urllib.error.URLError):
            return None

    return ask


def _open_mpi(environ: Mapping[str, str]) -> Cluster | None:
    if "OMPI_COMM_WORLD_SIZE" not in environ:
        return None
    count, process = _number(environ, "OMPI_COMM_WORLD_SIZE"), _number(environ, "OMPI_COMM_WORLD_RANK")
    here = _number(environ, "OMPI_COMM_WORLD_LOCAL_SIZE") if "OMPI_COMM_WORLD_LOCAL_SIZE" in environ else 1
    uri = environ.get("OMPI_MCA_orte_hnp_uri", "")  # of mpirun, before version 5
    launcher = re.search(r"tcp6?://\[?([^],:]+(?::[^],]*:[^],]*)?)", uri)
    job = environ.get("PMIX_NAMESPACE") or uri or environ.get("OMPI_MCA_ess_base_jobid", "")
    host = "127.0.0.1" if here == count else launcher and launcher[1]
    address = f"[{host}]:{_port(job)}" if host and ":" in host else f"{host}:{_port(job)}" if host else None
    local = _own_device(environ, "OMPI_COMM_WORLD_LOCAL_RANK") if here > 1 else None
    return Cluster("Open MPI", count, process, address, local)


def _slurm(environ: Mapping[str, str]) -> Cluster | None:
    if not {"SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID"} <= environ.keys():
        return None  # not a task of a job step; a batch script is no task
    count = _number(environ, "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS")
    step = f"{environ['SLURM_JOB_ID']}.{environ.get('SLURM_STEP_ID', '')}"
    tasks = re.findall(r"(\d+)(?:\(x\d+\))?", environ.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    local = _own_device(environ, "SLURM_LOCALID") if max(map(int, tasks)) > 1 else None
    address = f"{first_host(environ['SLURM_STEP_NODELIST'])}:{_port(step)}"
    return Cluster("SLURM", count, _number(environ, "SLURM_PROCID"), address, local)


def first_host(node_list: str) -> str:
    """The first host of a SLURM node list: n1 of `n1,n2`, n01 of `n[01-04,7],m2`, r1n3 of `r[1-2]n[3-4]`."""
    shortened = re.sub(r"\[([^],-]*)[^]]*\]", r"\1", node_list)
    return shortened.partition(",")[0]


def _skypilot(environ: Mapping[str, str]) -> Cluster | None:
    if "SKYPILOT_NODE_RANK" not in environ:
        return None
    hosts = environ.get("SKYPILOT_NODE_IPS", "").split()
    count = _number(environ, "SKYPILOT_NUM_NODES") if "SKYPILOT_NUM_NODES" in environ else len(hosts)
    if count != len(hosts):
        raise UserError(f"SKYPILOT_NUM_NODES is {count}, SKYPILOT_NODE_IPS names {len(hosts)} hosts")
    address = f"{hosts[0]}:{_port(environ.get('SKYPILOT_TASK_ID', ''))}" if hosts else None
    return Cluster("SkyPilot", count, _number(environ, "SKYPILOT_NODE_RANK"), address)


def _own_device(environ: Mapping[str, str], rank: str) -> int | None:
    """The accelerator of one of several processes on a host, None where the launcher shows it only its own one."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    return None if visible is not None and "," not in visible else _number(environ, rank)


def _port(job: str) -> int:
    return FIRST_PORT + zlib.crc32(job.encode()) % PORTS
