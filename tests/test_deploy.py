"""deploy/: manifests that their engines accept, which read the commands' exit codes right, and scripts that do.

The Kubernetes part is checked by the models that Kubeflow generates from the published schemas of Kubernetes and
JobSet. SkyPilot's schema comes only with all of SkyPilot: the keys below were taken from version 0.14.1 by hand.
"""

import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from zoo.parallel.cluster import find_cluster
from zoo.parallel.mesh import mesh_sizes
from zoo.recipes import recipe
from zoo.recipes.command_line import parse_recipe

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
MANIFESTS = ("jobset-tpu.yaml", "jobset-gpu.yaml")
CHIPS = {"jobset-tpu.yaml": ("google.com/tpu", 2 * 16 * 16), "jobset-gpu.yaml": ("nvidia.com/gpu", 2 * 8)}


def documents(name: str) -> dict[str, dict]:
    """The objects of a manifest by kind."""
    return {document["kind"]: document for document in yaml.safe_load_all((DEPLOY / name).read_text())}


def replicated_job(name: str) -> dict:
    (job,) = documents(name)["JobSet"]["spec"]["replicatedJobs"]
    return job


def container(name: str) -> dict:
    (found,) = replicated_job(name)["template"]["spec"]["template"]["spec"]["containers"]
    return found


def lost(written, kept, path: str = "") -> list[str]:
    """What stands in a file and not in the object that a schema made of it: a name that the schema does not know."""
    if isinstance(written, dict):
        return [
            place
            for key, value in written.items()
            for place in (lost(value, kept[key], f"{path}.{key}") if key in kept else [f"{path}.{key}"])
        ]
    if isinstance(written, list):
        return [place for i, value in enumerate(written) for place in lost(value, kept[i], f"{path}[{i}]")]
    return [] if written == kept else [path]


def check_schema(document: dict) -> list[str]:
    from kubeflow_trainer_api.models import io_k8s_api_core_v1_persistent_volume_claim as claim
    from kubeflow_trainer_api.models import jobset_v1alpha2_job_set as job_set

    kinds = {"JobSet": job_set.JobsetV1alpha2JobSet, "PersistentVolumeClaim": claim.IoK8sApiCoreV1PersistentVolumeClaim}
    return lost(document, kinds[document["kind"]].from_dict(document).to_dict())


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_has_no_field_that_kubernetes_or_jobset_does_not_know(name):
    for document in documents(name).values():
        assert check_schema(document) == []


@pytest.mark.parametrize(
    ("where", "key", "value"),
    [
        ("spec", "failurePolicyy", {"maxRestarts": 1}),
        ("template", "backoffLimit", "none"),
        ("pod", "terminationGracePeriod", 300),
        ("pod", "nodeSelector", ["a"]),
    ],
)
def test_the_schema_finds_a_misspelt_field_and_a_wrong_type(where, key, value):
    document = documents("jobset-tpu.yaml")["JobSet"]
    job = document["spec"]["replicatedJobs"][0]["template"]
    {"spec": document["spec"], "template": job["spec"], "pod": job["spec"]["template"]["spec"]}[where][key] = value
    try:
        assert check_schema(document) != []
    except ValueError as error:  # pydantic's ValidationError is one
        assert key in str(error)


def action(name: str, code: int | None = None, condition: str | None = None) -> str:
    """What JobSet does after a pod ended with this exit code or condition, by the rules of the Job and the JobSet."""
    job = replicated_job(name)["template"]["spec"]
    assert job["backoffLimit"] == 0
    reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    for index, rule in enumerate(job["podFailurePolicy"]["rules"]):
        codes = rule.get("onExitCodes", {"operator": "In", "values": []})
        assert codes["operator"] == "In" and codes.get("containerName", "train") == container(name)["name"]
        conditions = [pattern["type"] for pattern in rule.get("onPodConditions", ())]
        if code in codes["values"] or condition in conditions:
            assert rule["action"] == "FailJob"
            reason, message = "PodFailurePolicy", f"Pod x matching FailJob rule at index {index}"
            break
    policy = documents(name)["JobSet"]["spec"]["failurePolicy"]
    for rule in policy["rules"]:
        assert re.fullmatch("[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
        patterns = rule["onJobFailureMessagePatterns"]
        if reason in rule["onJobFailureReasons"] and any(re.search(pattern, message) for pattern in patterns):
            return rule["action"]
    assert policy["maxRestarts"] > 0
    return "RestartJobSet"


@pytest.mark.parametrize("name", MANIFESTS)
def test_an_exit_code_leads_to_what_it_stands_for(name):
    uncounted = "RestartJobSetAndIgnoreMaxRestarts"
    assert action(name, code=75) == action(name, code=143) == uncounted
    assert action(name, code=137, condition="DisruptionTarget") == uncounted
    assert action(name, code=2) == "FailJobSet"
    assert action(name, code=1) == action(name, code=137) == "RestartJobSet"  # counts


def arguments(name: str) -> list[str]:
    """The arguments of zoo.train in a manifest, a task or a script."""
    if name in MANIFESTS:
        assert container(name)["command"] == ["python", "-m", "zoo.train"]
        return container(name)["args"]
    text = (DEPLOY / name).read_text()
    if name == "skypilot.yaml":
        text = yaml.safe_load(text)["run"].split("zoo.train")[1]
    else:
        text = re.search(r"set -- (.*?)\nfi", text, re.DOTALL)[1]
    split = subprocess.run(["bash", "-c", f"printf '%s\\n' {text}"], capture_output=True, text=True, check=True)
    return split.stdout.splitlines()


@pytest.mark.parametrize("name", [*MANIFESTS, "skypilot.yaml", "slurm.sbatch"])
def test_the_command_is_one_that_zoo_train_reads_and_its_mesh_and_batch_fit_the_machines(name):
    chosen, *options = arguments(name)
    parsed = parse_recipe(recipe(chosen), options, prog="zoo.train")
    sizes = mesh_sizes(parsed.mesh, CHIPS.get(name, ("", 16))[1])
    shards = math.prod(sizes[axis] for axis in parsed.rules.mesh_axes("batch"))
    assert parsed.data.batch_size % shards == 0
    assert parsed.model.embed_dim % math.prod(sizes[axis] for axis in parsed.rules.mesh_axes("embed")) == 0


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_pods_ask_for_all_chips_share_the_run_directory_and_have_time_to_save(name):
    job, resource = replicated_job(name), CHIPS[name]
    pods = job["replicas"] * job["template"]["spec"]["parallelism"]
    assert job["template"]["spec"]["completions"] == job["template"]["spec"]["parallelism"]
    assert pods * container(name)["resources"]["limits"][resource[0]] == resource[1]
    claim = documents(name)["PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    pod = job["template"]["spec"]["template"]["spec"]
    assert claim["metadata"]["name"] in [v.get("persistentVolumeClaim", {}).get("claimName") for v in pod["volumes"]]
    (run_dir,) = [word for word in arguments(name) if word.startswith("--run-dir=")]
    assert any(run_dir.startswith(f"--run-dir={mount['mountPath']}/") for mount in container(name)["volumeMounts"])
    assert pod["terminationGracePeriodSeconds"] >= 60 and pod["restartPolicy"] == "Never"


def test_the_pods_on_gpu_nodes_find_each_other():
    document, job = documents("jobset-gpu.yaml")["JobSet"], replicated_job("jobset-gpu.yaml")
    variables = {entry["name"]: entry["value"] for entry in container("jobset-gpu.yaml")["env"]}
    for index in range(job["template"]["spec"]["completions"]):
        environment = variables | {"JOB_COMPLETION_INDEX": str(index)}
        cluster = find_cluster(None, None, None, environment, lambda _name: None)
        assert (cluster.source, cluster.num_processes, cluster.process_id) == ("Kubernetes", 2, index)
        name = document["metadata"]["name"]
        assert cluster.address == f"{name}-{job['name']}-0-0.{name}:8482"
    assert 8482 in [port["containerPort"] for port in container("jobset-gpu.yaml")["ports"]]


# ---- SkyPilot

TASK = {"name": str, "resources": dict, "num_nodes": int, "workdir": str, "file_mounts": dict, "setup": str, "run": str}
RESOURCES = {"accelerators": str, "use_spot": bool, "disk_size": int, "job_recovery": dict}
RECOVERY = {"recover_on_exit_codes": list, "max_restarts_on_errors": int}


def test_the_skypilot_task_has_keys_that_skypilot_knows_and_recovers_from_75():
    task = yaml.safe_load((DEPLOY / "skypilot.yaml").read_text())
    for known, found in ((TASK, task), (RESOURCES, task["resources"]), (RECOVERY, task["resources"]["job_recovery"])):
        for key, value in found.items():
            assert isinstance(value, known[key]), key
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
    (run_dir,) = [word for word in arguments("skypilot.yaml") if word.startswith("--run-dir=")]
    assert any(run_dir.startswith(f"--run-dir={mount}/") for mount in task["file_mounts"])
    for key in ("setup", "run"):
        subprocess.run(["bash", "-n", "-c", task[key]], check=True)


# ---- scripts


@pytest.mark.parametrize("name", ["slurm.sbatch", "until_done.sh"])
def test_scripts_are_clean(name):
    subprocess.run(["bash", "-n", DEPLOY / name], check=True)
    tool = shutil.which("shellcheck") or shutil.which("shellcheck", path=Path(sys.executable).parent)
    if tool is None:
        pytest.skip("shellcheck is not installed: only the syntax was checked")
    done = subprocess.run([tool, "--shell=bash", DEPLOY / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.fixture
def slurm(tmp_path):
    """Runs slurm.sbatch with an `srun` that ends with a given code; the calls of srun and scontrol are written down."""
    calls = tmp_path / "calls"
    for name in ("srun", "scontrol"):
        script = tmp_path / name
        script.write_text(
            f'#!/usr/bin/env bash\necho {name} "$@" >>{calls}\n[[ {name} == srun ]] && exit "$CODE"\nexit 0\n'
        )
        script.chmod(0o755)

    def run(code: int, *words: str, **environment: str) -> tuple[int, list[str]]:
        calls.unlink(missing_ok=True)
        variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path), "SLURM_JOB_ID": "7"}
        done = subprocess.run(
            ["bash", DEPLOY / "slurm.sbatch", *words],
            env=variables | {"CODE": str(code)} | environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=30,
        )
        return done.returncode, calls.read_text().splitlines()

    return run


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"),
    [(0, 0, False), (75, 0, True), (75, 500, True), (2, 0, False), (1, 0, False), (137, 0, True), (137, 10, False)],
)
def test_slurm_queues_again_what_should_run_again(slurm, code, restarts, requeued):
    returned, calls = slurm(code, SLURM_RESTART_COUNT=str(restarts))
    assert returned == code
    assert calls[0].startswith("srun ") and " -m zoo.train gemma2-2b --mesh.data=2 " in calls[0]
    assert calls[1:] == (["scontrol requeue 7"] if requeued else [])


def test_slurm_takes_other_arguments_and_signals_before_the_time_limit(slurm):
    _, calls = slurm(0, "gemma2-9b", "--steps", "5", ZOO_VENV="/v")
    assert calls[0].endswith("/v/bin/python -m zoo.train gemma2-9b --steps 5")
    text = (DEPLOY / "slurm.sbatch").read_text()
    for option in ("--signal=USR1@", "--requeue", "--open-mode=append"):
        assert f"#SBATCH {option}" in text


COMMAND = """#!/usr/bin/env bash
echo run >>"$HOME/runs"
code=$(sed -n "$(wc -l <"$HOME/runs")p" "$HOME/codes")
if [[ $code == wait ]]; then
  trap 'exit 75' TERM
  touch "$HOME/ready"
  while true; do sleep 0.05; done
fi
if ((code > 128)); then kill -KILL $$; fi
exit "$code"
"""


@pytest.fixture
def until_done(tmp_path):
    """Starts until_done.sh with a command that ends with the given codes, one after the other."""
    command = tmp_path / "command"
    command.write_text(COMMAND)
    command.chmod(0o755)

    def start(*codes: object) -> subprocess.Popen:
        (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "ZOO_PAUSE": "0"}
        return subprocess.Popen(["bash", DEPLOY / "until_done.sh", command], env=environment, stderr=subprocess.PIPE)

    return start


@pytest.mark.parametrize(
    ("codes", "runs", "last"),
    [([75, 137, 75, 0], 4, 0), ([75, 2, 0], 2, 2), ([1, 0], 1, 1), ([137] * 15, 11, 137), ([75] * 20 + [0], 21, 0)],
)
def test_a_command_is_run_until_it_is_done(until_done, tmp_path, codes, runs, last):
    process = until_done(*codes)
    process.communicate(timeout=60)
    assert process.returncode == last
    assert len((tmp_path / "runs").read_text().splitlines()) == runs


def test_a_command_that_is_told_to_stop_is_not_run_again(until_done, tmp_path):
    process = until_done("wait", 0)
    while not (tmp_path / "ready").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert (tmp_path / "runs").read_text() == "run\n"


# ---- the page


def test_the_page_names_every_file_and_only_files_and_options_that_exist():
    from zoo.recipes import DEFAULT, recipe
    from zoo.recipes.command_line import SHORT_NAMES, option_names

    text = (DEPLOY.parent / "docs" / "scale.md").read_text()
    named = set(re.findall(r"deploy/([A-Za-z_.-]+[a-z])", text))
    assert named == {path.name for path in DEPLOY.iterdir()}
    known = {*SHORT_NAMES, *option_names(recipe(DEFAULT))}
    for command in re.findall(r"zoo\.train (.*?)(?:\n\n|```|`)", text.replace("\\\n", " "), re.DOTALL):
        for option in re.findall(r"(?<=\s)--[a-z][\w.-]*", command.split("\n")[0]):
            assert option in known, option
