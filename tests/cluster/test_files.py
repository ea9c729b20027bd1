"""The cluster files are held against the tools that will read them, and against rules that each was seen to break."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.rules import aws_faults, cluster_faults, may, pod_faults, read_template, template_faults

ROOT = Path(__file__).resolve().parents[2]
CLUSTERS = ROOT / "clusters"
CLOUDS = ("aws", "gcp", "local")


def config(name: str) -> dict[str, Any]:
    return yaml.safe_load((CLUSTERS / f"{name}.yaml").read_text())


def put(document: dict[str, Any], path: str, value: Any) -> None:
    """Set a value by a dotted path; None removes it."""
    *parents, last = path.split(".")
    for key in parents:
        document = document[int(key)] if isinstance(document, list) else document[key]
    if value is None:
        del document[last]
    elif isinstance(document, list):
        document[int(last)] = value
    else:
        document[last] = value


# --- ray up --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLOUDS)
def test_ray_takes_the_file(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(config(name))
    validate_config(prepared)
    assert prepared["head_node_type"] in prepared["available_node_types"]


@pytest.mark.parametrize("name", CLOUDS)
def test_no_rule_is_broken(name: str) -> None:
    assert cluster_faults(config(name)) == []
    if name == "aws":
        assert aws_faults(config(name)) == []


BREAKS: list[tuple[str, str, Any, str]] = [
    ("aws", "provider.use_internal_ips", False, "public addresses"),
    (
        "aws",
        "provider.security_group",
        {"IpPermissions": [{"IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]},
        "open to the world",
    ),
    ("aws", "auth.ssh_proxy_command", None, "open port"),
    ("aws", "head_start_ray_commands.2", "ray start --head --dashboard-host=127.0.0.1", "without a token"),
    (
        "aws",
        "head_start_ray_commands.2",
        "RAY_AUTH_MODE=token ray start --head --dashboard-host=0.0.0.0",
        "listens to the world",
    ),
    ("aws", "head_start_ray_commands.1", "mlflow server --host 0.0.0.0", "listens to the world"),
    ("aws", "worker_start_ray_commands.1", "ray start --address=$RAY_HEAD_IP:6379", "without a token"),
    ("aws", "file_mounts", {"~/raygrid": "."}, "no token"),
    ("aws", "available_node_types.head.resources.CPU", 2, "trials may run"),
    ("aws", "available_node_types.gpu.min_workers", 1, "nobody asked for"),
    ("aws", "available_node_types.gpu.node_config.MetadataOptions.HttpTokens", "optional", "IMDSv1"),
    ("aws", "available_node_types.gpu.node_config.MetadataOptions.HttpPutResponseHopLimit", 2, "one hop"),
    ("aws", "available_node_types.gpu.node_config.MetadataOptions", None, "IMDSv1"),
    ("aws", "available_node_types.head.node_config.BlockDeviceMappings.0.Ebs.Encrypted", False, "not encrypted"),
    ("aws", "available_node_types.gpu.node_config.BlockDeviceMappings", None, "not encrypted"),
    ("aws", "available_node_types.gpu.node_config.BlockDeviceMappings.0.Ebs.DeleteOnTermination", False, "outlives"),
    ("aws", "available_node_types.gpu.node_config.SecurityGroupIds", None, "no security group"),
    ("aws", "available_node_types.gpu.node_config.SubnetIds", None, "no subnet"),
    ("aws", "available_node_types.gpu.node_config.IamInstanceProfile.Name", "raygrid-head", "the head's role"),
    ("aws", "available_node_types.head.node_config.IamInstanceProfile", None, "no role"),
    ("gcp", "provider.use_internal_ips", False, "public addresses"),
    ("local", "head_start_ray_commands.2", "ray start --head --dashboard-host=0.0.0.0", "listens to the world"),
]


@pytest.mark.parametrize(("name", "path", "value", "fault"), BREAKS, ids=[f"{b[0]}-{b[1]}" for b in BREAKS])
def test_every_rule_can_be_broken(name: str, path: str, value: Any, fault: str) -> None:
    broken = copy.deepcopy(config(name))
    put(broken, path, value)
    faults = cluster_faults(broken) + (aws_faults(broken) if name == "aws" else [])
    assert any(fault in found for found in faults), faults


def ec2_faults(node: dict[str, Any]) -> list[str]:
    """What botocore's own model of EC2 says of a node_config, as Ray turns it into RunInstances."""
    from botocore.loaders import Loader
    from botocore.model import ServiceModel
    from botocore.validate import ParamValidator

    service = ServiceModel(Loader().load_service_model("ec2", "service-2"), "ec2")
    asked = {**node, "MinCount": 1, "MaxCount": 1}
    subnets = asked.pop("SubnetIds", None)
    if subnets:
        asked["SubnetId"] = subnets[0]
    shape = service.operation_model("RunInstances").input_shape
    report = ParamValidator().validate(asked, shape)
    faults = [report.generate_report()] if report.has_errors() else []

    def unknown(value: Any, shape: Any, path: str) -> None:
        if shape.type_name == "structure":
            for key, inner in value.items():
                if key not in shape.members:
                    faults.append(f"{path}.{key}: EC2 knows no such field")
                else:
                    unknown(inner, shape.members[key], f"{path}.{key}")
        elif shape.type_name == "list":
            for inner in value:
                unknown(inner, shape.member, path)
        elif getattr(shape, "enum", None) and value not in shape.enum:
            faults.append(f"{path}: {value!r} is not allowed")

    unknown(asked, shape, "node_config")
    return faults


def test_ec2_knows_every_field_of_a_machine() -> None:
    for kind in config("aws")["available_node_types"].values():
        assert ec2_faults(kind["node_config"]) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("InstanceTyp", "g6.2xlarge"),
        ("InstanceType", "g6.2xlage"),
        ("MetadataOptions.HttpToken", "required"),
        ("MetadataOptions.HttpTokens", "require"),
        ("BlockDeviceMappings.0.Ebs.Encrypt", True),
        ("BlockDeviceMappings.0.Ebs.VolumeSize", "100"),
        ("InstanceMarketOptions.MarketType", "spott"),
    ],
)
def test_a_misspelt_field_is_found(path: str, value: Any) -> None:
    node = copy.deepcopy(config("aws")["available_node_types"]["gpu"]["node_config"])
    put(node, path, value)
    assert ec2_faults(node)


def test_autoscaling_ends_what_it_started() -> None:
    for name in ("aws", "gcp"):
        found = config(name)
        assert found["idle_timeout_minutes"] <= 10
        assert found["provider"]["cache_stopped_nodes"] is False
        workers = [k for n, k in found["available_node_types"].items() if n != found["head_node_type"]]
        assert all(kind["max_workers"] <= found["max_workers"] for kind in workers)


# --- CloudFormation ------------------------------------------------------------------------------------------------


def template() -> dict[str, Any]:
    return read_template((CLUSTERS / "aws-iam" / "raygrid.yaml").read_text())


def test_cloudformation_takes_the_template() -> None:
    pytest.importorskip("cfnlint", reason="cfn-lint comes with moto[server]")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from cfnlint.runner import main; sys.exit(main())",
            str(CLUSTERS / "aws-iam" / "raygrid.yaml"),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_template_breaks_no_rule() -> None:
    assert template_faults(template()) == []


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        ("Resources.Guard.Properties.SecurityGroupIngress", [{"CidrIp": "0.0.0.0/0", "FromPort": 22}], "lets in"),
        ("Resources.GuardIn.Properties.SourceSecurityGroupId", "sg-other", "others than its own"),
        ("Resources.SubnetA.Properties.MapPublicIpOnLaunch", True, "public addresses"),
        ("Resources.Bucket.Properties.PublicAccessBlockConfiguration.BlockPublicPolicy", False, "public"),
        ("Resources.Bucket.Properties.BucketEncryption", None, "not encrypted"),
        ("Resources.Bucket.DeletionPolicy", None, "go with the stack"),
        ("Resources.BucketOverTls.Properties.PolicyDocument.Statement", [{"Effect": "Allow"}], "without TLS"),
        ("Resources.WorkerRole.Properties.ManagedPolicyArns", ["arn:aws:iam::aws:policy/AmazonS3FullAccess"], "policy"),
        ("Resources.HeadRole.Properties.Policies.1.PolicyDocument.Statement.1.Resource", "*", "to anything"),
        ("Resources.HeadRole.Properties.Policies.1.PolicyDocument.Statement.5.Condition", None, "under no condition"),
        ("Resources.WorkerRole.Properties.Policies.0.PolicyDocument.Statement.0.Action", "s3:*", "may do s3:*"),
    ],
)
def test_every_rule_of_the_template_can_be_broken(path: str, value: Any, fault: str) -> None:
    broken = template()
    put(broken, path, value)
    assert any(fault in found for found in template_faults(broken)), template_faults(broken)


def test_workers_can_start_no_machine_and_remove_no_result() -> None:
    role = template()["Resources"]["WorkerRole"]["Properties"]
    actions = json.dumps(role["Policies"])
    assert "ec2:" not in actions and "iam:" not in actions
    assert role["ManagedPolicyArns"] == [{"Ref": "Store"}], "the head reaches workers without SSM"
    cell = "raygrid/cells/icons40/small/random0/A/base/seed0-1234"
    for name in ("record.json", "checkpoint-0123456789ab.safetensors"):
        assert worker_may("GetObject", f"{cell}/{name}")
        assert not worker_may("DeleteObject", f"{cell}/{name}")
    for path in ("raygrid/data/0/manifest.json", "raygrid/studies/icons/results.parquet"):
        assert not worker_may("DeleteObject", path)
    assert not worker_may("DeleteObjectVersion", f"{cell}/lease.json")
    for name in ("lease.json", "progress.safetensors"):
        assert worker_may("PutObject", f"{cell}/{name}", ObjectCreationOperation="true")
        assert worker_may("DeleteObject", f"{cell}/{name}")


def worker_may(action: str, path: str, **context: str) -> bool:
    return may(template(), "WorkerRole", f"s3:{action}", path, **context)


@pytest.mark.parametrize("role", ["WorkerRole", "HeadRole"])
def test_a_record_is_written_once_and_never_replaced(role: str) -> None:
    record = "raygrid/cells/icons40/small/random0/A/base/seed0-1234/record.json"
    put = {"action": "s3:PutObject", "path": record}
    assert may(template(), role, **put, if_none_match="*", ObjectCreationOperation="true")
    assert not may(template(), role, **put, ObjectCreationOperation="true")
    assert may(template(), role, **put, ObjectCreationOperation="false"), "parts of an upload, which creates nothing"
    policy = template()["Resources"]["BucketOverTls"]["Properties"]["PolicyDocument"]["Statement"]
    deny = next(statement for statement in policy if statement.get("Sid") == "RecordsAreWrittenOnce")
    assert deny["Principal"] == "*" and deny["Effect"] == "Deny"


def test_a_record_is_written_as_the_bucket_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """With If-None-Match, in one piece: else the policy would refuse every record."""
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    from raygrid.store import Store

    asked: list[tuple[str, str | None]] = []

    class Bucket(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            asked.append((self.path, self.headers["If-None-Match"]))
            self.send_response(200)
            self.send_header("ETag", '"x"')
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Bucket)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    variables = {"ENDPOINT_URL_S3": f"http://127.0.0.1:{server.server_port}", "REGION": "x"}
    for name, value in {**variables, "ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "x"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    Store("s3://grid/raygrid").create("cells/x/record.json", b"x" * 100_000)
    server.shutdown()
    assert asked == [("/grid/raygrid/cells/x/record.json", "*")]


def head_may_start() -> list[Any]:
    statements = template()["Resources"]["HeadRole"]["Properties"]["Policies"][1]["PolicyDocument"]["Statement"]
    return [s for s in statements if "ec2:RunInstances" in s["Action"]]


def test_the_head_may_start_what_the_file_names_and_no_more() -> None:
    kinds = {n: k["node_config"]["InstanceType"] for n, k in config("aws")["available_node_types"].items()}
    del kinds["head"]
    assert template()["Parameters"]["InstanceTypes"]["Default"].split(",") == sorted(set(kinds.values()))
    images = [r for s in head_may_start() for r in s["Resource"] if "image/" in json.dumps(r)]
    assert len(images) == 2, "the stack's own image, and one that aws.yaml may name instead"
    condition, extra, nothing = images[1]["If"]
    assert template()["Conditions"][condition] == {"Not": [{"Equals": [{"Ref": "ExtraImage"}, ""]}]}
    assert extra["Sub"].endswith("::image/${ExtraImage}") and nothing == {"Ref": "AWS::NoValue"}
    allowed = template()["Parameters"]["ExtraImage"]["AllowedPattern"]
    assert re.fullmatch(allowed, "") and re.fullmatch(allowed, "ami-0abc12") and not re.fullmatch(allowed, "*")


def test_the_stack_gives_every_name_that_the_file_wants() -> None:
    outputs = template()["Outputs"]
    given = {re.sub(r"(?<=.)([A-Z])", r"-\1", key).lower(): f"value-of-{key}" for key in outputs}
    filled = _fill_module().fill((CLUSTERS / "aws.yaml").read_text(), given)
    body = "\n".join(line.split("#")[0] for line in filled.splitlines())
    assert "<" not in body.replace("<<:", "").replace("< /dev/null", "")
    assert yaml.safe_load(filled)["available_node_types"]["gpu"]["node_config"]["SubnetIds"] == [
        "value-of-SubnetA",
        "value-of-SubnetB",
    ]


def test_a_name_that_the_stack_lacks_is_named() -> None:
    with pytest.raises(ValueError, match=r"<bucket>, <image>.*known: region"):
        _fill_module().fill("a: <region>\nb: <bucket>\nc: <image>\n", {"region": "x"})


def test_a_file_that_is_filled_already_is_not_called_ready(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It may be filled from another stack; nobody is asked what is in this one."""
    (tmp_path / "aws.yaml").write_text("region: us-west-2  # was <region>\n")
    assert _fill_module().main([str(tmp_path / "aws.yaml")]) == 0
    said = capsys.readouterr().out
    assert "nothing was replaced" in said and "git checkout -- " in said and "ready" not in said


def _fill_module() -> Any:
    import importlib.util

    spec = importlib.util.spec_from_file_location("fill", CLUSTERS / "fill.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- Kubernetes ----------------------------------------------------------------------------------------------------


def manifests() -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all((CLUSTERS / "kuberay.yaml").read_text()) if document]


def kube_faults(document: dict[str, Any]) -> list[str]:
    """What the schemas say: KubeRay's for its own kinds, Kubernetes' for pods and the rest."""
    import jsonschema

    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    faults: list[str] = []

    def core(one: dict[str, Any]) -> None:
        try:
            validate.validate(one, "1.34", strict=True)
        except validate.ValidationError as error:
            faults.append(str(error))

    if document["apiVersion"] != "ray.io/v1":
        core(document)
        return faults
    schema = json.loads((Path(__file__).parent / "kuberay.schema.json").read_text())
    part = {"RayCluster": "cluster", "RayJob": "job"}[document["kind"]]
    whole = {**schema, "$ref": f"#/$defs/{part}"}
    faults += [error.message for error in jsonschema.Draft202012Validator(whole).iter_errors(document["spec"])]
    for name, pod in pods(document).items():
        core({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": pod})
    return faults


def pods(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    cluster = document["spec"].get("rayClusterSpec", document["spec"])
    groups = {"head": cluster["headGroupSpec"]} if "headGroupSpec" in cluster else {}
    groups |= {f"group-{index}": group for index, group in enumerate(cluster.get("workerGroupSpecs", []))}
    return {name: group["template"]["spec"] for name, group in groups.items() if "template" in group}


def ray_cluster() -> dict[str, Any]:
    return next(document for document in manifests() if document["kind"] == "RayCluster")


def test_kubernetes_takes_the_manifests() -> None:
    kinds = [document["kind"] for document in manifests()]
    assert kinds == ["Namespace", "ServiceAccount", "ServiceAccount", "NetworkPolicy", "RayCluster", "RayJob"]
    for document in manifests():
        assert kube_faults(document) == [], document["kind"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.workerGroupSpecs.0.replica", 3),
        ("spec.workerGroupSpecs.0.maxReplicas", "5"),
        ("spec.workerGroupSpecs.0.groupName", None),
        ("spec.headGroupSpec.template.spec.containers.0.imagee", "x"),
        ("spec.headGroupSpec.template.spec.containers.0.resources.requests", ["cpu"]),
        ("spec.authOptions.mode", "tokens"),
        ("spec.autoscalerOptions.idleTimeoutMinutes", 5),
        ("spec.headGroupSpec.rayStartParams", {"num-cpus": 0}),
    ],
)
def test_a_wrong_manifest_is_found(path: str, value: Any) -> None:
    broken = copy.deepcopy(ray_cluster())
    put(broken, path, value)
    assert kube_faults(broken)


def test_pods_are_locked_down() -> None:
    cluster = ray_cluster()
    assert cluster["spec"]["authOptions"]["mode"] == "token"
    assert cluster["spec"]["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert not cluster["spec"]["headGroupSpec"].get("enableIngress")
    accounts = {pod["serviceAccountName"] for pod in pods(cluster).values()}
    assert accounts == {"raygrid-head", "raygrid-worker"}
    for name, pod in pods(cluster).items():
        assert pod_faults(name, pod) == []
    policy = next(document for document in manifests() if document["kind"] == "NetworkPolicy")
    assert "ipBlock" not in json.dumps(policy)


def test_a_pod_that_is_not_locked_down_is_found() -> None:
    pod = copy.deepcopy(pods(ray_cluster())["head"])
    pod["containers"][0]["securityContext"] = {"runAsUser": 0}
    pod["containers"][1]["image"] = "raygrid:latest"
    pod["containers"][1]["env"].append({"name": "AWS_SECRET_ACCESS_KEY", "value": "x"})
    pod["hostNetwork"] = True
    found = pod_faults("head", pod)
    assert len(found) == 5, found


def test_the_job_runs_on_the_cluster() -> None:
    job = manifests()[-1]
    cluster = ray_cluster()
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    assert job["metadata"]["namespace"] == cluster["metadata"]["namespace"]


# --- image and pins ------------------------------------------------------------------------------------------------


def dockerfile_faults(text: str) -> list[str]:
    """What a reviewer would say of a Dockerfile."""
    lines = re.sub(r"\\\n", " ", re.sub(r"(?m)^\s*#.*\n", "", text)).splitlines()
    steps = [
        (parts[0].upper(), parts[1]) for line in lines if (parts := line.strip().split(None, 1)) and len(parts) == 2
    ]
    defaults = dict(value.split("=", 1) for step, value in steps if step == "ARG" and "=" in value)
    faults = []
    for value in [re.sub(r"\$\{(\w+)\}", lambda m: defaults.get(m[1], ""), v) for s, v in steps if s == "FROM"]:
        image = value.split()[0]
        if not re.search(r":\d+\.\d+\.\d+|@sha256:", image):
            faults.append(f"{image} is not pinned")
    users = [value for step, value in steps if step == "USER"]
    if not users or users[-1] in ("root", "0"):
        faults.append("runs as root")
    for value in [value for step, value in steps if step == "RUN"]:
        if "apt-get install" in value and (
            "--no-install-recommends" not in value or "rm -rf /var/lib/apt/lists" not in value
        ):
            faults.append("apt leaves its lists or more than was asked for")
        if "pip install" in value and "-c clusters/constraints.txt" not in value:
            faults.append("pip installs what is not pinned")
        if re.search(r"curl[^|]*\||wget[^|]*\|", value):
            faults.append("runs what it downloads")
    if not any(step == "RUN" and "check.sh" in value for step, value in steps):
        faults.append("no check that a grid runs")
    if any(step in ("ENV", "ARG") and re.search(r"(SECRET|PASSWORD|ACCESS_KEY)", value) for step, value in steps):
        faults.append("a secret")
    if any(step == "ADD" for step, value in steps):
        faults.append("ADD")
    if any(value.startswith(". ") for step, value in steps if step == "COPY"):
        faults.append("copies everything")
    return faults


def test_image_breaks_no_rule() -> None:
    assert dockerfile_faults((ROOT / "Dockerfile").read_text()) == []
    linter = shutil.which("hadolint")
    if linter:
        done = subprocess.run([linter, str(ROOT / "Dockerfile")], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("PYTHON=3.11.14-slim-bookworm", "PYTHON=3-slim"),
        ("USER 1000", "USER root"),
        ("--no-install-recommends ", ""),
        ("-c clusters/constraints.txt ", ""),
        ("RUN sh /opt/raygrid/nodes/check.sh", "RUN true"),
        ('ARG COMMIT=""', "ARG AWS_SECRET_ACCESS_KEY"),
        ("COPY raygrid raygrid", "COPY . ."),
        ("COPY raygrid raygrid", "ADD https://example.org/x /x"),
    ],
)
def test_a_bad_image_is_found(old: str, new: str) -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert old in text
    assert dockerfile_faults(text.replace(old, new))


def test_image_has_what_it_copies_and_no_more() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    kept = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert lines[0] == "*"
    for source in re.findall(r"(?m)^COPY (?!--from)(.*)$", (ROOT / "Dockerfile").read_text()):
        for path in source.split()[:-1]:
            assert path.split("/")[0] in kept
            assert (ROOT / path).exists()


def test_pins_satisfy_the_package() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (CLUSTERS / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in map(Requirement, [*project["dependencies"], "boto3"]):
        version = pins.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not pinned"
        assert requirement.specifier.contains(version), f"{requirement} is pinned to {version}"
    assert ray_cluster()["spec"]["rayVersion"] == pins["ray"]


# --- node scripts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", sorted(path.name for path in (CLUSTERS / "nodes").glob("*.sh")))
def test_scripts_are_shell(script: str) -> None:
    path = CLUSTERS / "nodes" / script
    shell = "sh" if path.read_text().startswith("#!/bin/sh") else "bash"
    done = subprocess.run([shell, "-n", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert os.access(path, os.X_OK)


def test_a_node_is_set_up_and_set_up_again(tmp_path: Path) -> None:
    """Variables are kept, changed and quoted; the token is closed to others; a complete environment is left alone."""
    import hashlib

    environment = tmp_path / "raygrid-env"
    (environment / "bin").mkdir(parents=True)
    wanted = hashlib.sha256((CLUSTERS / "constraints.txt").read_bytes()).hexdigest()[:16]
    (environment / ".complete").write_text(f"{wanted}\n")
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("t")
    (tmp_path / ".ray" / "auth_token").chmod(0o644)

    def setup(*pairs: str) -> None:
        run = [str(CLUSTERS / "nodes" / "setup.sh"), *pairs]
        subprocess.run(run, check=True, env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]})

    setup("RAYGRID_STORE=s3://a/b c", "AWS_REGION=x")
    setup("MLFLOW_TRACKING_URI=http://127.0.0.1:5000")
    setup("RAYGRID_STORE=s3://new")
    asked = 'echo "$RAYGRID_STORE|$AWS_REGION|$MLFLOW_TRACKING_URI|$RAY_AUTH_MODE|$PATH"'
    shown = subprocess.run(
        ["bash", "-c", f". ~/.bashrc; . ~/.bashrc; {asked}"],
        env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    store, region, mlflow, mode, path = shown.split("|")
    assert (store, region, mlflow, mode) == ("s3://new", "x", "http://127.0.0.1:5000", "token")
    assert path.split(":").count(f"{tmp_path}/raygrid-env/bin") == 1
    assert (tmp_path / ".raygrid.env").stat().st_mode & 0o077 == 0
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o077 == 0
    assert (tmp_path / ".bashrc").read_text().count("raygrid.env") == 1


def test_a_node_without_a_token_is_refused(tmp_path: Path) -> None:
    import hashlib

    (tmp_path / "raygrid-env").mkdir()
    wanted = hashlib.sha256((CLUSTERS / "constraints.txt").read_bytes()).hexdigest()[:16]
    (tmp_path / "raygrid-env" / ".complete").write_text(wanted)
    done = subprocess.run(
        [str(CLUSTERS / "nodes" / "setup.sh"), "A=b"],
        env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "ray get-auth-token --generate" in done.stderr


def test_a_spot_notice_drains_the_node(tmp_path: Path) -> None:
    """The metadata service asks for a token, says nothing, then that the machine goes: Ray is told until it has heard."""
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    asked: list[str] = []

    class Metadata(BaseHTTPRequestHandler):
        def answer(self, code: int, text: str = "") -> None:
            self.send_response(code)
            self.end_headers()
            self.wfile.write(text.encode())

        def do_PUT(self) -> None:
            assert self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
            self.answer(200, "secret")

        def do_GET(self) -> None:
            if self.headers["X-aws-ec2-metadata-token"] != "secret":
                return self.answer(401)
            asked.append(self.path)
            if len(asked) < 2:
                return self.answer(404)
            return self.answer(200, '{"action": "terminate", "time": "2030-01-01T00:00:00Z"}')

        def log_message(self, format: str, *args: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    ray = tmp_path / "ray"
    ray.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/called\n[ $(wc -l < {tmp_path}/called) -gt 1 ]\n')
    ray.chmod(0o755)
    environment = {
        "HOME": str(tmp_path),
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "RAYGRID_METADATA": f"http://127.0.0.1:{server.server_port}",
    }
    script = [sys.executable, str(CLUSTERS / "nodes" / "spot.py"), "aws"]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=60)
    server.shutdown()
    assert done.returncode == 0, done.stderr
    called = (tmp_path / "called").read_text().splitlines()
    assert len(called) == 2 and called[0] == called[1], "the first time it refused"
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == [
        "notice", "ray drain-node", "notice", "Ray knows"
    ]  # fmt: skip
    assert called[0].startswith("drain-node --reason DRAIN_NODE_REASON_PREEMPTION")
    assert "terminate" in called[0]
    assert asked == ["/latest/meta-data/spot/instance-action"] * 3


def _every(check: Callable[[str], bool], *patterns: str) -> list[str]:
    return [
        str(path) for pattern in patterns for path in ROOT.glob(pattern) if path.is_file() and check(path.read_text())
    ]


def test_no_file_names_an_account_or_a_key() -> None:
    secret = re.compile(r"AKIA[0-9A-Z]{16}|\b\d{12}\b|BEGIN [A-Z ]*PRIVATE KEY")
    assert _every(lambda text: bool(secret.search(text)), "clusters/**/*", "Dockerfile") == []


# --- README --------------------------------------------------------------------------------------------------------


def test_costs_are_those_of_the_price_table() -> None:
    import csv

    with (ROOT / "raygrid" / "prices.csv").open() as file:
        prices = {row["instance_type"]: row for row in csv.DictReader(file) if row["provider"] == "aws"}
    text = (CLUSTERS / "README.md").read_text()
    kinds = {name: kind["node_config"]["InstanceType"] for name, kind in config("aws")["available_node_types"].items()}
    head, worker = prices[kinds["head"]], prices[kinds["gpu"]]
    demand, spot = float(worker["usd_per_hour_on_demand"]), float(worker["usd_per_hour_spot"])
    assert f"| head, `{kinds['head']}` | {float(head['usd_per_hour_on_demand']):.2f} | |" in text
    assert f"| one GPU worker, `{kinds['gpu']}` ({worker['gpu']}) | {demand:.2f} | {spot:.2f} |" in text
    assert f"| eight of them | {8 * demand:.2f} | {8 * spot:.2f} |" in text
    assert worker["date"] in text


def test_commands_of_the_readme_exist() -> None:
    """Every file and module that a command names is there, and launch knows every option."""
    text = (CLUSTERS / "README.md").read_text()
    blocks = "\n".join(re.findall(r"```\n(.*?)```", text, re.DOTALL))
    for path in set(re.findall(r"clusters/[\w./-]+", blocks)):
        assert (ROOT / path).exists(), path
    from raygrid.launch import parser

    launch = parser()
    lines = re.findall(r"python -m raygrid\.launch (.*?)(?:  |\n|$)", blocks)
    assert len(lines) >= 2
    for line in lines:
        launch.parse_args([word for word in line.split() if word != "#"])
    for name in re.findall(r"--parameter-overrides (.*)", blocks)[0].split():
        assert name.split("=")[0] in template()["Parameters"]
