"""Weights and progress as safetensors: tensors and one canonical JSON text, no code to run on reading.

safetensors writes several metadata keys in random order, so a file has one at most; equal weights give equal bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from raygrid.cell import canonical
from raygrid.data.cache import cache_folder
from raygrid.errors import IntegrityError
from raygrid.member import Member
from raygrid.record import Evaluation
from raygrid.store import Store, sha256_of

KEY = "raygrid"
"""the one metadata key"""


def encode(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> tuple[bytes, str]:
    """A file's bytes and their sha256."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = safetensors.torch.save(whole, metadata={KEY: canonical(dict(facts))})
    return data, sha256_of(data)


def decode(data: bytes, where: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of a file. Raises IntegrityError where the bytes are anything else (a pickle, say)."""
    try:
        tensors = safetensors.torch.load(data)
        size = int.from_bytes(data[:8], "little")
        facts = json.loads(json.loads(data[8 : 8 + size]).get("__metadata__", {}).get(KEY, "{}"))
    except (SafetensorError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise IntegrityError(f"{where} is not a safetensors file of raygrid ({error})") from None
    return tensors, facts


def fetch(
    store: Store, path: str, sha256: str, cache: Path | None = None, owner: str | None = None
) -> dict[str, Tensor]:
    """A base's tensors, through the node's cache of verified files; verified again at every reading. Raises
    IntegrityError where they are not those of `owner`, a cell's hash."""
    local = cache_folder(cache) / "checkpoints" / f"{sha256}.safetensors"
    data = local.read_bytes() if local.exists() else b""
    if sha256_of(data) != sha256:
        try:
            store.get_file(path, local, sha256)
        except FileNotFoundError:
            raise IntegrityError(f"store: {store.uri(path)} is missing; delete its record to train it again") from None
        data = local.read_bytes()
    tensors, facts = decode(data, store.uri(path))
    if owner not in (None, facts.get("cell")):
        raise IntegrityError(f"store: {store.uri(path)} is the checkpoint of another cell, {facts.get('cell')}")
    return tensors


# --- progress --------------------------------------------------------------------------------------------------------


def pack(member: Member) -> bytes:
    """Everything that a cell needs to go on: what learns, momentum, losses, history, step."""
    tensors = {f"model.{name}": t for name, t in _moving(member).items()}
    for index, buffer in enumerate(member.optimizer.momentum()):
        if buffer is not None:
            tensors[f"momentum.{index}"] = buffer
    tensors["losses"] = member.losses[: member.step]
    facts = {
        "cell": member.cell.hash,
        "step": member.step,
        "seconds": member.seconds,
        "history": [e.model_dump(mode="json") for e in member.history],
    }
    facts["sha256"] = _seal(tensors, facts)
    return encode(tensors, facts)[0]


def _seal(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    """Digest of all of a progress: it has no record that could hold one, and a flipped bit would change the results."""
    seen = hashlib.sha256(canonical({name: value for name, value in facts.items() if name != "sha256"}).encode())
    for name in sorted(tensors):
        seen.update(name.encode())
        seen.update(tensors[name].detach().cpu().contiguous().numpy())
    return seen.hexdigest()


def restore(data: bytes, member: Member) -> None:
    """Put a member where its progress says. Raises IntegrityError, the member untouched, where it does not fit."""
    tensors, facts = decode(data, "progress")
    try:
        history = [Evaluation.model_validate(e) for e in facts["history"]]
        step, seconds = int(facts["step"]), float(facts["seconds"])
        moving = _moving(member)
        saved = {name: tensors[f"model.{name}"] for name in moving}
        losses = tensors["losses"]
        if facts.pop("sha256") != _seal(tensors, facts):
            raise IntegrityError("progress was changed after it was written")
    except (KeyError, ValueError, TypeError) as error:
        raise IntegrityError(f"progress lacks {error}") from None
    fits = all(saved[name].shape == t.shape and saved[name].dtype == t.dtype for name, t in moving.items())
    if facts.get("cell") != member.cell.hash or not fits or len(losses) != step or not 0 <= step <= member.total:
        raise IntegrityError("progress belongs to another cell")
    with torch.no_grad():
        for name, tensor in moving.items():
            tensor.copy_(saved[name])
    member.optimizer.restore([tensors.get(f"momentum.{i}") for i in range(len(member.optimizer.parameters))])
    member.losses[:step] = losses.to(member.losses.device)
    member.step, member.history, member.seconds = step, history, seconds


def _moving(member: Member) -> dict[str, Tensor]:
    """What is not frozen. The normalisation is as it was at step 0."""
    return member.network.tensors(member.cell.frozen + 1, member.network.depth)
