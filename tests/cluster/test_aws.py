"""From an empty (simulated) account to results and down again: stack, fill, ray up, launch, spot loss, ray down."""

from __future__ import annotations

import collections
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.conftest import STUDY
from tests.cluster.ec2 import Ec2, tags
from tests.cluster.lab import ROOT, Host, Lab, reference, until
from tests.cluster.test_local import refused_without_token

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def lab(hosts: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("aws"), "10.20.0.1", 16) as lab:
        lab.start_s3()
        yield lab


@pytest.fixture(scope="module")
def ec2(lab: Lab) -> Iterator[Ec2]:
    ec2 = Ec2(lab)
    ec2.start()
    lab.inside(lambda: until(lambda: _answers(ec2), 60, "moto answers"))
    yield ec2
    lab.closing.set()
    ec2.thread.join(10)


def _answers(ec2: Ec2) -> bool:
    try:
        ec2.client().describe_regions()
    except Exception:
        return False
    return True


@pytest.mark.fault("a spot machine that is taken back")
def test_from_an_empty_account_to_results_and_down_again(lab: Lab, ec2: Ec2, tmp_path: Path) -> None:
    study = lab.folder / "lab.yaml"
    study.write_text(STUDY)
    undisturbed = reference(study, tmp_path / "reference")
    next(undisturbed)
    laptop = lab.host("laptop", "10.20.0.2", AWS_ENDPOINT_URL=ec2.url, RAY_AUTH_MODE="token")
    lab.inside(lambda: make_stack(ec2))
    file = cluster_file(lab, laptop)

    laptop.run("umask 077; ray get-auth-token --generate")
    laptop.run(f"ray up -y {file}", timeout=400)
    head = next(i for i in ec2.instances() if tags(i)["ray-node-type"] == "head")
    assert len(ec2.instances()) == 1, "no worker before there is work"
    assert_private(lab.inside(lambda: what_was_asked_for(ec2)), {"head": 1})
    body = ec2.bodies[head["InstanceId"]]
    refused_without_token(body)

    launch = f"python -m raygrid.launch --cluster {file} {study} --out {lab.folder}/results"
    job = laptop.spawn(launch, lab.folder / "launch.log")
    until(lambda: len(ec2.workers()) == 2, 180, "two workers were started")
    assert_private(lab.inside(lambda: what_was_asked_for(ec2)), {"head": 1, "worker": 2})
    trained = until(lambda: set(lab.leases().values()), 240, "a worker trains")
    lost = next(id for id, host in ec2.bodies.items() if host.name in trained)
    assert ec2.bodies[lost].name != body.name, "the head trains nothing"
    victim = ec2.bodies[lost]
    ec2.take_back(lost)
    until(lambda: "Ray knows" in victim.run("cat ~/spot.log", check=False).stdout, 90, "Ray has taken the notice")
    victim.kill()
    assert job.wait(timeout=600) == 0, (lab.folder / "launch.log").read_text()[-4000:]

    expected = next(undisturbed)
    assert lab.records() == expected
    assert (lab.folder / "results" / "lab" / "results.parquet").exists()
    assert {kind for _, kind in ec2.started} == {"m7i.large", "g6.2xlarge"}
    until(lambda: not ec2.workers(), 240, "idle workers end", every=3)
    laptop.run(f"ray down -y {file}")
    until(lambda: not ec2.instances(), 60, "nothing is left")
    assert ec2.trouble is None


def make_stack(ec2: Ec2) -> None:
    """The stack of clusters/aws-iam, with an image that the simulated account knows."""
    image = {"Name": "/raygrid/image", "Value": "ami-0abcdef1234567890", "Type": "String"}
    ec2.client("ssm").put_parameter(**image)
    client = ec2.client("cloudformation")
    text = (ROOT / "clusters" / "aws-iam" / "raygrid.yaml").read_text()
    text = re.sub(r"/aws/service/deeplearning/\S+", "/raygrid/image", text)
    client.create_stack(StackName="raygrid", TemplateBody=text, Capabilities=["CAPABILITY_NAMED_IAM"])
    stack = client.describe_stacks(StackName="raygrid")["Stacks"][0]
    assert stack["StackStatus"] == "CREATE_COMPLETE", stack


def cluster_file(lab: Lab, laptop: Host) -> Path:
    """clusters/aws.yaml filled from the stack. Changed for the lab: no SSM in the way of ssh, the lab's bucket, two
    workers that are idle after some seconds, little shared memory."""
    file = lab.folder / "aws.yaml"
    file.write_text((ROOT / "clusters" / "aws.yaml").read_text())
    laptop.run(f"python {ROOT}/clusters/fill.py {file} --stack raygrid --region us-west-2")
    assert "<bucket>" not in file.read_text()
    config: dict[str, Any] = yaml.safe_load(file.read_text())
    for key in ("ssh_proxy_command", "ssh_proxy_use_node_id"):
        del config["auth"][key]
    config["max_workers"] = config["available_node_types"]["gpu"]["max_workers"] = 2
    config["idle_timeout_minutes"] = 0.3
    bucket = config["setup_commands"][0].split("s3://")[1].split("/")[0]
    text = json.dumps(config).replace(f"s3://{bucket}/", "s3://grid/")
    text = text.replace("--disable-usage-stats", "--disable-usage-stats --object-store-memory=100000000")
    file.write_text(yaml.safe_dump(json.loads(text), width=1000))
    return file


def what_was_asked_for(ec2: Ec2) -> dict[str, Any]:
    """The whole account, as far as it matters."""
    client, iam = ec2.client(), ec2.client("iam")
    used = {
        g["GroupId"]
        for r in client.describe_instances()["Reservations"]
        for i in r["Instances"]
        for g in i["SecurityGroups"]
    }
    return {
        "instances": [
            i
            for r in client.describe_instances()["Reservations"]
            for i in r["Instances"]
            if i["State"]["Name"] in ("pending", "running")
        ],
        "volumes": client.describe_volumes()["Volumes"],
        "groups": client.describe_security_groups(GroupIds=sorted(used))["SecurityGroups"],
        "roles": {
            role["RoleName"]: [
                p["PolicyName"] for p in iam.list_attached_role_policies(RoleName=role["RoleName"])["AttachedPolicies"]
            ]
            for role in iam.list_roles()["Roles"]
        },
    }


def assert_private(account: dict[str, Any], expected: dict[str, int]) -> None:
    """What ray up and the autoscaler asked for is what the file promises, for so many machines of each kind."""
    assert collections.Counter(tags(instance)["ray-node-type"] for instance in account["instances"]) == expected
    for instance in account["instances"]:
        kind = tags(instance)["ray-node-type"]
        assert "PublicIpAddress" not in instance or not instance["PublicIpAddress"], instance
        assert instance["MetadataOptions"]["HttpTokens"] == "required"
        assert instance["IamInstanceProfile"]["Arn"].rsplit("/", 1)[1] == f"raygrid-{kind}"
        assert instance.get("InstanceLifecycle") == ("spot" if kind == "worker" else None)
    attached = [volume for volume in account["volumes"] if volume["Attachments"]]
    assert len(attached) >= len(account["instances"]) and all(volume["Encrypted"] for volume in attached)
    for group in account["groups"]:
        for rule in group["IpPermissions"]:
            assert not rule.get("IpRanges") and not rule.get("Ipv6Ranges"), rule
            assert [pair["GroupId"] for pair in rule["UserIdGroupPairs"]] == [group["GroupId"]]
    assert set(account["roles"]) == {"raygrid-head", "raygrid-worker"}
    assert not any("FullAccess" in policy for policies in account["roles"].values() for policy in policies)
