"""The study: one YAML file, validated whole before anything runs, turned into typed frozen objects.

What changes the numbers of a network (data, network, recipe, splits, seeds) and how it is run (`execution`) live in
different objects: a cell is made from the first alone, so where it ran can never reach its identity.
"""

from __future__ import annotations

import json
import math
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)

from raygrid.architectures import ARCHITECTURES, layers
from raygrid.errors import StudyError, closest

TREATMENTS = ("base", "scratch", "selffer", "selffer+", "transfer", "transfer+", "random", "base-long")
"""Every kind of network that a study may ask for."""
COPYING = ("selffer", "selffer+", "transfer", "transfer+")
"""Treatments whose first n layers come from a base."""
LAYERED = (*COPYING, "random")
"""Treatments that exist once for every n."""
FROZEN = ("selffer", "transfer", "random")
"""Treatments whose first n layers do not learn."""
PRESERVABLE = ("selffer", "transfer")
"""Treatments for which layers above the frozen ones may be copied too."""


def in_order(series: Iterable[str]) -> list[str]:
    """Names of treatments in the order of the paper, each before its forms with preserved layers."""
    places = {treatment: place for place, treatment in enumerate(TREATMENTS)}
    return sorted(set(series), key=lambda name: (places[name.partition("-preserve")[0]], name))


Treatment = Literal["base", "scratch", "selffer", "selffer+", "transfer", "transfer+", "random", "base-long"]
Half = Literal["A", "B", "all"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


def _as_written(value: object) -> object:
    """`1e-3` is a number to people and a text to PyYAML, which wants `1.0e-3`."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+", value, re.ASCII):
        return float(value)
    return value


Written = BeforeValidator(_as_written)
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), Written]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), Written]


class Frozen(BaseModel):
    """Immutable, strict about types and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy without what was worked out from the fields (a hash, say): pydantic would take it along."""
        copy = super().model_copy(update=update, deep=deep)
        for name in [name for name in copy.__dict__ if name not in type(self).model_fields]:
            del copy.__dict__[name]
        return copy


# --- what is trained on ----------------------------------------------------------------------------------------------


class Dataset(Frozen):
    """Which data set; `sha256` pins its content."""

    name: Name
    """`cifar10`, `icons40`, `digits`, or the name of an ingested data set"""
    path: str | None = None
    """folder or URL that `python -m raygrid.ingest` wrote; null: a data set that raygrid knows"""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{8,64}$")] | None = None
    """content hash, or its beginning: other content is then refused"""


class RandomSplit(Frozen):
    """Half the classes at random (paper section 3)."""

    kind: Literal["random"]
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    rule: Literal["permutation", "yosinski2014"] = "permutation"
    """`permutation`: numpy `RandomState(seed).permutation(K)`, first K/2 are A. `yosinski2014`: `RandomState([s])`"""
    exclude: tuple[str, ...] = ()
    """classes left out of both halves"""


class SemanticSplit(Frozen):
    """Natural classes are A, man-made classes are B, in every data set. Halves may be unequal."""

    kind: Literal["semantic"]
    exclude: tuple[str, ...] = ()
    """classes left out of both halves, for instance to make them equal"""


class ExplicitSplit(Frozen):
    """Two lists of class names."""

    kind: Literal["explicit"]
    name: Name
    A: Annotated[tuple[str, ...], Field(min_length=1)]
    B: Annotated[tuple[str, ...], Field(min_length=1)]


class WholeSet(Frozen):
    """No split: one task of all classes, whose half is called `all`."""

    kind: Literal["all"]
    exclude: tuple[str, ...] = ()


Split = Annotated[
    Annotated[RandomSplit, Tag("random")]
    | Annotated[SemanticSplit, Tag("semantic")]
    | Annotated[ExplicitSplit, Tag("explicit")]
    | Annotated[WholeSet, Tag("all")],
    Discriminator("kind"),
]


# --- how it is trained -----------------------------------------------------------------------------------------------


class Network(Frozen):
    """A network that raygrid knows, as a list of stages."""

    name: Literal["small", "small-bn", "caffenet", "caffenet-32", "alexnet"] = "small"
    width: Annotated[float, Field(gt=0, le=100), Written] = 1.0
    """factor on the number of filters and units of every layer"""
    dropout: Annotated[float, Field(ge=0, lt=1), Written] | None = None
    """rate; null: the network's own (small .3, caffenet and alexnet .5)"""

    @property
    def layers(self) -> int:
        """Number of weight layers."""
        return layers(self.name)


class Augmentation(Frozen):
    """Random crops and mirroring of training images; test images are cropped at the centre."""

    crop: Annotated[int, Field(ge=1)] | None = None
    """side of the crop in pixels; null: the image's own"""
    padding: Annotated[int, Field(ge=0)] = 2
    """black pixels added on each side before cropping"""
    offsets: Literal["all", "caffe"] = "all"
    """`caffe`: never the last one, as in Caffe of 2014 (data_transformer.cpp: rand() % (size - crop))"""
    flip: bool = True
    """mirror with probability 1/2"""


class Schedule(Frozen):
    """Learning rate over the steps of one training, a pure function of the step."""

    kind: Literal["one-cycle", "step", "constant"] = "one-cycle"
    """`one-cycle`: as torch's OneCycleLR with its default shape (warm-up over 30 %, cosine); `step`: times `factor`
    every `every`"""
    every: Positive | None = None
    """for `step`: a number of iterations when above 1, else a fraction of the training"""
    factor: Annotated[float, Field(gt=0, le=1), Written] = 0.1

    @model_validator(mode="after")
    def _step_has_every(self) -> Self:
        if (self.kind == "step") != (self.every is not None):
            raise ValueError("`every` goes with kind: step, and kind: step needs it")
        return self


class Numerics(Frozen):
    """What changes the bytes but not the mathematics. Chosen in study and code, never by timing at run time; part of
    every cell's identity (law 1)."""

    memory_format: Literal["channels_last", "contiguous"] = "channels_last"
    autocast: Literal["none", "bfloat16"] = "none"
    """`bfloat16` pays on CPUs with AVX512-BF16 or AMX and on GPUs, and is slow elsewhere"""
    threads: Annotated[int, Field(ge=1, le=64)] = 1
    """CPU threads a cell"""


class Recipe(Frozen):
    """How a network is trained. Has exactly one of `epochs` and `iterations`."""

    epochs: Annotated[float, Field(gt=0, le=1e6), Written] | None = None
    iterations: Annotated[int, Field(ge=1, le=10**12)] | None = None
    batch_size: Annotated[int, Field(ge=1)] = 64
    lr: Positive = 0.02
    """peak learning rate"""
    momentum: Annotated[float, Field(ge=0, lt=1), Written] = 0.9
    weight_decay: NonNegative = 5e-4
    bias_lr: NonNegative = 1.0
    """learning rate of biases, as a multiple (Caffe's lr_mult; the paper: 2)"""
    bias_decay: NonNegative = 1.0
    """weight decay of biases, as a multiple (Caffe's decay_mult; the paper: 0)"""
    sgd: Literal["torch", "caffe"] = "torch"
    """where the learning rate stands in the momentum: caffe has v <- m v + lr (g + wd w); w <- w - v"""
    gradient_clip: Positive | None = 5.0
    """largest Euclidean norm of a network's gradient; null: none"""
    schedule: Schedule = Schedule()
    augmentation: Augmentation = Augmentation()
    normalization: Literal["channel", "mean-image"] = "channel"
    """subtract the task's channel means and divide by their standard deviations; or subtract its mean image"""
    order: Literal["shuffled", "fixed"] = "shuffled"
    """`shuffled`: a new order every epoch; `fixed`: shuffled once (the paper)"""
    outputs: Literal["task", "dataset"] = "task"
    """outputs of the head: the task's classes, or the whole data set's (the paper: 1000 always)"""
    evaluations: Annotated[int, Field(ge=1)] = 8
    """how many times the network is tested, evenly spaced; the last is after the last step"""
    evaluation_images: Annotated[int, Field(ge=1)] | None = None
    """how many fixed test images the tests on the way use; null: all. The last test always uses all"""
    numerics: Numerics = Numerics()

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.iterations is None):
            found = "neither" if self.epochs is None else "both"
            raise ValueError(f"give exactly one of epochs and iterations (found {found})")
        if self.normalization == "mean-image" and self.augmentation.padding:
            raise ValueError("normalization: mean-image needs augmentation.padding: 0")
        return self

    def steps(self, images: int) -> int:
        """Training steps on a task of `images` training images."""
        if self.iterations is not None:
            return self.iterations
        assert self.epochs is not None
        return max(1, math.ceil(round(self.epochs * images / self.batch_size, 6)))


# --- how it is run: never part of a cell -----------------------------------------------------------------------------


class Execution(Frozen):
    """Where and how the grid runs. Changes no number."""

    backend: Literal["ray", "in-process"] = "ray"
    """`in-process`: no Ray, one cohort after the other in this process, for debugging and bare GPU machines"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    gpu: Annotated[float, Field(gt=0, le=16), Written] = 1.0
    """GPUs that a trial reserves where the cluster has any: a fraction below 1, else a whole number"""
    cohort: Annotated[int, Field(ge=1)] | None = None
    """most cells a trial; null: as memory and the number of devices allow; 1: one trial a cell"""
    workers: Annotated[int, Field(ge=1)] | None = None
    """devices to plan for; null: those present, else the cluster's maximum"""
    retries: Annotated[int, Field(ge=0)] = 3
    """how often a trial that lost its machine is run again"""

    @model_validator(mode="after")
    def _gpu_fraction(self) -> Self:
        if self.gpu > 1 and self.gpu != int(self.gpu):
            raise ValueError("execution.gpu above 1 must be a whole number")
        return self


# --- the study -------------------------------------------------------------------------------------------------------


class Block(Frozen):
    """One block of the grid: every combination of its lists."""

    splits: Annotated[tuple[Split, ...], Field(min_length=1)]
    targets: Annotated[tuple[Half, ...], Field(min_length=1)] = ("A", "B")
    """which halves are trained on in the second phase; on split `all` the one target is `all`"""
    treatments: Annotated[tuple[Treatment, ...], Field(min_length=1)]
    layers: tuple[int, ...] | Literal["all"] = "all"
    """values of n, 1 .. layers - 1"""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(min_length=1)] = (0,)
    images_per_class: Annotated[int, Field(ge=1)] | None = None
    """use the first k training images of every class; null: all"""
    preserve: Annotated[int, Field(ge=0)] = 0
    """how many layers above the frozen n are copied too, and learn (the authors' unpublished runs)"""
    recipe: Recipe

    def values_of_n(self, network: Network) -> Sequence[int]:
        """The values of n; with `layers: all` those that leave room for the layers to preserve."""
        return range(1, self.last(network) + 1) if self.layers == "all" else self.layers

    def last(self, network: Network) -> int:
        """The largest n. A preserved layer may be the head only where all heads have the same outputs."""
        room = 0 if self.recipe.outputs == "dataset" else 1
        return min(network.layers - 1, network.layers - room - self.preserve)


BLOCK_KEYS = ("splits", "targets", "treatments", "layers", "seeds", "images_per_class", "preserve", "recipe")


DEFAULT = "demo"
"""the study that is meant where none is named"""
BESIDE = ("store", "mlflow.db")
"""what a launch keeps beside the folders of its studies, which have the studies' names"""


class Study(Frozen):
    """A whole study: what to ask, of which networks, on which data."""

    name: Name
    question: str = ""
    """what the study asks, and the claim that it must reproduce; printed and put into the report"""
    dataset: Dataset
    network: Network = Network()
    blocks: Annotated[tuple[Block, ...], Field(min_length=1)]
    """the flat form is one block; `grid:` lists blocks that override the defaults above it"""
    score: Literal["top1_last", "top1_mean10"] = "top1_last"
    """the headline score; `top1_mean10` (mean of the ten best tests) is the paper's and selects on the test images"""
    execution: Execution = Execution()

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Study:
        """Read a study file and apply `key=value` overrides. Raises StudyError with one clear message."""
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise StudyError(f"study {path}: no such file{closest(path.stem, bundled_studies())}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise StudyError(f"study {path}: cannot be read as text ({error})") from None
        return cls.parse(text, overrides, where=str(path))

    @classmethod
    def parse(cls, text: str, overrides: Sequence[str] = (), where: str = "study") -> Study:
        """Like `load`, from text. YAML is read with a safe loader: no tags, no code."""
        try:
            raw = _Loader(text).get_single_data()
        except yaml.YAMLError as error:
            problem = " ".join(str(error).split())
            raise StudyError(f"{where}: not valid YAML: {problem}") from None
        except (RecursionError, ValueError) as error:
            raise StudyError(f"{where}: not valid YAML: {error or 'nested too deeply'}") from None
        if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
            raise StudyError(f"{where}: expected keys and values, found {type(raw).__name__}{closest('', _STUDY_KEYS)}")
        try:
            for override in overrides:
                _override(raw, override)
            for override in overrides:
                _check_effect(raw, override)
            return _validate(raw)
        except StudyError as error:
            raise StudyError(f"{where}: {error}") from None
        except RecursionError:
            raise StudyError(f"{where}: a value contains itself") from None

    def to_yaml(self, defaults: bool = True) -> str:
        """The text of a file that gives this study again; with `defaults`, whatever later versions take for granted."""
        whole = self.model_dump(mode="json", exclude_defaults=not defaults, exclude={"blocks"})
        whole["grid"] = [block.model_dump(mode="json", exclude_defaults=not defaults) for block in self.blocks]
        return yaml.safe_dump(whole, sort_keys=False)


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which PyYAML's own keeps the last and says nothing. Looked for before `<<`
    is written out: what is merged may be overridden."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    problem = f"the key {key.value!r} is there twice, and one would be ignored; leave one of them out"
                    raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
                seen.add(key.value)
        return node


_STUDY_KEYS = ("name", "question", "dataset", "network", *BLOCK_KEYS, "grid", "score", "execution")
_SHORTHAND = {"dataset": "name", "network": "name"}
MOST_VALUES = 1_000_000
"""most values of a study, aliases written out: an alias of aliases makes a few lines as long as one likes"""


def _values(document: Any, counted: dict[int, int]) -> int:
    """How many values a document holds, aliases written out, without writing them out."""
    if id(document) not in counted:
        inner = document.values() if isinstance(document, dict) else document if isinstance(document, list) else ()
        counted[id(document)] = 1 + sum(_values(value, counted) for value in inner)
    return counted[id(document)]


def _validate(raw: dict[str, Any]) -> Study:
    if _values(raw, {}) > MOST_VALUES:
        raise StudyError(f"with its aliases written out the file holds more than {MOST_VALUES:,} values")
    for key in raw:
        if key not in _STUDY_KEYS:
            raise StudyError(f"{key}: unknown key{closest(key, _STUDY_KEYS)}")
    top = {key: value for key, value in raw.items() if key not in (*BLOCK_KEYS, "grid")}
    for key, inner in _SHORTHAND.items():
        if isinstance(top.get(key), str):
            top[key] = {inner: top[key]}
    defaults = {key: raw[key] for key in BLOCK_KEYS if key in raw}
    grid = raw.get("grid")
    if "grid" in raw and (not isinstance(grid, list) or not grid or not all(isinstance(b, dict) for b in grid)):
        raise StudyError(f"grid: expected a list of blocks with keys{closest('', BLOCK_KEYS)}")
    top["blocks"] = [_merge(defaults, block) for block in grid] if grid else [defaults]
    paths = [f"grid[{index}]" for index in range(len(grid))] if grid else [""]
    _check_keys(Study, top, "", paths)
    try:
        document = json.dumps(top, default=str)
    except (TypeError, ValueError) as error:
        raise StudyError(f"the file holds a value that is no number, text or list ({error})") from None
    try:
        study = Study.model_validate_json(document)
    except ValidationError as error:
        raise StudyError(_explain(error, paths)) from None
    if study.name in BESIDE:
        raise StudyError(f"name: the folder {study.name!r} beside the results is not a study's; choose another name")
    for block, path in zip(study.blocks, paths, strict=True):
        _check_block(block, study, path)
        _check_recipe(block.recipe, study, f"{path}.recipe" if path else "recipe")
    return study


def _merge(defaults: Mapping[str, Any], block: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults overridden by a block; the recipe is overridden key by key."""
    merged = {**defaults, **block}
    if isinstance(defaults.get("recipe"), dict) and isinstance(block.get("recipe"), dict):
        merged["recipe"] = {**defaults["recipe"], **block["recipe"]}
    return merged


def _check_block(block: Block, study: Study, path: str) -> None:
    """Rules between keys of a block; messages name the key as it stands in the file."""
    at = f"{path}." if path else ""
    last = study.network.layers - 1
    if block.layers != "all":
        for n in block.layers:
            if not 1 <= n <= last:
                raise StudyError(
                    f"{at}layers: n = {n} is impossible: {study.network.name} has {last + 1} layers, "
                    f"so n can be 1 to {last} (n = 0 is the treatment scratch)"
                )
        if not block.layers and any(t in LAYERED for t in block.treatments):
            raise StudyError(f"{at}layers: is empty, but {', '.join(block.treatments)} need values of n (1 to {last})")
    if block.preserve:
        _check_preserve(block, study.network, at)
    for key in ("treatments", "targets", "seeds", "layers", "splits"):
        values = getattr(block, key)
        if values != "all" and len(set(values)) < len(values):
            repeated = next(value for value in values if values.count(value) > 1)
            raise StudyError(f"{at}{key}: {_show(repeated)} is listed twice")
    for index, split in enumerate(block.splits):
        if isinstance(split, ExplicitSplit):
            if split.name in ("random", "semantic", "all"):
                raise StudyError(f"{at}splits[{index}].name: {split.name!r} is the name of another kind of split")
            both = sorted(set(split.A) & set(split.B))
            if both:
                raise StudyError(f"{at}splits[{index}]: halves overlap: {', '.join(both)} in both A and B")
            for half in ("A", "B"):
                names = getattr(split, half)
                if len(set(names)) < len(names):
                    raise StudyError(f"{at}splits[{index}].{half}: a class is listed twice")
        whole = isinstance(split, WholeSet)
        if whole and any(t.startswith("transfer") for t in block.treatments):
            raise StudyError(f"{at}treatments: split `all` has one task, so nothing to transfer from (use selffer)")
        if whole and "all" not in block.targets:
            raise StudyError(f"{at}targets: split `all` has the one target `all` (found {', '.join(block.targets)})")
        if not whole and "all" in block.targets:
            raise StudyError(f"{at}targets: `all` goes with the split of kind all (allowed here: A, B)")


def _check_recipe(recipe: Recipe, study: Study, at: str) -> None:
    """A recipe that can give no result."""
    if study.score == "top1_mean10":
        for key, tests in (("evaluations", recipe.evaluations), ("iterations", recipe.iterations or 10)):
            if tests < 10:
                raise StudyError(
                    f"{at}.{key}: score top1_mean10 is the mean of ten tests, found {tests} {key}; ask for at "
                    "least 10, or for score: top1_last"
                )
    if recipe.batch_size == 1 and any(stage.batch_norm for stage in ARCHITECTURES[study.network.name](2)):
        raise StudyError(
            f"{at}.batch_size: {study.network.name} normalises over a batch, which one image does not give"
        )


def _check_preserve(block: Block, network: Network, at: str) -> None:
    others = [t for t in block.treatments if t not in PRESERVABLE]
    if others:
        raise StudyError(
            f"{at}preserve: goes with the treatments {' and '.join(PRESERVABLE)} only (found {', '.join(others)}): "
            "give it a block of its own"
        )
    last = block.last(network)
    if max(block.values_of_n(network), default=last + 1) > last:
        room = f"so n can be 1 to {last}" if last > 0 else "so none of them can be frozen"
        head = "" if block.recipe.outputs == "dataset" else " (the head only with recipe.outputs: dataset)"
        raise StudyError(
            f"{at}preserve: {network.name} has {network.layers} layers{head}, of which {block.preserve} above n are to "
            f"be preserved, {room}"
        )


def _show(value: object) -> str:
    return json.dumps(value.model_dump(exclude_defaults=True)) if isinstance(value, BaseModel) else repr(value)


# --- overrides and messages ------------------------------------------------------------------------------------------


def _override(raw: dict[str, Any], override: str) -> None:
    """Apply `a.b=value` (or `grid[0].seeds=[0, 1]`) to the raw document; the value is read as YAML."""
    key, equals, text = override.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_]\w*(\[\d+\])*(\.[A-Za-z_]\w*(\[\d+\])*)*", key.strip()):
        raise StudyError(f"--set {override}: expected KEY=VALUE, as in recipe.epochs=4")
    try:
        value = _Loader(text).get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError):
        raise StudyError(f"--set {override}: the value is not valid YAML") from None
    path = [int(part) if part.isdigit() else part for part in re.findall(r"[A-Za-z_]\w*|\d+", key)]
    here: Any = raw
    for part, after in zip(path, [*path[1:], None], strict=True):
        if isinstance(part, int):
            if not isinstance(here, list) or part >= len(here):
                raise StudyError(f"--set {override}: there is no item {part}")
        elif not isinstance(here, dict):
            raise StudyError(f"--set {override}: {part} is not inside a group of keys")
        if after is None:
            here[part] = value
            return
        if isinstance(part, str):
            inside = here.get(part)
            if isinstance(inside, str) and part in _SHORTHAND:
                here[part] = {_SHORTHAND[part]: inside}
            elif inside is None:
                here[part] = {}
        here = here[part]


def _check_effect(raw: Mapping[str, Any], override: str) -> None:
    """Raises StudyError where every block of the grid sets the key itself: the override would change nothing."""
    key, *inner = re.findall(r"\w+", override.partition("=")[0])
    blocks = raw.get("grid")
    if not isinstance(blocks, list) or not blocks or key not in BLOCK_KEYS or [key, *inner] == ["recipe"]:
        return
    name = inner[0] if key == "recipe" else key  # of a recipe the other keys stay
    groups = [block.get(key) if key == "recipe" and isinstance(block, dict) else block for block in blocks]
    if all(isinstance(group, dict) and name in group for group in groups):
        asked = f"recipe.{name}" if key == "recipe" else name
        raise StudyError(
            f"--set {override}: every block sets {asked} itself: override grid[0].{asked}"
            + (f" to grid[{len(blocks) - 1}].{asked}" if len(blocks) > 1 else "")
        )


def _model_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models inside an annotation such as `tuple[A | B, ...] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Annotated, Union, types.UnionType, tuple):
        for inner in get_args(annotation):
            yield from _model_in(inner)


def _check_keys(model: type[BaseModel], value: Any, path: str, block_paths: Sequence[str]) -> None:
    """Unknown keys get the closest known one; found before types are looked at."""
    if not isinstance(value, dict):
        return
    for key, inner in value.items():
        field = model.model_fields.get(key)
        here = f"{path}.{key}" if path else str(key)
        if field is None:
            raise StudyError(f"{here}: unknown key{closest(key, model.model_fields)}")
        models = list(_model_in(field.annotation))
        items = list(enumerate(inner)) if isinstance(inner, list) else [(None, inner)]
        for index, item in items:
            if key == "blocks" and model is Study and index is not None:
                at = block_paths[index]
            else:
                at = here if index is None else f"{here}[{index}]"
            chosen = models
            if len(models) > 1 and isinstance(item, dict):
                chosen = [m for m in models if item.get("kind") in get_args(m.model_fields["kind"].annotation)]
            if len(chosen) == 1:
                _check_keys(chosen[0], item, at, block_paths)


def _explain(error: ValidationError, block_paths: Sequence[str]) -> str:
    """Pydantic's findings as one line each: key, what was found, what is allowed."""
    lines = []
    findings = error.errors(include_url=False)
    for item in findings:
        where = list(item["loc"])
        inner = [
            other for other in findings if len(other["loc"]) > len(where) and list(other["loc"][: len(where)]) == where
        ]
        if item["type"] == "too_short" and inner:
            continue  # the list is short because its items are wrong
        text = ""
        if where[:1] == ["blocks"] and len(where) > 1 and isinstance(where[1], int):
            text = block_paths[where[1]]
            where = where[2:]
        for index, part in enumerate(where):
            if isinstance(part, int):
                text += f"[{part}]"
            elif (
                "tuple[" in part
                or "literal[" in part
                or "function-" in part
                or "constrained" in part
                or (part in ("random", "semantic", "explicit", "all") and index and isinstance(where[index - 1], int))
            ):
                continue
            else:
                text += f".{part}" if text else part
        context = item.get("ctx", {})
        found = item["input"]
        message = item["msg"].removeprefix("Value error, ")
        message = message[0].lower() + message[1:]
        if item["type"] == "missing":
            message = "is missing"
        elif item["type"] == "literal_error":
            allowed = re.findall(r"'([^']*)'", str(context.get("expected", "")))
            message = f"{found!r} is not allowed{closest(found, allowed)}"
        elif item["type"] == "union_tag_invalid":
            allowed = re.findall(r"'([^']*)'", str(context.get("expected_tags", "")))
            message = f"kind {context.get('tag')} is not allowed{closest(str(context.get('tag')), allowed)}"
        elif item["type"] == "too_short":
            message = "is empty"
        elif item["type"] == "union_tag_not_found":
            message = "has no `kind`" + closest("", ("random", "semantic", "explicit", "all"))
        elif item["type"] == "string_pattern_mismatch":
            message = f"{found!r} is not a name (letters, digits, . _ - only, 64 at most; hashes in hexadecimal)"
        elif item["type"] != "value_error" and message and not isinstance(found, (dict, list)):
            message += f", found {found!r}"
        line = f"{text}: {message}" if text else message
        if line not in lines:
            lines.append(line)
    return "; ".join(lines)


def study_file(named: str | Path | None = None) -> Path:
    """The file that people mean by a name: that file, else a study that comes with raygrid; by no name, the default."""
    if named is not None and Path(named).is_file():
        return Path(named)
    return bundled_studies().get(str(named or DEFAULT), Path(named or DEFAULT))


def bundled_studies() -> dict[str, Path]:
    """Studies that come with raygrid, by name: from the package, or from the checkout that it is installed from."""
    package = Path(__file__).resolve().parent
    for folder in (package / "studies", package.parent / "studies"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return {}
