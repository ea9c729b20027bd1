"""ImageNet (ILSVRC2012): its 1,000 classes, their groups, and facts for planning without the images.

Classes are ordered by wnid, ascending, as in the paper's lists and in torchvision. Notice beside the list:
`ilsvrc2012.NOTICE`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from raygrid.cell import DatasetFacts
from raygrid.data.manifest import Group

NAME = "imagenet"
NOMINAL = "nominal"
"""stands where the content hash would: nobody has ingested these images yet"""
TRAIN, TEST, SIZE = 1_281_167, 50_000, 256
MAN_MADE = frozenset((*range(398, 936), *range(959, 970), 971, 999))
"""indices of the 551 man-made classes of the paper (section 3.2; fruit and vegetables count as natural, prepared food
as man-made); the other 449 are natural"""
HOW_TO_GET = (
    "data set imagenet: its images are not here, and raygrid cannot fetch them (ImageNet gives access to researchers "
    "who agree to its terms). With the folders of ILSVRC2012 at hand:\n"
    "  python -m raygrid.ingest ILSVRC2012 FOLDER_OR_URL --name imagenet --size 256   (see --help for --ground-truth)\n"
    "then write dataset: {name: imagenet, path: FOLDER_OR_URL} in the study. `--dry-run` plans without the images."
)


@cache
def synsets() -> tuple[tuple[str, str], ...]:
    """(wnid, words) of every class, in order."""
    lines = (Path(__file__).parent / "ilsvrc2012.txt").read_text(encoding="utf-8").splitlines()
    return tuple((wnid, words) for wnid, _, words in (line.partition(" ") for line in lines))


def wnids() -> tuple[str, ...]:
    """WordNet identifiers of the classes, in order."""
    return tuple(wnid for wnid, _ in synsets())


def groups_of(classes: Sequence[str]) -> tuple[Group | None, ...]:
    """`natural` or `man-made` for classes that are wnids of ILSVRC2012, else null."""
    index = {wnid: i for i, wnid in enumerate(wnids())}
    found: list[Group | None] = []
    for name in classes:
        i = index.get(name)
        found.append(None if i is None else "man-made" if i in MAN_MADE else "natural")
    return tuple(found)


def nominal_facts() -> DatasetFacts:
    """Facts for planning only, with `sha256` = `nominal`.

    The totals are exact (1,281,167 and 50,000 images). The numbers a class are nominal: most classes have the maximum
    of 1,300; here 895 do, and 105, evenly spread, share the rest (1,120 or 1,121 each; in truth 732 to 1,299).
    """
    counts = [1300] * 1000
    few = [round((i + 0.5) * 1000 / 105) for i in range(105)]
    rest = TRAIN - 1300 * (1000 - len(few))
    for i, c in enumerate(few):
        counts[c] = rest // len(few) + (i < rest % len(few))
    return DatasetFacts(
        name=NAME,
        sha256=NOMINAL,
        classes=wnids(),
        groups=groups_of(wnids()),
        train=tuple(counts),
        test=(TEST // 1000,) * 1000,
        image_size=SIZE,
    )
