"""Law: the content hash depends on pixels, labels and classes, and on nothing else; a wrong manifest is one message."""

import json
from pathlib import Path

import numpy as np
import pytest

from raygrid.data.arrays import Arrays
from raygrid.data.manifest import Manifest, read_manifest
from raygrid.data.shards import encode, image_digests, part_digest, write_data_set
from raygrid.errors import DataError, UserError


def made(folder: Path, **changes: object) -> Manifest:
    random = np.random.default_rng(0)
    parts = {
        part: (random.integers(0, 256, (n, 4, 4, 3), np.uint8), np.arange(n) % 3)
        for part, n in (("train", 9), ("test", 6))
    }
    pixel = changes.pop("pixel", None)
    if pixel is not None:
        parts["test"][0][2, 1, 1, 0] ^= 1
    if changes.pop("label", None) is not None:
        parts["train"][1][:2] = (1, 0)
    given: dict = {
        "name": "x",
        "classes": ("a", "b", "c"),
        "groups": (None, None, None),
        "parts": parts,
        "preprocessing": {"pixels": "made"},
        "source": "",
        "licence": "",
    }
    return write_data_set(folder, **(given | changes))


def test_names_and_notes_leave_the_hash_alone(tmp_path: Path) -> None:
    notes = {"name": "y", "source": "s", "licence": "l", "preprocessing": {}, "groups": ("natural", "man-made", None)}
    plain = made(tmp_path / "plain").sha256
    for key, value in notes.items():
        assert made(tmp_path / key, **{key: value}).sha256 == plain, key


@pytest.mark.parametrize(
    "change", [{"pixel": 1}, {"label": 1}, {"classes": ("b", "a", "c")}, {"classes": ("a", "b", "d")}]
)
def test_content_changes_the_hash(tmp_path: Path, change: dict) -> None:
    assert made(tmp_path / "changed", **change).sha256 != made(tmp_path / "plain").sha256


@pytest.mark.parametrize("cut", [1, 700, 3408])
def test_shards_leave_the_hash_alone(icons: Arrays, cut: int) -> None:
    whole = icons.manifest
    rows = np.arange(len(icons.train))
    pieces = [
        encode("train", i, icons.train.gather(r), icons.train.labels[r].astype(np.int16))[0]
        for i, r in enumerate(np.split(rows, [cut]))
    ]
    digests = b"".join(image_digests(icons.train.gather(r)) for r in np.split(rows, [cut]))
    resharded = whole.model_copy(
        update={
            "shards": (*pieces, *whole.of("test")),
            "train_sha256": part_digest(icons.train.labels, digests),
        }
    )
    resharded = Manifest.from_json(resharded.to_json())
    assert len(resharded.shards) == 3
    assert resharded.sha256 == whole.sha256


def test_json_round_trip(icons: Arrays) -> None:
    text = icons.manifest.to_json()
    assert Manifest.from_json(text) == icons.manifest
    assert Manifest.from_json(text).to_json() == text


WRONG = {
    "traversal": (lambda m: m["shards"][0].update(images="../../etc/passwd.npy"), "shards.0.images"),
    "absolute": (lambda m: m["shards"][0].update(labels="/tmp/x.npy"), "shards.0.labels"),
    "hidden": (lambda m: m["shards"][0].update(labels=".x.npy"), "shards.0.labels"),
    "short hash": (lambda m: m.update(train_sha256="abc"), "train_sha256"),
    "twice": (lambda m: m["classes"].__setitem__(0, m["classes"][1]), "listed twice"),
    "groups": (lambda m: m["groups"].pop(), "groups has 39 entries for 40 classes"),
    "group": (lambda m: m["groups"].__setitem__(0, "animal"), "groups.0"),
    "counts": (lambda m: m["train"].__setitem__(0, 1), "the train shards hold 3409 images"),
    "negative": (lambda m: m["test"].__setitem__(0, -1), "test.0"),
    "unknown key": (lambda m: m.update(extra=1), "extra"),
    "format": (lambda m: m.update(format=2), "format"),
    "same file": (lambda m: m["shards"][0].update(images=m["shards"][1]["images"]), "listed twice"),
    "control character": (lambda m: m["classes"].__setitem__(0, "a\nb"), "classes.0"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_manifests_are_refused(icons: Arrays, kind: str) -> None:
    raw = json.loads(icons.manifest.to_json())
    spoil, message = WRONG[kind]
    spoil(raw)
    with pytest.raises(DataError, match=message) as caught:
        Manifest.from_json(json.dumps(raw), "place/manifest.json")
    assert str(caught.value).startswith("place/manifest.json is no manifest of a data set: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "\x80\x05K\x01."])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(DataError):
        Manifest.from_json(text)


@pytest.mark.parametrize("place", ["nowhere", "memory://", "s3x://bucket"])
def test_no_manifest(tmp_path: Path, place: str) -> None:
    with pytest.raises(UserError, match=r"manifest|scheme"):
        read_manifest(place if "://" in place else tmp_path / place)
