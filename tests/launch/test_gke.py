"""The JobSet: its fields are those of Kubernetes and of JobSet, and its exit codes those of the pods."""

import datetime
import re

import pytest
import yaml
from launch_scripts import LAUNCH, run

SET = {"WORKDIR": "gs://bucket/runs/one", "DATA": "gs://bucket/data", "IMAGE": "registry/hybrid:1"}
# Of jobset.x-k8s.io/v1alpha2, from its published types; the pods' part is Kubernetes' own.
JOBSET = {
    "": {"apiVersion", "kind", "metadata", "spec"},
    "spec": {
        "replicatedJobs", "network", "successPolicy", "failurePolicy", "startupPolicy", "suspend", "coordinator",
        "managedBy", "ttlSecondsAfterFinished", "volumeClaimPolicies",
    },
    "failurePolicy": {"maxRestarts", "restartStrategy", "rules"},
    "rule": {"name", "action", "onJobFailureReasons", "onJobFailureMessagePatterns", "targetReplicatedJobs"},
    "replicatedJob": {"name", "groupName", "template", "replicas", "dependsOn"},
}  # fmt: skip
ACTIONS = {"FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts", "RestartJob"}
SCALARS = {"str": str, "int": int, "bool": bool, "datetime": datetime.datetime, "object": object}


def rendered(*flags, **environment):
    done = run("gke.sh", "render", *flags, **SET | environment)
    assert done.returncode == 0, done.stderr
    assert "${" not in done.stdout
    return yaml.safe_load(done.stdout)


def check(value, kind, models, path):
    """Compares a value with a type of the Kubernetes client, such as `list[V1Container]`, field by field."""
    if found := re.fullmatch(r"(?i)list\[(.*)\]", kind):
        assert isinstance(value, list), path
        for i, each in enumerate(value):
            check(each, found[1], models, f"{path}[{i}]")
    elif found := re.fullmatch(r"(?i)dict(?:\[|\()str, (.*)(?:\]|\))", kind):
        assert isinstance(value, dict) and all(isinstance(name, str) for name in value), path
        for name, each in value.items():
            # A quantity may be a number in YAML.
            check(str(each) if path.endswith("limits") else each, found[1], models, f"{path}.{name}")
    elif kind in SCALARS:
        assert isinstance(value, SCALARS[kind]), f"{path}: {value!r} is no {kind}"
    else:
        model = getattr(models, kind)
        fields = {yaml_name: model.openapi_types[name] for name, yaml_name in model.attribute_map.items()}
        assert set(value) <= set(fields), f"{path}: no such fields: {set(value) - set(fields)}"
        for name, each in value.items():
            check(each, fields[name], models, f"{path}.{name}")


def test_the_jobset_has_only_fields_that_exist():
    models = pytest.importorskip("kubernetes.client.models")
    jobset = rendered("--config.seed=3")
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    policy = jobset["spec"]["failurePolicy"]
    assert set(jobset) <= JOBSET[""] and set(jobset["spec"]) <= JOBSET["spec"]
    assert set(policy) <= JOBSET["failurePolicy"] and isinstance(policy["maxRestarts"], int)
    for rule in policy["rules"]:
        assert set(rule) <= JOBSET["rule"] and rule["action"] in ACTIONS
    check(jobset["metadata"], "V1ObjectMeta", models, "metadata")
    for job in jobset["spec"]["replicatedJobs"]:
        assert set(job) <= JOBSET["replicatedJob"] and isinstance(job["replicas"], int)
        check(job["template"], "V1JobTemplateSpec", models, "template")


def test_a_field_that_does_not_exist_is_found():
    models = pytest.importorskip("kubernetes.client.models")
    template = rendered()["spec"]["replicatedJobs"][0]["template"]
    template["spec"]["template"]["spec"]["containers"][0]["resources"]["limit"] = {}
    with pytest.raises(AssertionError, match=r"containers\[0\].resources: no such fields: {'limit'}"):
        check(template, "V1JobTemplateSpec", models, "template")


def test_slices_hosts_and_flags_reach_the_pods():
    jobset = rendered("--config.data.name='it''s'", SLICES="2", HOSTS="4", TOPOLOGY="4x4", SPOT="false")
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert (job["replicas"], spec["parallelism"], spec["completions"]) == (2, 4, 4)
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    assert container["args"] == ["--config=configs/imagenet64.py", "--config.data.name='it''s'"]
    assert {"name": "WORKDIR", "value": "/bucket/runs/one"} in container["env"]
    assert {volume["name"] for volume in pod["volumes"]} == {mount["name"] for mount in container["volumeMounts"]}
    evaluated = rendered("--mode=eval")["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert evaluated["containers"][0]["args"] == ["--mode=eval"]


def test_a_mistake_and_a_run_that_does_not_get_on_are_not_started_again():
    jobset = rendered()
    spec = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    (rule,) = spec["podFailurePolicy"]["rules"]
    # 2: a user's mistake; 3: what `supervise.sh --once`, which pod.sh calls, says where restarts bring nothing.
    assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [2, 3]
    assert "start_once" in (LAUNCH / "pod.sh").read_text() and "return 3" in (LAUNCH / "supervise.sh").read_text()
    assert jobset["spec"]["failurePolicy"]["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert spec["template"]["spec"]["restartPolicy"] == "Never" and spec["backoffLimit"] == 0


def test_submitting_replaces_the_jobset(tmp_path):
    done = run("gke.sh", "--dry_run", "submit", TMPDIR=str(tmp_path), **SET)
    assert done.stdout.splitlines() == [
        "kubectl delete jobset hybrid --ignore-not-found",
        f"kubectl apply --filename {tmp_path}/hybrid_jax_hybrid.yaml",
    ]
