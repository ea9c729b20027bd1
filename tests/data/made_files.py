"""Image files and archives in CIFAR-10's two forms, made for tests."""

from __future__ import annotations

import io
import json
import pickle
import tarfile

import numpy as np
from PIL import Image

Photographs = dict[str, tuple[np.ndarray, np.ndarray]]
"""part -> uint8 images [N, 32, 32, 3], labels [N]"""


def encoded(pixels: np.ndarray, form: str = "JPEG", **options: object) -> bytes:
    """Image file bytes of uint8 [H, W, 3]."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form, **options)
    return out.getvalue()


def tar_of(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def package_archive(parts: Photographs) -> bytes:
    """As the npm package: PNGs of one image a row."""
    files = {}
    images, labels = parts["train"]
    for i, some in enumerate(np.array_split(images, 5)):
        files[f"package/data_batch_{i + 1}.png"] = encoded(some.reshape(len(some), 1024, 3), "PNG")
    files["package/train_lables.json"] = json.dumps(labels.tolist()).encode()
    images, labels = parts["test"]
    files["package/test_batch.png"] = encoded(images.reshape(len(images), 1024, 3), "PNG")
    files["package/test_lables.json"] = json.dumps(labels.tolist()).encode()
    return tar_of(files)


def authors_archive(parts: Photographs) -> bytes:
    """As the authors' archive, in another order: pickles of [N, 3072] bytes, channel by channel."""

    def batch(images: np.ndarray, labels: np.ndarray) -> bytes:
        flat = images.transpose(0, 3, 1, 2).reshape(len(images), 3072)
        return pickle.dumps({"data": flat, "labels": labels.tolist(), "batch_label": "x"}, protocol=2)

    images, labels = (array[::-1] for array in parts["train"])
    files = {}
    for i in range(5):
        files[f"cifar-10-batches-py/data_batch_{i + 1}"] = batch(images[i::5], labels[i::5])
    files["cifar-10-batches-py/test_batch"] = batch(*parts["test"])
    files["cifar-10-batches-py/batches.meta"] = b"never read"
    return tar_of(files)
