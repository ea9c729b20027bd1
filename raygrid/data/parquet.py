"""Images in Parquet files, as Hugging Face writes them: a column of {bytes, path}, a column of labels."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from raygrid.data.manifest import Part
from raygrid.errors import DataError

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png")
LABEL_COLUMNS = ("label", "labels", "class", "target", "fine_label", "cls")


def is_parquet(source: Path) -> bool:
    """Whether a source is a Parquet file or a folder of such files."""
    return bool(_files(source))


def list_parquet(source: Path, test: Path | None) -> Any:
    """List Parquet files as `sources.Listing`.

    Classes: the names in the files' metadata (Hugging Face's ClassLabel) in the order of the numbers; text labels in
    ascending order; else the numbers themselves. Names that are ILSVRC2012's, in order, become its wnids.
    Raises DataError for labels that are missing or out of range.
    """
    from raygrid.data.sources import Entry, Listing

    files = _parts(source, test)
    names: list[str] | None = None
    labels: dict[Part, list[tuple[Path, list[Any]]]] = {"train": [], "test": []}
    for part, (_, paths) in files.items():
        for path in paths:
            column, found = _labels(path)
            labels[part].append((path, column))
            if names is not None and found is not None and found != names:
                raise DataError(f"ingest: {path}: its class names differ from those of {files['train'][1][0]}")
            names = names or found
    for part in files:
        for path, column in labels[part]:
            if None in column:
                raise DataError(f"ingest: {path}: row {column.index(None)} has no label")
            if odd := next((value for value in column if not isinstance(value, (str, int))), None):
                raise DataError(f"ingest: {path}: labels must be whole numbers or texts; found {odd!r}")
    values = {value for held in labels.values() for _, column in held for value in column}
    classes: Sequence[str]
    if all(isinstance(value, str) for value in values):
        classes = sorted(values)
        index = {name: i for i, name in enumerate(classes)}
    else:
        classes = names or _numbered(values)
        index = {i: i for i in range(len(classes))}  # type: ignore[misc]
    entries: dict[Part, list[Entry]] = {"train": [], "test": []}
    for part, (root, _) in files.items():
        for path, column in labels[part]:
            size = path.stat().st_size
            for row, value in enumerate(column):
                if value not in index:
                    raise DataError(
                        f"ingest: {path}: row {row} has the label {value!r}, but labels are 0 to {len(classes) - 1} "
                        "(a part without labels has -1: choose another with --test)"
                    )
                entries[part].append(Entry(str(path.relative_to(root)), row, index[value], size))
    roots: dict[Part, str] = {part: str(root) for part, (root, _) in files.items()}
    return Listing("parquet", tuple(_wnids(classes)), roots, entries)


def read_rows(path: Path, rows: Sequence[int]) -> Iterator[bytes]:
    """The images' bytes of ascending rows of one file; b"" where the row has none. Raises DataError."""
    import pyarrow as pa

    try:
        yield from _read(path, rows)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"ingest: {path}: not a readable Parquet file ({' '.join(str(error).split())[:120]})") from None


def _read(path: Path, rows: Sequence[int]) -> Iterator[bytes]:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    name = _column(file, IMAGE_COLUMNS, "image")
    wanted = iter(rows)
    row = next(wanted, None)
    start = 0
    for group in range(file.num_row_groups):
        stop = start + file.metadata.row_group(group).num_rows
        if row is not None and row < stop:
            column = file.read_row_group(group, columns=[name]).column(0)
            if "struct" in str(column.type):
                column = pc.struct_field(column, "bytes")
            while row is not None and row < stop:
                yield column[row - start].as_py() or b""
                row = next(wanted, None)
        start = stop


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source] if source.suffix == ".parquet" else []
    return sorted(source.glob("*.parquet")) or sorted((source / "data").glob("*.parquet"))


def _parts(source: Path, test: Path | None) -> dict[Part, tuple[Path, list[Path]]]:
    """(root, files) of each part."""
    files = _files(source)
    root = files[0].parent
    if test is not None:
        tests = _files(test)
        if not tests:
            raise DataError(f"ingest: {test}: there are no Parquet files in it, but there are in {source}")
        train = [f for f in files if f.name.startswith("train")] or files
        return {"train": (root, train), "test": (tests[0].parent, tests)}
    for prefix in ("val", "test"):
        tests = [f for f in files if f.name.startswith(prefix)]
        train = [f for f in files if f.name.startswith("train")]
        if tests and train:
            return {"train": (root, train), "test": (root, tests)}
    raise DataError(
        f"ingest: {source}: expected files named train-*.parquet and validation-*.parquet (or test-*.parquet), found "
        f"{', '.join(f.name for f in files[:3])}; give the test images' files with --test"
    )


def _labels(path: Path) -> tuple[list[Any], list[str] | None]:
    """Labels of a file's rows, and the class names in its metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        name = _column(file, LABEL_COLUMNS, "label")
        column = file.read(columns=[name]).column(0).to_pylist()
        _column(file, IMAGE_COLUMNS, "image")
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"ingest: {path}: not a readable Parquet file ({' '.join(str(error).split())[:120]})") from None
    try:
        info = json.loads((file.schema_arrow.metadata or {})[b"huggingface"])
        names = [str(n) for n in info["info"]["features"][name]["names"]]
    except (KeyError, ValueError, TypeError):
        names = None
    return column, names


def _column(file: Any, allowed: Sequence[str], what: str) -> str:
    names = file.schema_arrow.names
    for name in allowed:
        if name in names:
            return name
    raise DataError(f"ingest: no column of {what}s (one of {', '.join(allowed)}); found {', '.join(names)}")


def _numbered(values: set[Any]) -> list[str]:
    """Names of classes that have only numbers: 00, 01, ..."""
    if not all(isinstance(value, int) for value in values):
        raise DataError("ingest: some labels are whole numbers, others texts; choose one of the two")
    most = max(values)
    if most >= 100_000:
        raise DataError(f"ingest: the largest label is {most}; labels are expected to count from 0")
    return [str(i).zfill(len(str(most))) for i in range(most + 1)]


def _wnids(classes: Sequence[str]) -> Sequence[str]:
    from raygrid.data.ilsvrc2012 import synsets

    if len(classes) == 1000:
        same = sum(
            name.split(",")[0] == words.split(",")[0] for name, (_, words) in zip(classes, synsets(), strict=True)
        )
        if same >= 950:
            return [wnid for wnid, _ in synsets()]
    return classes
