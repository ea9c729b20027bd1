"""Nothing read is executed, no name leaves its place, no secret is told, nothing listens to strangers."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import secrets
import shutil
import socket
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness import abandoned
from small import SMALL, launch, the_plan

from raygrid.data.manifest import Manifest
from raygrid.errors import RaygridError, StudyError
from raygrid.store import Store, sha256_of
from raygrid.study import Study

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(p for part in ("raygrid", "analysis", "clusters") for p in (ROOT / part).rglob("*.py"))

# --- nothing read is executed ----------------------------------------------------------------------------------------

MAY_UNPICKLE = {"raygrid/data/cifar10.py"}
"""the authors' archive of CIFAR-10 is pickles: read by an unpickler that can only make arrays of numbers (its own tests
feed it hostile ones)"""
FORBIDDEN_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle"}
FORBIDDEN_CALLS = {
    "torch.load", "torch.jit.load", "torch.export.load", "pandas.read_pickle", "numpy.fromfile", "yaml.load",
    "yaml.full_load", "yaml.unsafe_load", "yaml.load_all", "yaml.full_load_all", "yaml.unsafe_load_all", "eval", "exec",
    "compile", "__import__", "os.system", "os.popen", "tarfile.extractall", "shutil.unpack_archive",
}  # fmt: skip
USUAL = {"np": "numpy", "pd": "pandas"}
"""names that stand for modules even where a piece of source does not import them"""


def faults_in(source: str, name: str) -> list[str]:
    """Uses of what could execute what it reads, under whatever name it was imported. Naming such a function is enough:
    it could be handed on."""
    tree = ast.parse(source)
    known = dict(USUAL)
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            whence = f"{node.module or ''}." if isinstance(node, ast.ImportFrom) else ""
            imported |= {f"{whence}{alias.name}" for alias in node.names}
            known |= {
                alias.asname or alias.name: f"{whence}{alias.name}" for alias in node.names if alias.asname or whence
            }

    def real(node: ast.expr) -> str:
        parts = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        first = known.get(node.id, node.id) if isinstance(node, ast.Name) else "?"
        return ".".join([first, *reversed(parts)])

    found = [n for n in imported if set(n.split(".")) & FORBIDDEN_MODULES and name not in MAY_UNPICKLE]
    found += [n for n in imported if n in FORBIDDEN_CALLS or n.endswith(".*")]
    safe = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            named = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if named.get("shell", "False") != "False":
                found.append(f"{real(node.func)} with shell")
            if named.get("allow_pickle") == "False":
                safe.add(node.func)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            used = real(node)
            parts = used.split(".")
            if used in FORBIDDEN_CALLS or parts[-1] == "extractall":
                found.append(used)
            if len(parts) > 1 and set(parts) & FORBIDDEN_MODULES and name not in MAY_UNPICKLE:
                found.append(used)
            if used == "numpy.load" and node not in safe:
                found.append(f"{used} without allow_pickle=False")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_that_is_read_is_executed(path: Path) -> None:
    assert not faults_in(path.read_text(), str(path.relative_to(ROOT)))


@pytest.mark.parametrize(
    "bad",
    ["import pickle", "from joblib import load", "torch.load(p)", "np.load(p)", "np.load(p, allow_pickle=True)",
     "yaml.load(t, Loader=yaml.Loader)", "archive.extractall()", "eval(t)", "subprocess.run(c, shell=True)",
     "subprocess.run(c, shell=1)", "from torch import load", "from torch import load as get\nget(p)", "import torch as t\nt.load(p)",
     "from torch import jit\njit.load(p)", "from ray import cloudpickle", "import ray.cloudpickle", "ray.cloudpickle.loads(b)",
     "import ray\nray.cloudpickle.loads(b)", "from yaml import load", "from yaml import *", "import yaml as y\ny.unsafe_load(t)",
     "from numpy import load\nload(p)", "import numpy as n\nn.load(p)", "list(map(torch.load, paths))", "from os import system as s"],
)  # fmt: skip
def test_each_of_these_would_be_found(bad: str) -> None:
    assert faults_in(bad, "raygrid/x.py")


def test_yaml_cannot_make_objects(tmp_path: Path) -> None:
    for text in ("!!python/object/apply:os.mkdir [{}]", "name: !!python/object/apply:os.mkdir [{}]"):
        file = tmp_path / "study.yaml"
        file.write_text(text.format(tmp_path / "went-off"))
        with pytest.raises(StudyError):
            Study.load(str(file), ())
        with pytest.raises(StudyError):
            Study.parse(SMALL, [f"name={text.format(tmp_path / 'went-off')}"])
    assert not (tmp_path / "went-off").exists()


@pytest.mark.parametrize(("keys", "deep"), [("unknown", 10), ("known", 6)])
def test_yaml_that_grows_without_end_is_refused_in_time(keys: str, deep: int) -> None:
    """A billion laughs: ten aliases of ten aliases of ...; a million in the place of a list that a study has."""
    lines = ["&a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"&a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, deep)]
    if keys == "unknown":
        text = "\n".join([*(f"a{i}: {line}" for i, line in enumerate(lines)), SMALL])
    else:
        text = SMALL.replace("layers: [3, 6]", f"layers: [{', '.join(lines)}]")
    begun = time.monotonic()
    with pytest.raises(StudyError, match="aliases written out") as caught:
        Study.parse(text)
    assert time.monotonic() - begun < 10 and len(str(caught.value)) < 10_000


# --- names stay in their place ---------------------------------------------------------------------------------------

EVIL = (
    "../x",
    "..",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "a\0b",
    "",
    ".hidden",
    "x" * 65,
    "a b",
    "a\nb",
    "name\n",
    "$(x)",
    "a;b",
)


@pytest.mark.parametrize("name", EVIL)
def test_names_that_become_paths(name: str) -> None:
    for override in ({"name": name}, {"dataset": {"name": name}}, {"splits": [explicit(name)]}):
        with pytest.raises(StudyError):
            Study.parse(SMALL, [f"{key}={json.dumps(value)}" for key, value in override.items()])


def explicit(name: str) -> dict[str, Any]:
    return {"kind": "explicit", "name": name, "A": ["0"], "B": ["1"]}


@pytest.mark.parametrize("name", [*(n for n in EVIL if n != "x" * 65), "../../x.npy", "/x.npy", "a/b.npy", "x.npy\n"])
def test_file_names_in_a_manifest(name: str) -> None:
    from raygrid.data.known import prepare
    from raygrid.study import Dataset

    manifest, _ = prepare(Dataset(name="digits"), progress=False)
    whole = json.loads(manifest.to_json())
    whole["shards"][0]["images"] = name
    with pytest.raises(RaygridError):
        Manifest.from_json(json.dumps(whole))


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "a/../../escaped"])
def test_results_fetched_from_a_store_stay_in_their_folder(name: str, tmp_path: Path) -> None:
    from raygrid.remote import FILES, fetch, place

    store = Store(str(tmp_path / "store"))
    store.put(f"{place('s')}/good.csv", b"x")
    store.put(f"{place('s')}/{FILES}", json.dumps({"good.csv": sha256_of(b"x"), name: "0" * 64}).encode())
    with pytest.raises(RaygridError, match="is not a path inside the store"):
        fetch(store, "s", tmp_path / "out" / "s")
    assert not list(tmp_path.rglob("escaped*")) and not (tmp_path / "out").exists(), "nothing of such a list is fetched"


# --- secrets ---------------------------------------------------------------------------------------------------------


def test_no_secret_is_told(tmp_path: Path) -> None:
    """Credentials of store and MLflow, in the environment of a whole launch with Ray: not in what it prints, writes
    (MLflow's database too), or shows in the list of processes."""
    names = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
    hidden = {name: f"s3cret{secrets.token_hex(8)}" for name in names}
    (tmp_path / "study.yaml").write_text(SMALL.replace("in-process", "ray"))
    ray_folder = Path("/tmp") / f"rg-{secrets.token_hex(3)}"  # sockets have short names
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    environment.pop("MLFLOW_TRACKING_URI", None)
    environment |= {**hidden, "RAY_TMPDIR": str(ray_folder)}
    ray_folder.mkdir()
    before = abandoned()
    try:
        run = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("harness.py")), "drive", str(tmp_path / "study.yaml"),
             str(tmp_path / "out")],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        token, arguments, listening = "", [], set()
        while run.poll() is None:
            family = [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]
            for process in family:
                try:
                    arguments.append(" ".join(process.cmdline()))
                    if "ray::" in arguments[-1] or "raylet" in arguments[-1]:
                        token = token or process.environ().get("RAY_AUTH_TOKEN", "")
                    listening |= {
                        connection.laddr.ip.removeprefix("::ffff:")
                        for connection in process.net_connections("inet")
                        if connection.status == psutil.CONN_LISTEN
                    }
                except psutil.Error:
                    continue
            time.sleep(0.3)
        said = run.stdout.read() if run.stdout else ""
        assert run.returncode == 0, said
        assert token, "the processes of Ray have a token"
        wanted = [*hidden.values(), token]
        told = [text for text in (said, *arguments) if any(secret in text for secret in wanted)]
        assert not told, told
        files = [p for root in (tmp_path, ray_folder) for p in root.rglob("*") if p.is_file()]
        assert len(files) > 20
        assert not [str(p) for p in files if any(secret.encode() in p.read_bytes() for secret in wanted)]
        assert listening and listening <= {"127.0.0.1", "::1"}, listening
        assert abandoned() <= before
        rows = rows_of(tmp_path / "out" / "mlflow.db")
        assert len([row for row in rows if "raygrid.cell" in row]) == len(the_plan().cells)
        assert not [row for row in rows if any(secret in str(value) for value in row for secret in wanted)]
    finally:
        shutil.rmtree(ray_folder, ignore_errors=True)


def rows_of(database: Path) -> list[tuple[Any, ...]]:
    """All rows of all tables of an SQLite file."""
    with contextlib.closing(sqlite3.connect(database)) as data:
        tables = [name for (name,) in data.execute("select name from sqlite_master where type = 'table'")]
        return [row for table in tables for row in data.execute(f'select * from "{table}"')]


@pytest.mark.parametrize("password", ["plain", "p@ss", "pa/ss", "pa?ss=1&x"])
def test_no_password_of_mlflows_address_is_told(
    password: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """It is in the address, which stands in links, commands, messages and notes; and nobody answers there."""
    from raygrid.track import tracker

    monkeypatch.setattr(tracker, "GRACE_S", 0.5)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    hidden = f"s3cret{secrets.token_hex(8)}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{hidden}{password}{hidden}@{address}")
    assert launch(tmp_path, tracked=True) == 0
    said = "".join(capsys.readouterr())
    assert f"http://{address}" in said and "nothing is lost: python -m raygrid.track sync" in said
    assert hidden not in said
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(files) > 20 and not [str(p) for p in files if hidden.encode() in p.read_bytes()]


# --- Ray that raygrid starts -----------------------------------------------------------------------------------------

STRANGER = """\
import os, sys
for name in list(os.environ):
    if name.startswith("RAY_"):
        del os.environ[name]
if sys.argv[2]:
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": sys.argv[2]}
else:
    os.environ["RAY_AUTH_MODE"] = "disabled"
from ray._raylet import GcsClient
print("IN", len(GcsClient(address=sys.argv[1]).get_all_node_info(timeout=20)))
"""

OWNER = """\
import os, stat, subprocess, sys
from raygrid import grid
cluster = grid.connect()
import ray
address = ray.get_runtime_context().gcs_address
mine = os.environ["RAY_AUTH_TOKEN"]
assert len(mine) >= 32
print("LOCAL", cluster.local, address.rpartition(":")[0], flush=True)
(node,) = ray.nodes()
sockets = [node[name].removeprefix("unix:") for name in ("RayletSocketName", "ObjectStoreSocketName")]
print("SOCKETS", [oct(stat.S_IMODE(os.stat(socket).st_mode) & 0o077) for socket in sockets], flush=True)
for name, token in (("none", ""), ("wrong", "f" * 64), ("right", mine)):
    try:
        done = subprocess.run([sys.executable, "-c", sys.argv[1], address, token], capture_output=True, text=True,
                              timeout=90)
        print(name, "IN" in done.stdout, flush=True)
    except subprocess.TimeoutExpired:
        print(name, False, flush=True)
grid.disconnect()
"""


AGAIN = """\
import os
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64}
import ray
from ray._raylet import AuthenticationTokenLoader
assert AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True)
from raygrid import grid
for _ in range(2):
    del os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"]
    grid.connect()
    print("IN", len(ray.nodes()), flush=True)
    grid.disconnect()
"""


def test_a_process_that_ray_told_another_token_before_can_start_its_own_ray() -> None:
    """A notebook that asked a cluster for its jobs, say, or one that runs two studies."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "RAYGRID_"))}
    done = subprocess.run([sys.executable, "-c", AGAIN], env=environment, capture_output=True, text=True, timeout=400)
    assert done.stdout.split() == ["IN", "1", "IN", "1"], done.stderr[-2000:]


def test_a_local_ray_asks_for_a_token(tmp_path: Path) -> None:
    """Without one, or with another, nobody of this machine gets in; its sockets are its user's alone; and no token file
    is left that others can read."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "RAYGRID_"))}
    environment["HOME"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", OWNER, STRANGER], env=environment, capture_output=True, text=True, timeout=400
    )
    lines = done.stdout.split("\n")
    assert "LOCAL True 127.0.0.1" in lines, done.stdout + done.stderr
    assert "SOCKETS ['0o0', '0o0']" in lines, done.stdout + done.stderr
    assert "none False" in lines and "wrong False" in lines, done.stdout
    assert "right True" in lines, done.stdout + done.stderr
    for path in tmp_path.rglob("*token*"):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


# --- what is used of others ------------------------------------------------------------------------------------------


def test_no_dependency_has_a_known_hole() -> None:
    """pip-audit over what is installed, where it and its data source can be reached."""
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off", "--skip-editable"]
    try:
        done = subprocess.run([*command, "--timeout", "20"], capture_output=True, text=True, timeout=240)
    except subprocess.TimeoutExpired:
        pytest.skip("pip-audit: its data source does not answer in time")
    if "No module named pip_audit" in done.stderr:
        pytest.skip("pip-audit is not installed (pip install pip-audit)")
    try:
        found = json.loads(done.stdout)["dependencies"]
    except ValueError:
        reason = (done.stderr.strip().splitlines() or ["no answer"])[-1][:200]
        pytest.skip(f"pip-audit: its data source cannot be reached ({reason})")
    unknown = [one["name"] for one in found if "skip_reason" in one]
    if len(unknown) > len(found) / 2:
        pytest.skip(f"pip-audit: its data source knows nothing of {len(unknown)} of {len(found)} packages")
    holes = {
        f"{one['name']} {one['version']}": [v["id"] for v in one.get("vulns", []) if v["id"] not in KNOWN_HOLES]
        for one in found
        if "version" in one
    }
    assert not {name: ids for name, ids in holes.items() if ids}


KNOWN_HOLES: dict[str, str] = {}
"""id -> why it does not concern raygrid; SECURITY.md says the same"""


def test_the_threat_model_is_written_down() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    for word in ("token", "pickle", "loopback", "MLflow", "lease", "IMDSv2", "report"):
        assert word in text, word
    assert the_plan() and launch and psutil
