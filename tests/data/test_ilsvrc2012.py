"""Law: the halves of ImageNet are those of the paper, class by class."""

import hashlib

import pytest

from raygrid.data import ilsvrc2012
from raygrid.splits import divide
from raygrid.study import RandomSplit, SemanticSplit

HALVES = {
    # split, half: number of classes, sha256 of its wnids joined by newlines (the paper's lists)
    ("semantic", "A"): (449, "dc68dacbe390098ce8144638127a20e5edcb1526c1c8e78f7f8f06f71db27fdd"),
    ("semantic", "B"): (551, "d2f10fe02459fcdd29a2ac94ecfa260356f138891ba14e4ff4674d41cd740e7c"),
    (0, "A"): (500, "a853b77608a7a5c009bee211b96383e6a26df850bc2181d40f1ee702540885af"),
    (0, "B"): (500, "fe723d94794e004b921a2d74af6feb63551d7ed426ffb70d19408d58fb6a4e47"),
    (1, "A"): (500, "a08bd7292579967dfc1e8733b0fd33f02ad639dd034d35c2e0b5c538b80d49d5"),
    (1, "B"): (500, "c2701b9932ea41d97e2a7f1174e41a34d8da43c878cafcd25e106e81cb17ef8e"),
    (2, "A"): (500, "aed21277eef4bc1c821bae8d18ee8c811370853e1d3fcda06dd0ee0e3edd3bbc"),
    (2, "B"): (500, "65db699848147f5786297ab8b9a4611699dc9ef05deb9feea320d57687f23dc5"),
    (3, "A"): (500, "9f3ec97bde74bd5385a1ca68aaa030e6608e4cbfb545d3470123d2bbfc7f4809"),
    (3, "B"): (500, "07b29adb02850abea68ab6ad383a412b3408849c6bb49b8e98d5fb7a20ccc8db"),
}
ROWS = {
    # index: wnid, first word, group, halves of random splits 0 to 3
    0: ("n01440764", "tench", "natural", "ABAA"),
    397: ("n02655020", "puffer", "natural", "AABB"),
    398: ("n02666196", "abacus", "man-made", "BAAA"),
    935: ("n07711569", "mashed potato", "man-made", "AAAB"),
    936: ("n07714571", "head cabbage", "natural", "ABAA"),
    958: ("n07802026", "hay", "natural", "BABA"),
    959: ("n07831146", "carbonara", "man-made", "AABB"),
    970: ("n09193705", "alp", "natural", "BABB"),
    971: ("n09229709", "bubble", "man-made", "BBBB"),
    999: ("n15075141", "toilet tissue", "man-made", "BBBB"),
}


@pytest.mark.parametrize(("which", "half"), HALVES)
def test_halves(which: int | str, half: str) -> None:
    facts = ilsvrc2012.nominal_facts()
    split = (
        SemanticSplit(kind="semantic")
        if which == "semantic"
        else RandomSplit(kind="random", seed=int(which), rule="yosinski2014")
    )
    wnids = [facts.classes[i] for i in divide(split, facts.classes, facts.groups).classes(half)]
    assert (len(wnids), hashlib.sha256("\n".join(wnids).encode()).hexdigest()) == HALVES[which, half]


def test_classes() -> None:
    wnids = ilsvrc2012.wnids()
    assert len(wnids) == 1000 and list(wnids) == sorted(set(wnids))
    for index, (wnid, word, group, halves) in ROWS.items():
        assert ilsvrc2012.synsets()[index][0] == wnid
        assert ilsvrc2012.synsets()[index][1].split(",")[0] == word
        assert ilsvrc2012.groups_of([wnid]) == (group,)
        for seed, half in enumerate(halves):
            split = RandomSplit(kind="random", seed=seed, rule="yosinski2014")
            assert index in divide(split, wnids, (None,) * 1000).classes(half)
    assert ilsvrc2012.groups_of(["cat", wnids[0]]) == (None, "natural")
