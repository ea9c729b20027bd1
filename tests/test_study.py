"""Thirty-odd kinds of wrong study: each gives one clear message that names the key, and exit code 2."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raygrid import launch
from raygrid.errors import StudyError, UserError
from raygrid.study import Study, bundled_studies
from tests.worlds import TINY

WRONG = {
    "typo in a key": (["recipe.epocs=3"], "recipe.epocs", "did you mean 'epochs'"),
    "unknown top key": (["treatmens=[base]"], "treatmens", "did you mean 'treatments'"),
    "unknown treatment": (["treatments=[transfr]"], "treatments[0]", "did you mean 'transfer'"),
    "no treatments": (["treatments=[]"], "treatments", "empty"),
    "treatment twice": (["treatments=[base, base]"], "treatments", "twice"),
    "n too large": (["layers=[8]"], "layers", "1 to 7"),
    "n = 0": (["layers=[0]"], "layers", "scratch"),
    "no n": (["layers=[]"], "layers", "empty"),
    "layers in words": (["layers=some"], "layers", "all"),
    "overlapping halves": (
        ["splits=[{kind: explicit, name: x, A: ['0', '1'], B: ['1', '2']}]"],
        "splits[0]",
        "overlap",
    ),
    "empty half": (["splits=[{kind: explicit, name: x, A: [], B: ['1', '2']}]"], "splits[0].A", "empty"),
    "half of one class": (["splits=[{kind: explicit, name: x, A: ['0'], B: ['1', '2']}]"], "splits", "one class"),
    "class twice": (["splits=[{kind: explicit, name: x, A: ['0', '0'], B: ['1', '2']}]"], "splits[0].A", "twice"),
    "unknown class": (["splits=[{kind: explicit, name: x, A: ['0', cat], B: ['1', '2']}]"], "splits", "'cat'"),
    "unknown kind of split": (["splits=[{kind: randm, seed: 0}]"], "splits[0]", "did you mean 'random'"),
    "split without kind": (["splits=[{seed: 0}]"], "splits[0]", "kind"),
    "split without seed": (["splits=[{kind: random}]"], "splits[0].seed", "missing"),
    "no splits": (["splits=[]"], "splits", "empty"),
    "split twice": (["splits=[{kind: random, seed: 0}, {kind: random, seed: 0}]"], "splits", "twice"),
    "semantic split without groups": (["splits=[{kind: semantic}]"], "splits", "natural"),
    "reserved split name": (["splits=[{kind: explicit, name: random, A: ['0','3'], B: ['1','2']}]"], "name", "random"),
    "transfer within one task": (["splits=[{kind: all}]", "targets=[all]"], "treatments", "transfer from"),
    "target of another kind of split": (["targets=[all]"], "targets", "A, B"),
    "unknown target": (["targets=[C]"], "targets[0]", "allowed: A, B, all"),
    "unknown network": (["network=resnet"], "network.name", "allowed: small"),
    "ten tests of four": (["score=top1_mean10", "recipe.evaluations=4"], "recipe.evaluations", "top1_last"),
    "ten tests in nine steps": (
        ["score=top1_mean10", "recipe={iterations: 9, evaluations: 10}"],
        "recipe.iterations",
        "at least 10",
    ),
    "batch norm of one image": (["network.name=small-bn", "recipe.batch_size=1"], "recipe.batch_size", "small-bn"),
    "a report where the store is": (["name=store"], "name", "another name"),
    "width without end": (["network.width=1.0e+308"], "network.width", "less than or equal to 100"),
    "epochs without end": (["recipe.epochs=1e308"], "recipe.epochs", "less than or equal to 1000000"),
    "lr that only looks like a number": (["recipe.lr=1e-3x"], "recipe.lr", "valid number"),
    "key twice in an override": (["recipe={lr: 1.0, lr: 2.0}"], "--set recipe", "not valid YAML"),
    "override of what the blocks set": (
        ["grid=[{seeds: [1]}, {seeds: [2]}]", "seeds=[3]"],
        "--set seeds=[3]: every block sets seeds itself",
        "grid[0].seeds to grid[1].seeds",
    ),
    "override of a recipe that the blocks set": (
        ["grid=[{recipe: {lr: 0.1}}]", "recipe.lr=0.2"],
        "every block sets recipe.lr itself",
        "override grid[0].recipe.lr",
    ),
    "network width zero": (["network.width=0"], "network.width", "greater than 0"),
    "negative epochs": (["recipe.epochs=-1"], "recipe.epochs", "greater than 0"),
    "epochs and iterations": (["recipe.iterations=5"], "recipe", "exactly one"),
    "neither": (["recipe.epochs=null"], "recipe", "exactly one"),
    "lr in words": (["recipe.lr=fast"], "recipe.lr", "number"),
    "lr not finite": (["recipe.lr=.nan"], "recipe.lr", "finite"),
    "momentum of one": (["recipe.momentum=1.0"], "recipe.momentum", "less than 1"),
    "batch size zero": (["recipe.batch_size=0"], "recipe.batch_size", "greater than or equal to 1"),
    "step schedule without every": (["recipe.schedule.kind=step"], "recipe.schedule", "every"),
    "mean image with padding": (["recipe.normalization=mean-image"], "recipe", "padding"),
    "crop larger than the image": (["recipe.augmentation.crop=64"], "recipe.augmentation.crop", "64"),
    "seed twice": (["seeds=[1, 1]"], "seeds", "twice"),
    "seeds not a list": (["seeds=3"], "seeds", "array"),
    "more images than there are": (["images_per_class=5000"], "images_per_class", "5000"),
    "unknown data set": (["dataset=cifr10"], "dataset.name", "did you mean 'cifar10'"),
    "pinned to other data": (["dataset.sha256=deadbeef"], "dataset", "deadbeef"),
    "name with a path": (["name=../up"], "name", "not a name"),
    "cohort zero": (["execution.cohort=0"], "execution.cohort", "greater than or equal to 1"),
    "unknown device": (["execution.device=tpu"], "execution.device", "allowed: auto, cpu, cuda"),
    "gpu one and a half": (["execution.gpu=1.5"], "execution", "whole number"),
    "grid not a list": (["grid=3"], "grid", "list of blocks"),
    "typo inside a block": (["grid=[{layrs: [1]}]"], "grid[0].layrs", "did you mean 'layers'"),
    "network that cannot see so small an image": (["network.name=caffenet"], "network.name", "caffenet-32"),
    "crop of a few pixels": (["recipe.augmentation.crop=1"], "network.name", "recipe.augmentation.crop"),
    "n too large in a block": (["grid=[{layers: [9]}]"], "grid[0].layers", "1 to 7"),
    "recipe not a group": (["recipe=3"], "recipe", "object"),
    "override without value": (["recipe.lr"], "--set recipe.lr", "KEY=VALUE"),
    "override of an item that is not there": (["grid[3].layers=[1]"], "--set grid[3]", ""),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_study_gets_one_clear_message_and_exit_code_2(kind, tmp_path, capsys) -> None:
    overrides, key, hint = WRONG[kind]
    file = tmp_path / "study.yaml"
    file.write_text(TINY)
    arguments = [str(file), "--out", str(tmp_path / "out"), "--dry-run"]
    for override in overrides:
        arguments += ["--set", override]
    assert launch.main(arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith("raygrid: ") and "Traceback" not in err + out
    assert key in err and hint in err, err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists(), "nothing was begun"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3",
        "[1, 2]",
        "a: [",
        "name: x\nname: {{",
        "!!python/object/apply:os.system [echo hi]",
        "- base",
        "\t",
        "? [a]: b",
    ],
)
def test_what_is_no_study_at_all_is_told_so(text: str, tmp_path, capsys) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(text)
    assert launch.main([str(file), "--dry-run"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_missing_file_names_the_studies_that_come_with_raygrid(capsys) -> None:
    assert launch.main(["demoo.yaml", "--dry-run"]) == 2
    assert "did you mean 'demo'" in capsys.readouterr().err


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(
    [
        "name",
        "dataset",
        "network",
        "splits",
        "targets",
        "treatments",
        "layers",
        "seeds",
        "images_per_class",
        "recipe",
        "recipe.lr",
        "recipe.schedule",
        "recipe.augmentation.crop",
        "grid",
        "execution",
        "execution.cohort",
        "score",
    ]
)


@settings(max_examples=150, deadline=None)
@given(keys, json_like)
def test_no_value_of_a_key_gives_anything_but_a_study_or_a_user_error(key: str, value: object) -> None:
    import yaml

    text = yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip().replace("\n", " ")
    try:
        Study.parse(TINY, [f"{key}={text}"])
    except UserError as error:
        assert str(error)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=200))
def test_no_text_gives_anything_but_a_study_or_a_user_error(text: str) -> None:
    try:
        Study.parse(text)
    except UserError as error:
        assert str(error)


def test_studies_that_come_with_raygrid_are_valid() -> None:
    names = bundled_studies()
    assert {"demo", "icons"} <= set(names)
    for path in names.values():
        assert Study.load(path).name == path.stem


def test_overrides_reach_their_key_and_blocks_override_defaults() -> None:
    study = Study.parse(
        TINY + "grid: [{layers: [1]}, {recipe: {lr: 0.5}}]\n", ["recipe.momentum=0.5", "grid[0].seeds=[4]"]
    )
    first, second = study.blocks
    assert (first.layers, first.seeds, first.recipe.lr) == ((1,), (4,), 0.03)
    assert (second.layers, second.recipe.lr, second.recipe.epochs) == ((1, 4, 7), 0.5, 6)
    assert first.recipe.momentum == second.recipe.momentum == 0.5


def test_an_override_is_refused_only_where_every_block_sets_the_key_itself() -> None:
    grid = "grid: [{recipe: {lr: 0.1}, layers: [1]}, {recipe: {lr: 0.2}}]\n"
    study = Study.parse(TINY + grid, ["layers=[2]", "recipe.momentum=0.5", "recipe={epochs: 3, lr: 0.5}"])
    assert [block.layers for block in study.blocks] == [(1,), (2,)]
    assert [block.recipe.lr for block in study.blocks] == [0.1, 0.2]
    assert [block.recipe.epochs for block in study.blocks] == [3, 3]


def test_numbers_may_be_written_with_an_exponent_alone() -> None:
    study = Study.parse(TINY.replace("lr: 0.03", "lr: 3e-2"), ["recipe.momentum=5E-1", "network.width=.5e0"])
    assert study == Study.parse(TINY, ["recipe.momentum=0.5", "network.width=0.5"])


@pytest.mark.parametrize(
    "twice", ["seeds: [0]\nseeds: [1]\n", "grid:\ngrid: [{}]\n", "grid: [{layers: [1], layers: [2]}]"]
)
def test_a_key_that_is_there_twice_is_refused(twice: str) -> None:
    with pytest.raises(StudyError, match=r"the key '\w+' is there twice"):
        Study.parse(TINY + twice)


def test_a_block_overrides_what_it_merges() -> None:
    grid = "grid:\n  - &one {layers: [1], seeds: [1]}\n  - &two {<<: *one, layers: [2]}\n  - {<<: *two, seeds: [3]}\n"
    assert [block.layers for block in Study.parse(TINY + grid).blocks] == [(1,), (2,), (2,)]


@pytest.mark.parametrize("name", bundled_studies())
def test_a_study_as_text_gives_the_same_study_again(name: str) -> None:
    study = Study.load(bundled_studies()[name], ["recipe.weight_decay=1e-5", "execution.gpu=0.5"])
    assert Study.parse(study.to_yaml()) == Study.parse(study.to_yaml(defaults=False)) == study


def test_a_folder_that_is_called_as_a_study_is_not_taken_for_it(tmp_path, monkeypatch) -> None:
    from raygrid.remote import request
    from raygrid.track.__main__ import load

    for name in ("icons", "demo"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    assert launch.find_study("icons", ()).name == load("icons", ()).study.name == "icons"
    assert "\nname: icons\n" in request("x", "icons", "icons", (), None, tmp_path).text
    assert "\nname: demo\n" in request("x", "demo", None, (), None, tmp_path).text
    (tmp_path / "digits").write_text(TINY)
    assert launch.find_study("digits", ()).name == load("digits", ()).study.name == "tiny"
    assert request("x", "tiny", "digits", (), None, tmp_path).text == TINY


def test_every_error_stands_in_the_docstring_of_errors() -> None:
    import ast
    from pathlib import Path

    from raygrid import errors

    bases: dict[str, set[str]] = {}
    for path in Path(errors.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                bases[node.name] = {base.id for base in node.bases if isinstance(base, ast.Name)}
    known = {"RaygridError"}
    while more := {name for name, above in bases.items() if above & known} - known:
        known |= more
    assert {"TrackError", "Interrupted"} <= known
    for name in known:
        assert name.startswith("_") or f"-- {name} " in (errors.__doc__ or "") or name == "RaygridError", name


def test_a_study_is_immutable() -> None:
    study = Study.parse(TINY)
    with pytest.raises(ValueError):
        study.name = "other"
    with pytest.raises(StudyError):
        Study.parse(TINY, ["name=3"])
