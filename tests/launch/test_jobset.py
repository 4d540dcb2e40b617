"""Test launch/gke_jobset.yaml and the JobSets that launch/sweep.py makes from it.

The schema below is minimal. It has only the fields of JobSet v1alpha2, batch/v1 Job and core/v1 Pod that we use, their
types, and which are required; it refuses a misspelt field. `check` asserts what a schema cannot express: that hosts,
ports, volumes and exit codes agree with each other.
"""

import copy
from math import prod
from typing import Any

import jsonschema
import pytest
import yaml
from ml_collections import ConfigDict

from nml_jax import errors
from tests.launch.shell import LAUNCH, load, run


def record(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    """Return the schema of an object with exactly these fields."""
    properties = required | optional
    return {
        "type": "object", "properties": properties, "required": [*required], "additionalProperties": False,
    }  # fmt: skip


def items(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": of, "minItems": 1}


TEXT, FLAG, COUNT = {"type": "string", "minLength": 1}, {"type": "boolean"}, {"type": "integer", "minimum": 1}
NATURAL = {"type": "integer", "minimum": 0}
LABEL = {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"}
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
PORT = {"type": "integer", "minimum": 1, "maximum": 65535}
CONTAINER = record(
    {"name": LABEL, "image": TEXT, "args": items(TEXT)},
    env=items(record({"name": {"type": "string", "pattern": "^[A-Z_]+$"}, "value": TEXT})),
    ports=items(record({"containerPort": PORT})),
    resources=record({"limits": record({"google.com/tpu": COUNT})}),
    securityContext=record({}, privileged=FLAG, runAsUser=NATURAL),
    volumeMounts=items(record({"name": LABEL, "mountPath": {"type": "string", "pattern": "^/"}}, readOnly=FLAG)),
)
POD = record(
    {"restartPolicy": {"enum": ["Never"]}, "containers": items(CONTAINER), "nodeSelector": TEXTS},
    terminationGracePeriodSeconds=NATURAL,
    volumes=items(record({"name": LABEL, "persistentVolumeClaim": record({"claimName": LABEL}, readOnly=FLAG)})),
)
EXITS = record({"containerName": LABEL, "operator": {"enum": ["In", "NotIn"]}, "values": items(COUNT)})
JOB = record(
    {"parallelism": COUNT, "completions": COUNT, "backoffLimit": NATURAL, "template": record({"spec": POD})},
    completionMode={"enum": ["Indexed"]},
    podFailurePolicy=record({"rules": items(record({"action": {"enum": ["FailJob"]}, "onExitCodes": EXITS}))}),
)
RULE = record(
    {"name": {"type": "string", "pattern": "^[A-Za-z]"}, "action": {"enum": ["FailJobSet"]}},
    onJobFailureReasons=items({"enum": ["PodFailurePolicy"]}),
)
JOBSET = record({
    "apiVersion": {"const": "jobset.x-k8s.io/v1alpha2"},
    "kind": {"const": "JobSet"},
    "metadata": record({"name": LABEL}, annotations=TEXTS, labels=TEXTS),
    "spec": record(
        {"replicatedJobs": items(record({"name": LABEL, "replicas": COUNT, "template": record({"spec": JOB})}))},
        ttlSecondsAfterFinished=NATURAL,
        network=record({"enableDNSHostnames": FLAG}),
        failurePolicy=record({"maxRestarts": NATURAL, "rules": items(RULE)}),
    ),
})  # fmt: skip


def check(jobset: dict[str, Any]) -> dict[str, Any]:
    """Check a JobSet and return its container."""
    jsonschema.Draft202012Validator(JOBSET).validate(jobset)
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    # every host of a slice is a pod with an index, and together they have all its chips
    assert spec["parallelism"] == spec["completions"]
    assert spec["completionMode"] == "Indexed"
    assert spec["backoffLimit"] == 0
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert spec["parallelism"] * chips == prod(int(side) for side in topology.split("x"))
    # host names <jobset>-<job>-<slice>-<host>-<5 characters> must have at most 63 characters
    last = f"{jobset['metadata']['name']}-{job['name']}-{job['replicas'] - 1}-{spec['parallelism'] - 1}-abcde"
    assert len(last) <= 63
    assert jobset["spec"]["network"]["enableDNSHostnames"]
    ports = [port["containerPort"] for port in container["ports"]]
    assert len(set(ports)) == len(ports)
    assert int(coordinator_port()) in ports
    # every volume is mounted once, and is as writable as its claim
    volumes = {volume["name"]: volume["persistentVolumeClaim"] for volume in pod["volumes"]}
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert len(volumes) == len(pod["volumes"])
    assert volumes.keys() == mounts.keys()
    assert len({mount["mountPath"] for mount in mounts.values()}) == len(mounts)
    assert all(mounts[name].get("readOnly", False) == claim.get("readOnly", False) for name, claim in volumes.items())
    (workdir,) = [arg.removeprefix("--workdir=") for arg in container["args"] if arg.startswith("--workdir=")]
    assert workdir.startswith(f"{mounts['runs']['mountPath']}/")
    assert not mounts["runs"].get("readOnly")
    # the exit codes after which it starts again
    ((stop,), (rule,)) = spec["podFailurePolicy"]["rules"], jobset["spec"]["failurePolicy"]["rules"]
    assert stop["onExitCodes"]["containerName"] == container["name"]
    assert stop["onExitCodes"]["operator"] == "NotIn"
    again = stop["onExitCodes"]["values"]
    assert {errors.Preempted.exit_code, errors.PeerLost.exit_code} <= set(again)
    assert not {errors.UserError.exit_code, errors.NonFinite.exit_code, 1, 130} & set(again)
    assert rule["action"] == "FailJobSet"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    return container


def coordinator_port() -> str:
    from jax._src.clusters import cloud_tpu_cluster

    return cloud_tpu_cluster.coordinator_port


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    return yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text("utf-8"))


def test_the_template(template):
    container = check(template)
    assert container["args"][0] == "--config=configs/clip_vitb16.py"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "replicatedJobs", 0, "template", "spec", "completions"), 15),
        (("spec", "replicatedJobs", 0, "template", "spec", "completionMode"), "NonIndexed"),
        (("spec", "replicatedJobs", 0, "template", "spec", "backofLimit"), 0),
        (("spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "volumes", 0, "name"), "run"),
        (("spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "restartPolicy"), "OnFailure"),
        (("metadata", "name"), "My Run"),
        (("metadata", "name"), "a" * 60),
        (("apiVersion",), "jobset.x-k8s.io/v1alpha1"),
    ],
)
def test_mistakes_are_noticed(template, path: tuple, value: object):
    broken = copy.deepcopy(template)
    at = broken
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises((jsonschema.ValidationError, AssertionError)):
        check(broken)


def fill_template(*own: str, flags: tuple[str, ...]) -> list[dict[str, Any]]:
    done = run("sweep.py", "--as=jobset", "--image=r/nml_jax:tpu", *own, "--", *flags)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def test_a_sweep_is_a_jobset_for_each_cell(template):
    flags = ("--config=configs/digits.py", "--config.seed=1", "--config.sweep.noise=(0.0,0.1)")
    stages = '--config.stages=("pretrain", "extract", "tune",)'
    own = ("--topology=4x4x8", "--accelerator=tpu-v5p-slice", "--slices=2", "--queue=team")
    made = fill_template(*own, flags=flags)
    containers = [check(jobset) for jobset in made]
    assert [jobset["metadata"]["name"] for jobset in made] == ["digits-0", "digits-1"]
    cells = [jobset["metadata"]["annotations"]["nml-jax/cell"] for jobset in made]
    assert cells == ["noise=0,seed=1", "noise=0.1,seed=1"]
    for container, noise in zip(containers, (0.0, 0.1), strict=True):
        assert container["image"] == "r/nml_jax:tpu"
        assert container["args"] == [*flags, "--workdir=/runs/digits", stages, f"--config.noise={noise}"]
    for jobset in made:
        assert jobset["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "team"}
        (job,) = jobset["spec"]["replicatedJobs"]
        assert (job["replicas"], job["template"]["spec"]["parallelism"]) == (2, 32)
        pod = job["template"]["spec"]["template"]["spec"]
        assert pod["nodeSelector"]["cloud.google.com/gke-tpu-accelerator"] == "tpu-v5p-slice"
        assert jobset["spec"]["failurePolicy"] == template["spec"]["failurePolicy"]


@pytest.mark.parametrize(
    ("topology", "per_host", "hosts", "chips"), [("1x1", 4, 1, 1), ("2x2", 4, 1, 4), ("2x4", 4, 2, 4), ("2x4", 8, 1, 8)]
)
def test_small_slices_and_odd_names(topology: str, per_host: int, hosts: int, chips: int):
    sweep = load("sweep")
    args = sweep.parse(["--as=jobset", "--image=i", f"--topology={topology}", f"--chips_per_host={per_host}"])
    config = ConfigDict({"name": "My (very) long name of an experiment in 2026", "stages": ("pretrain",)})
    (jobset,) = sweep.make_jobsets(["--workdir=/runs/mine"], config, {"seed=1": []}, args)
    container = check(jobset)
    (job,) = jobset["spec"]["replicatedJobs"]
    assert job["template"]["spec"]["parallelism"] == hosts
    assert container["resources"]["limits"]["google.com/tpu"] == chips
    assert jobset["metadata"]["name"] == "my-very-long-name-of-an"
