"""What no file that starts machines may say, as functions from a document to its faults."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

WORLD = ("0.0.0.0/0", "::/0")


class _Template(yaml.SafeLoader):
    """YAML with CloudFormation's short forms: `!Ref X` is read as {"Ref": "X"}."""


def _short(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> dict[str, Any]:
    if isinstance(node, yaml.ScalarNode):
        return {suffix: loader.construct_scalar(node)}
    if isinstance(node, yaml.SequenceNode):
        return {suffix: loader.construct_sequence(node, deep=True)}
    assert isinstance(node, yaml.MappingNode)
    return {suffix: loader.construct_mapping(node, deep=True)}


_Template.add_multi_constructor("!", _short)


def read_template(text: str) -> dict[str, Any]:
    return yaml.load(text, _Template)


def walk(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a document with its path."""
    yield path, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from walk(inner, f"{path}.{key}" if path else str(key))


def cluster_faults(config: dict[str, Any]) -> list[str]:
    """Faults of a `ray up` file of any provider."""
    faults = [f"{path}: open to the world" for path, value in walk(config) if value in WORLD]
    faults += [
        f"{path}: FullAccess" for path, value in walk(config) if "FullAccess" in str(value) and isinstance(value, str)
    ]
    for when in ("head", "worker"):
        commands = config[f"{when}_start_ray_commands"]
        starts = [command for command in commands if "ray start" in command]
        if len(starts) != 1:
            faults.append(f"{when}_start_ray_commands: {len(starts)} times ray start")
        faults += [f"{when}: ray start without a token" for c in starts if "RAY_AUTH_MODE=token ray start" not in c]
    for path, value in walk(config):
        if isinstance(value, str) and re.search(r"(dashboard-)?host[= ]+(0\.0\.0\.0|::|\*)", value):
            faults.append(f"{path}: listens to the world")
    if not any("dashboard-host=127.0.0.1" in command for command in config["head_start_ray_commands"]):
        faults.append("head: the dashboard's address is not said")
    if "~/.ray/auth_token" not in config.get("file_mounts", {}):
        faults.append("file_mounts: no token reaches the nodes")
    provider = config["provider"]
    if provider["type"] != "local":
        if not provider.get("use_internal_ips"):
            faults.append("provider.use_internal_ips: machines have public addresses")
        if not config["auth"].get("ssh_proxy_command"):
            faults.append("auth.ssh_proxy_command: ssh needs an open port")
        head = config["available_node_types"][config["head_node_type"]]
        if head["resources"].get("CPU") != 0:
            faults.append("head: trials may run on it")
        for name, kind in config["available_node_types"].items():
            if name != config["head_node_type"] and kind.get("min_workers", 0) != 0:
                faults.append(f"{name}: workers that nobody asked for")
    return faults


def aws_faults(config: dict[str, Any]) -> list[str]:
    """Faults of a `ray up` file of provider aws, beside those of any."""
    faults = []
    profiles = {}
    for name, kind in config["available_node_types"].items():
        node = kind["node_config"]
        options = node.get("MetadataOptions", {})
        if options.get("HttpTokens") != "required":
            faults.append(f"{name}: answers metadata requests without a token (IMDSv1)")
        if options.get("HttpPutResponseHopLimit") != 1:
            faults.append(f"{name}: metadata reachable over more than one hop")
        disks = node.get("BlockDeviceMappings", [])
        if not disks or not all(disk["Ebs"].get("Encrypted") is True for disk in disks):
            faults.append(f"{name}: a disk that is not encrypted")
        if not all(disk["Ebs"].get("DeleteOnTermination") is True for disk in disks):
            faults.append(f"{name}: a disk that outlives its machine")
        if not node.get("SecurityGroupIds"):
            faults.append(f"{name}: no security group, so Ray makes one with port 22 open to the world")
        if not node.get("SubnetIds"):
            faults.append(f"{name}: no subnet, so Ray takes a public one")
        if any(i.get("AssociatePublicIpAddress") for i in node.get("NetworkInterfaces", [])):
            faults.append(f"{name}: a public address")
        profile = node.get("IamInstanceProfile", {})
        profiles[name] = profile.get("Name") or profile.get("Arn")
        if not profiles[name]:
            faults.append(f"{name}: no role, so Ray gives the head full access to EC2 and S3")
    head = profiles.pop(config["head_node_type"])
    if head in profiles.values():
        faults.append("workers have the head's role")
    return faults


def template_faults(template: dict[str, Any]) -> list[str]:
    """Faults of the CloudFormation template."""
    faults = []
    resources: dict[str, Any] = template["Resources"]
    for name, resource in resources.items():
        kind, properties = resource["Type"], resource.get("Properties", {})
        if kind == "AWS::EC2::SecurityGroup":
            for rule in properties.get("SecurityGroupIngress", []):
                faults.append(f"{name}: lets in {rule}")
            for rule in properties.get("SecurityGroupEgress", []):
                if rule.get("FromPort") not in (80, 443) or rule["FromPort"] != rule.get("ToPort"):
                    faults.append(f"{name}: lets out {rule}")
        elif kind == "AWS::EC2::SecurityGroupIngress":
            if properties.get("SourceSecurityGroupId") != properties.get("GroupId"):
                faults.append(f"{name}: lets in others than its own")
        elif kind == "AWS::EC2::Subnet":
            if properties.get("MapPublicIpOnLaunch") is not False:
                faults.append(f"{name}: gives out public addresses")
        elif kind == "AWS::S3::Bucket":
            block = properties.get("PublicAccessBlockConfiguration", {})
            if [block.get(key) for key in _BLOCKS] != [True] * 4:
                faults.append(f"{name}: could be made public")
            if "BucketEncryption" not in properties:
                faults.append(f"{name}: not encrypted")
            if resource.get("DeletionPolicy") != "Retain":
                faults.append(f"{name}: results go with the stack")
        if kind.startswith("AWS::IAM::"):
            faults += [f"{name}: {fault}" for fault in _role_faults(properties)]
    policies = [r["Properties"]["PolicyDocument"] for r in resources.values() if r["Type"] == "AWS::S3::BucketPolicy"]
    if not any(s["Effect"] == "Deny" and "aws:SecureTransport" in str(s) for p in policies for s in p["Statement"]):
        faults.append("the bucket answers without TLS")
    for path, value in walk(template):
        if value in WORLD and not path.endswith((".DestinationCidrBlock", ".CidrIp")):
            faults.append(f"{path}: open to the world")
    return faults


_BLOCKS = ("BlockPublicAcls", "BlockPublicPolicy", "IgnorePublicAcls", "RestrictPublicBuckets")
_BOUND = ("ec2:RunInstances", "ec2:TerminateInstances", "ec2:CreateTags", "iam:PassRole")


def _role_faults(properties: dict[str, Any]) -> Iterator[str]:
    for arn in properties.get("ManagedPolicyArns", []):
        if "Access" in str(arn) or "Administrator" in str(arn):
            yield f"policy {arn}"
    documents = [policy["PolicyDocument"] for policy in properties.get("Policies", [])]
    documents += [properties["PolicyDocument"]] if "PolicyDocument" in properties else []
    for statement in [statement for document in documents for statement in document["Statement"]]:
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        for action in actions:
            if "*" in action:
                yield f"may do {action}"
            if action.startswith("s3:") and statement["Resource"] == "*":
                yield f"may do {action} anywhere"
            if action in _BOUND and statement["Resource"] == "*":
                yield f"may do {action} to anything"
            if action in ("ec2:TerminateInstances", "iam:PassRole") and "Condition" not in statement:
                yield f"may do {action} under no condition"


def may(template: dict[str, Any], role: str, action: str, path: str, **context: str) -> bool:
    """Whether a role may do something to an object of the bucket, by its own policies and the bucket's, as IAM reads
    them: allowed by one statement, denied by none. `context` holds keys of conditions (`s3:` is left out, - is _)."""
    resources = template["Resources"]
    own = resources[role]["Properties"]
    documents = [policy["PolicyDocument"] for policy in own["Policies"]]
    documents += [
        resources[arn["Ref"]]["Properties"]["PolicyDocument"] for arn in own["ManagedPolicyArns"] if "Ref" in arn
    ]
    documents += [r["Properties"]["PolicyDocument"] for r in resources.values() if r["Type"] == "AWS::S3::BucketPolicy"]
    keys = {f"s3:{name}".replace("_", "-").lower(): value for name, value in context.items()}
    keys["aws:securetransport"] = "true"
    effects = {
        statement["Effect"]
        for document in documents
        for statement in document["Statement"]
        if any(_like(action, one) for one in _texts(statement["Action"]))
        and any(_like(f"${{Bucket.Arn}}/{path}", one) for one in _texts(statement["Resource"]))
        and all(_holds(test, wanted, keys) for test, wanted in statement.get("Condition", {}).items())
    }
    return effects == {"Allow"}


def _texts(value: Any) -> list[str]:
    """One or many of a policy's values; `!Sub` and `!GetAtt` of a short form as text."""
    if isinstance(value, list):
        return [text for one in value for text in _texts(one)]
    if isinstance(value, dict):
        return [value["Sub"]] if "Sub" in value else [f"${{{value['GetAtt']}}}"] if "GetAtt" in value else []
    return [value]


def _like(text: str, pattern: str) -> bool:
    return re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), text) is not None


def _holds(test: str, wanted: dict[str, Any], keys: dict[str, str]) -> bool:
    if test == "Null":
        return all((key.lower() not in keys) == (value == "true") for key, value in wanted.items())
    assert test in ("Bool", "StringLike", "StringEquals"), f"{test}: not known here"
    return all(any(_like(keys.get(key.lower(), ""), one) for one in _texts(value)) for key, value in wanted.items())


def pod_faults(kind: str, pod: dict[str, Any]) -> list[str]:
    """Faults of a pod's specification."""
    faults = []
    for container in pod["containers"]:
        context = container.get("securityContext", {})
        if context.get("runAsNonRoot") is not True or context.get("allowPrivilegeEscalation") is not False:
            faults.append(f"{kind}/{container['name']}: may be root")
        if context.get("capabilities", {}).get("drop") != ["ALL"]:
            faults.append(f"{kind}/{container['name']}: keeps capabilities")
        image = container["image"]
        if image.endswith(":latest") or ":" not in image.rsplit("/", 1)[-1]:
            faults.append(f"{kind}/{container['name']}: image {image} is not pinned")
        for variable in container.get("env", []):
            if re.search(r"SECRET|TOKEN|PASSWORD|ACCESS_KEY", variable["name"]) and "value" in variable:
                faults.append(f"{kind}/{container['name']}: {variable['name']} in clear")
    if pod.get("hostNetwork") or pod.get("hostPID"):
        faults.append(f"{kind}: shares the host's namespaces")
    return faults
