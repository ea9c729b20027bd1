"""Data sets that raygrid knows by name. Their content hashes are pinned here, so planning needs no pixels.

`imagenet` is known too, for planning only: nobody can pin the hash of an ingest that depends on the chosen size, so
its facts are marked `nominal`, and a launch refuses them with the way to ingest it.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from raygrid.cell import DatasetFacts
from raygrid.data import bundled, cifar10, ilsvrc2012
from raygrid.data.cache import cache_folder, cached, data_folder, locked, mark_verified, verify
from raygrid.data.manifest import Manifest, read_manifest
from raygrid.errors import DataError, closest, expanded
from raygrid.study import Dataset

_ICONS = (
    "cloud sun moon bug leaf fire tree snowflake flower cactus cat dog fish rabbit bird carrot mountain mushroom egg "
    "feather car bus truck train airplane ship bicycle house guitar hammer scissors umbrella chair bed lamp rocket "
    "camera book key bell"
)

KNOWN: dict[str, DatasetFacts] = {
    "cifar10": DatasetFacts(
        name="cifar10",
        sha256="8b6edcf3678220973c31a43d0dd1f92d154ca3763938bcd2b940fd342927e7fe",
        classes=cifar10.CLASSES,
        groups=cifar10.GROUPS,
        train=(5000,) * 10,
        test=(1000,) * 10,
        image_size=32,
    ),
    "icons40": DatasetFacts(
        name="icons40",
        sha256="58d08ef94447da28f2d9cd556cc3796d26777ce9476e46801235214d88c292e4",
        classes=tuple(_ICONS.split()),
        groups=("natural",) * 20 + ("man-made",) * 20,
        train=(
            *(133, 129, 126, 130, 99, 110, 113, 79, 101, 27, 66, 54, 62, 42, 59, 35, 45, 29, 46, 28),
            *(121, 119, 85, 98, 103, 89, 73, 123, 34, 54, 76, 120, 56, 70, 75, 105, 133, 116, 123, 123),
        ),
        test=(
            *(27, 31, 32, 30, 24, 38, 34, 22, 33, 11, 16, 17, 21, 11, 19, 10, 20, 14, 20, 10),
            *(36, 37, 25, 39, 35, 30, 18, 37, 8, 16, 18, 33, 17, 30, 19, 40, 27, 44, 37, 37),
        ),
        image_size=32,
    ),
    "digits": DatasetFacts(
        name="digits",
        sha256="94cce9285905eb75e0c648259fa6b585ea29a3d2d2c8309095cc106dae9aaf66",
        classes=tuple("0123456789"),
        groups=(None,) * 10,
        train=(151, 161, 143, 131, 147, 154, 150, 136, 127, 138),
        test=(27, 21, 34, 52, 34, 28, 31, 43, 47, 42),
        image_size=8,
    ),
}
"""name -> pinned facts; `prepare` can make the pixels of these"""


def facts(dataset: Dataset) -> DatasetFacts:
    """What planning needs of a study's data set, without its pixels: from the pin, or from the manifest at its path.

    Raises DataError for a data set that is unknown, or whose content is not what the study pins.
    """
    if dataset.path is not None:
        found = _manifest_at(dataset).facts()
    elif dataset.name == ilsvrc2012.NAME:
        found = ilsvrc2012.nominal_facts()
    elif dataset.name in KNOWN:
        found = KNOWN[dataset.name]
    else:
        raise DataError(
            f"dataset.name: no data set is called {dataset.name!r}{closest(dataset.name, (*KNOWN, ilsvrc2012.NAME))}; "
            "images of your own: python -m raygrid.ingest IMAGES FOLDER, then dataset.path: FOLDER"
        )
    _check_pin(dataset, found.sha256)
    return found


def prepare(dataset: Dataset, cache: str | Path | None = None, progress: bool = True) -> tuple[Manifest, Path | str]:
    """Make sure that the pixels are at hand: the manifest, and the folder (or the ingested data's URL) of its shards.

    Known data sets are made or fetched once into the cache, compared with the pinned hash. An ingested folder is
    verified by whoever fetches it from the store. `progress` shows a bar on stderr. Raises DataError, with the way to
    get the data.
    """
    if dataset.path is not None:
        manifest = _manifest_at(dataset)
        _check_pin(dataset, manifest.sha256)
        place = dataset.path if "://" in dataset.path else expanded(dataset.path).absolute()
        return manifest, place
    if dataset.name == ilsvrc2012.NAME:
        raise DataError(ilsvrc2012.HOW_TO_GET)
    known = facts(dataset)
    root = cache_folder(cache)
    folder = data_folder(root, known.sha256)
    manifest_or_none = cached(folder, known.sha256)
    if manifest_or_none is None:
        with locked(folder):
            manifest_or_none = cached(folder, known.sha256) or _make(dataset.name, known, root, folder, progress)
    return manifest_or_none, folder


def _make(name: str, known: DatasetFacts, root: Path, folder: Path, progress: bool) -> Manifest:
    """Make a known data set in a temporary folder, check it against its pin, and move it to its place."""
    mark = f".making-{known.sha256[:12]}-"
    for left in folder.parent.glob(f"{mark}*"):  # by a process that was killed: we hold the lock
        shutil.rmtree(left, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=mark))
    try:
        made = scratch / "made"
        if name == "cifar10":
            manifest = cifar10.cifar10(made, root / "downloads", scratch, progress)
        else:
            manifest = {"icons40": bundled.icons40, "digits": bundled.digits}[name](made)
        if manifest.facts() != known:
            raise DataError(
                f"data set {name}: made from {manifest.source}, its content hash is {manifest.sha256[:16]}..., this "
                f"version of raygrid pins {known.sha256[:16]}...; its source changed, please report it"
            )
        verify(made, manifest)
        mark_verified(made, manifest)
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
        return manifest
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _manifest_at(dataset: Dataset) -> Manifest:
    assert dataset.path is not None
    manifest = read_manifest(dataset.path)
    if manifest.name != dataset.name:
        raise DataError(
            f"dataset.name: {dataset.name!r} was asked for, but {dataset.path} holds {manifest.name!r}; write "
            f"dataset.name: {manifest.name}"
        )
    return manifest


def _check_pin(dataset: Dataset, sha256: str) -> None:
    if dataset.sha256 is not None and not sha256.startswith(dataset.sha256):
        raise DataError(
            f"dataset.sha256: the study pins {dataset.sha256}, but {dataset.path or dataset.name} has the content hash "
            f"{sha256}; get the data that the study was written for, or remove dataset.sha256 to use these (new cells)"
        )
