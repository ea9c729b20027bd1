"""What a plan costs in dollars on the node types of a cluster file.

Prices are a dated table that comes with raygrid (`prices.csv`, approximate) and that a file with the same columns
overrides, row by row. Data and its reading only: no network, no cloud account.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml

from raygrid.cost import DEVICES, Meter, kind_of
from raygrid.errors import UserError, closest
from raygrid.plan import Plan, simulate

T = TypeVar("T")
PROVIDERS = ("aws", "gcp")
"""whose prices the table has"""
COLUMNS = (
    "provider",
    "instance_type",
    "gpus",
    "gpu",
    "vcpus",
    "usd_per_hour_on_demand",
    "usd_per_hour_spot",
    "date",
    "source",
)


def bootstrap() -> Path:
    """The cluster file that `ray up` leaves on the head."""
    return Path.home() / "ray_bootstrap_config.yaml"


@dataclass(frozen=True)
class Price:
    """One row of the table. On GCP an accelerator that is attached to a machine type has a row of its own."""

    provider: str
    instance_type: str
    gpus: int
    gpu: str
    """a key of `cost.DEVICES`; empty: none"""
    vcpus: int
    on_demand: float
    """US dollars an hour"""
    spot: float | None
    """US dollars an hour"""
    date: str
    source: str


@dataclass(frozen=True)
class NodeType:
    """A node type of a cluster file."""

    name: str
    provider: str
    instance_type: str
    """with its accelerators: `n1-standard-8 + 1 x nvidia-tesla-t4`"""
    kind: str
    """device kind, a key of `cost.DEVICES`"""
    devices: int
    """devices a node: GPUs, or cores (two vCPUs each) where there are none"""
    nodes: int
    """the most that the file allows"""
    head: bool
    spot: bool
    usd_per_hour: float
    """of one node, on demand or spot as the file says"""
    date: str


@dataclass(frozen=True)
class Rate:
    """What an hour of one device costs, in US dollars."""

    low: float
    high: float
    """equal to `low` where one machine type only comes into question"""
    of: str
    """`aws g5.xlarge (spot)`; the cheapest and the dearest where there are several"""
    date: str


@dataclass(frozen=True)
class Quote:
    """What a plan takes and costs with one node type at its maximum, the head node included."""

    node: NodeType
    devices: int
    hours: float
    """predicted, without the start-up of nodes"""
    usd: float


def load_prices(override: str | Path | None = None) -> dict[tuple[str, str], Price]:
    """(provider, instance type) -> price; rows of the file `override` take the place of raygrid's own.

    Raises UserError, naming file, line and column, where a row is wrong.
    """
    text = (resources.files("raygrid") / "prices.csv").read_text(encoding="utf-8")
    prices = _parse(text, "prices.csv")
    if override is not None:
        try:
            prices |= _parse(Path(override).read_text(encoding="utf-8"), str(override))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"prices {override}: cannot be read ({error})") from None
    return prices


def _parse(text: str, where: str) -> dict[tuple[str, str], Price]:
    reader = csv.DictReader(text.splitlines())
    missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise UserError(f"prices {where}: no column {', '.join(missing)} (needed: {', '.join(COLUMNS)})")
    found = {}
    for line, row in enumerate(reader, start=2):
        try:
            price = Price(
                provider=row["provider"],
                instance_type=row["instance_type"],
                gpus=int(row["gpus"]),
                gpu=row["gpu"] or "",
                vcpus=int(row["vcpus"]),
                on_demand=float(row["usd_per_hour_on_demand"]),
                spot=float(row["usd_per_hour_spot"]) if row["usd_per_hour_spot"] else None,
                date=row["date"],
                source=row["source"],
            )
        except (TypeError, ValueError) as error:
            raise UserError(f"prices {where}, line {line}: {error}") from None
        if price.gpus and price.gpu not in DEVICES:
            raise UserError(f"prices {where}, line {line}: gpu {price.gpu!r} is not known{closest(price.gpu, DEVICES)}")
        found[price.provider, price.instance_type] = price
    return found


def _read(path: str | Path) -> tuple[str, dict[str, Any]]:
    """The provider of a cluster file, and what the file says. Raises UserError where it is no cluster file."""
    try:
        documents = list(yaml.safe_load_all(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"cluster file {path}: cannot be read ({' '.join(str(error).split())})") from None
    if any(isinstance(document, dict) and "apiVersion" in document for document in documents):
        return "kubernetes", {}
    try:
        [raw] = documents
        return str(raw["provider"]["type"]), dict(raw)
    except (KeyError, TypeError, ValueError):
        raise UserError(_no_cluster_file(path)) from None


def _no_cluster_file(path: str | Path) -> str:
    return f"cluster file {path}: expected the keys provider.type and available_node_types of a `ray up` file"


def unpriced(path: str | Path) -> str | None:
    """The provider of a cluster file if raygrid knows no prices of it; None where it does. Raises UserError where the
    file is no cluster file."""
    provider, _ = _read(path)
    return None if provider in PROVIDERS else provider


def node_types(path: str | Path, prices: Mapping[tuple[str, str], Price] | None = None) -> list[NodeType]:
    """The node types of a Ray cluster file (`ray up`, providers aws and gcp) with their prices.

    Raises UserError where the file is no cluster file, or a price is not in the table.
    """
    prices = load_prices() if prices is None else prices
    provider, raw = _read(path)
    if provider not in PROVIDERS:
        raise UserError(f"cluster file {path}: provider {provider!r} has no prices{closest(provider, PROVIDERS)}")
    types, head, limit = raw.get("available_node_types"), raw.get("head_node_type"), raw.get("max_workers")
    if not isinstance(types, dict) or not types:
        raise UserError(_no_cluster_file(path))
    try:
        most = None if limit is None else _is(int, limit, "max_workers")
        return [_node_type(name, spec, provider, name == head, most, prices) for name, spec in types.items()]
    except UserError as error:
        raise UserError(f"cluster file {path}: {error}") from None


def _is(kind: type[T], value: Any, where: str) -> T:
    """The value, which must be of this type. Raises UserError."""
    if type(value) is not kind:
        wanted = {dict: "a group of keys", list: "a list", int: "a whole number"}[kind]
        raise UserError(f"{where}: expected {wanted}, found {value!r}")
    return value


def _node_type(
    name: str,
    spec: Any,
    provider: str,
    head: bool,
    limit: int | None,
    prices: Mapping[tuple[str, str], Price],
) -> NodeType:
    at = f"available_node_types.{name}"
    spec = _is(dict, spec, at)
    config = _is(dict, spec.get("node_config") or {}, f"{at}.node_config")
    machine = str(config.get("InstanceType" if provider == "aws" else "machineType", "")).rsplit("/", 1)[-1]
    parts = [(1, _price(provider, machine, prices))]
    at_extra = f"{at}.node_config.guestAccelerators"
    for extra in _is(list, config.get("guestAccelerators") or [], at_extra):
        kind = str(_is(dict, extra, at_extra).get("acceleratorType", "")).rsplit("/", 1)[-1]
        parts.append((_is(int, extra.get("acceleratorCount", 1), at_extra), _price(provider, kind, prices)))
    spot = _is_spot(config)
    gpus = sum(count * price.gpus for count, price in parts)
    workers = _is(int, spec.get("max_workers", limit or 0), f"{at}.max_workers")
    return NodeType(
        name=name,
        provider=provider,
        instance_type=" + ".join([machine, *(f"{count} x {price.instance_type}" for count, price in parts[1:])]),
        kind=next((price.gpu for _, price in parts if price.gpus), "cpu"),
        devices=gpus or max(1, sum(price.vcpus for _, price in parts) // 2),
        nodes=1 if head else min(workers, workers if limit is None else limit),
        head=head,
        spot=spot,
        usd_per_hour=sum(
            count * ((price.spot or price.on_demand) if spot else price.on_demand) for count, price in parts
        ),
        date=min(price.date for _, price in parts),
    )


def _price(provider: str, machine: str, prices: Mapping[tuple[str, str], Price]) -> Price:
    found = prices.get((provider, machine))
    if found is None:
        known = [name for owner, name in prices if owner == provider]
        raise UserError(
            f"no price for {provider} {machine!r}{closest(machine, known)}; "
            f"add a row to a file with the columns {', '.join(COLUMNS)}"
        )
    return found


def _is_spot(config: Mapping[str, Any]) -> bool:
    market = _is(dict, config.get("InstanceMarketOptions") or {}, "InstanceMarketOptions")
    if market.get("MarketType") == "spot":
        return True
    scheduling = config.get("scheduling") or {}
    rules = scheduling if isinstance(scheduling, list) else [scheduling]
    return any(
        _is(dict, rule, "scheduling").get("preemptible") or rule.get("provisioningModel") == "SPOT" for rule in rules
    )


def quotes(
    plan: Plan,
    path: str | Path,
    prices: Mapping[tuple[str, str], Price] | None = None,
    done: Mapping[str, str] | None = None,
) -> list[Quote]:
    """Predicted hours and dollars of a plan for every worker node type of a cluster file, at its maximum each.

    The head node is paid for throughout and trains only where the file has no other node type. Storage and traffic
    are not counted. Raises UserError as `node_types` does.
    """
    nodes = node_types(path, prices)
    meter = Meter(plan.facts)
    heads = [node for node in nodes if node.head]
    found = []
    for node in [node for node in nodes if not node.head and node.nodes > 0] or heads:
        devices = node.devices * node.nodes
        largest = plan.study.execution.cohort
        hours = simulate(plan, devices, kind=node.kind, largest=largest, meter=meter, done=done).makespan / 3600
        rate = node.usd_per_hour * node.nodes + sum(head.usd_per_hour for head in heads if head is not node)
        found.append(Quote(node, devices, hours, hours * rate))
    return found


def rate(device: str, cluster: Path | None = None) -> Rate | None:
    """The price of an hour of a device, by the name that records give it; None where the table does not know it.

    On the head of a `ray up` cluster (`cluster` is its file) that of the workers with such devices; elsewhere the range
    of the list prices on demand of such a GPU, per GPU of a whole machine. A processor's name says no machine type.
    """
    kind, prices = kind_of(device) if is_gpu(device) else "cpu", load_prices()
    if "MIG" in device.split():  # a part of a device
        return None
    if cluster is not None and cluster.is_file():
        try:
            nodes = [n for n in node_types(cluster, prices) if n.kind == kind and (n.nodes > 0 or n.head)]
        except UserError:
            return None
        nodes = [n for n in nodes if not n.head] or nodes
        found = [
            (n.usd_per_hour / n.devices, f"{n.provider} {n.instance_type}{' (spot)' * n.spot}", n.date) for n in nodes
        ]
    else:
        found = [
            (p.on_demand / p.gpus, f"{p.provider} {p.instance_type}", p.date)
            for p in prices.values()
            if p.gpus and p.vcpus and p.gpu == kind
        ]
    if not found:
        return None
    (low, cheap, _), (high, dear, _) = min(found), max(found)
    return Rate(low, high, cheap if cheap == dear else f"{cheap} to {dear}", min(date for *_, date in found))


def is_gpu(device: str) -> bool:
    """Whether a record's device is a GPU; else it is a processor, of which a network has a core or a few."""
    return bool(re.search(r"nvidia|tesla|geforce|quadro", device, re.IGNORECASE))
