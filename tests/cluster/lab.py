"""Several hosts on one machine: network, process, mount and name spaces with an sshd each, and services that all reach.

A host shares this machine's programs and files except /tmp, home, /run and /dev/shm. Everything hangs on one private
bridge in a space of its own, the hub; nothing is added to this machine's own network. Needs root.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]
KEY, SECRET = "AKIDRAYGRIDTESTS", "made-up-for-these-tests"
BUCKET = "grid"
OVERLAID = ("/root", "/home", "/tmp")

INIT = """\
set -e
mount --make-rprivate /
for place in {seen}; do
  case "$place" in
    /root/*|/home/*|/tmp/*) mkdir -p "{folder}$place"; mount --bind "$place" "{folder}$place" ;;
  esac
done
mkdir -p {folder}/tmp {folder}/root {folder}/home {folder}{home}/.ssh {folder}/etc
chmod 1777 {folder}/tmp
chmod 700 {folder}{home} {folder}{home}/.ssh
cp {folder}/authorized {folder}{home}/.ssh/authorized_keys
chmod 600 {folder}{home}/.ssh/authorized_keys
cp /etc/passwd /etc/shadow /etc/group {folder}/etc/
# all of root's programs are used, so the user is root by another name; ssh finds ~ by number, hence root's home too
grep -q '^{user}:' {folder}/etc/passwd || {{
  echo '{user}:x:0:0::{home}:/bin/bash' >> {folder}/etc/passwd
  echo '{user}:*:19000:0:99999:7:::' >> {folder}/etc/shadow; }}
sed -i 's#^root:x:0:0:root:/root:#root:x:0:0:root:{home}:#' {folder}/etc/passwd
for file in passwd shadow; do mount --bind {folder}/etc/$file /etc/$file; done
mount --rbind {folder}/root /root
mount --rbind {folder}/home /home
mount -t tmpfs -o size=6g tmpfs /dev/shm
mount -t tmpfs tmpfs /run; mkdir -p /run/sshd
[ -f {folder}/hostkey ] || ssh-keygen -q -t ed25519 -N '' -f {folder}/hostkey
sshd={sshd}
mount --rbind {folder}/tmp /tmp
mount -t proc proc /proc
hostname {name}
$sshd -f /dev/null -h {folder}/hostkey -E {folder}/sshd.log -o ListenAddress={ip} -o PidFile=/run/sshd.pid \\
  -o UsePAM=no -o PasswordAuthentication=no -o PermitRootLogin=prohibit-password -o StrictModes=no \\
  -o MaxStartups=100 -o MaxSessions=100
touch {folder}/ready
trap : CHLD
while :; do sleep 3600 & wait; done      # the first process of a host must reap what others leave
"""


def missing() -> str | None:
    """Why no lab can be made here, or None."""
    if os.geteuid() != 0:
        return "needs root"
    tools = ("ip", "unshare", "nsenter", "rsync", "ssh", "ssh-keygen")
    absent = [tool for tool in tools if shutil.which(tool) is None]
    if not Path("/usr/sbin/sshd").exists() and shutil.which("sshd") is None:
        absent.append("sshd")
    if absent:
        packages = "openssh-server openssh-client rsync iproute2 util-linux"
        return f"needs {', '.join(absent)} (Debian: apt-get install {packages})"
    probe = f"rgprobe{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if made.returncode != 0:
        return f"needs network namespaces ({made.stderr.strip()})"
    subprocess.run(["ip", "netns", "del", probe], check=False)
    inner = subprocess.run(["unshare", "--pid", "--fork", "--mount", "--uts", "--ipc", "true"], capture_output=True)
    return None if inner.returncode == 0 else "needs process and mount namespaces"


def sh(command: str) -> None:
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"


def until(condition: Callable[[], T], seconds: float, what: str, every: float = 0.5) -> T:
    """What the condition gives once it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(every)
    raise AssertionError(f"after {seconds:.0f} s still not: {what}")


class Host:
    """A machine of the lab."""

    def __init__(self, lab: Lab, name: str, ip: str, authorized: str, user: str, env: Mapping[str, str]):
        self.lab, self.name, self.ip, self.user = lab, name, ip, user
        self.home = "/root" if user == "root" else f"/home/{user}"
        self.space = f"{lab.prefix}-{os.urandom(3).hex()}"  # never one that the kernel is still taking down
        self.folder = lab.folder / "hosts" / name
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "authorized").write_text(authorized)
        self.env = dict(env)
        self._image()
        hub, net = lab.hub, self.space
        peer = f"v{hashlib.sha256(net.encode()).hexdigest()[:10]}"
        sh(f"ip netns add {net} && ip netns exec {net} ip link set lo up")
        sh(f"ip link add {peer} netns {hub} type veth peer name eth0 netns {net}")
        sh(f"ip netns exec {hub} ip link set {peer} master br0 up")
        sh(f"ip netns exec {net} ip addr add {ip}/{lab.bits} dev eth0 && ip netns exec {net} ip link set eth0 up")
        sh(f"ip netns exec {net} ip route add default via {lab.gateway}")
        self.start()

    def _image(self) -> None:
        """What a machine image holds: the environment of the running test, complete, and where things are."""
        home = Path(f"{self.folder}{self.home}")
        environment = home / "raygrid-env"
        if environment.exists():
            return
        environment.mkdir(parents=True)
        for item in Path(sys.prefix).iterdir():
            (environment / item.name).symlink_to(item)
        wanted = hashlib.sha256((ROOT / "clusters" / "constraints.txt").read_bytes()).hexdigest()[:16]
        (environment / ".complete").write_text(wanted)
        lines = [f"export {name}={shlex.quote(value)}" for name, value in self.env.items()]
        (home / ".bashrc").write_text("\n".join(lines) + "\n")

    def start(self) -> None:
        """Boot."""
        seen = " ".join({str(ROOT), sys.prefix, sys.base_prefix, str(self.lab.folder)})
        sshd = shutil.which("sshd") or "/usr/sbin/sshd"
        facts = {"folder": self.folder, "home": self.home, "user": self.user, "name": self.name, "ip": self.ip}
        (self.folder / "init.sh").write_text(INIT.format(seen=seen, sshd=sshd, **facts))
        (self.folder / "ready").unlink(missing_ok=True)
        spaces = ["unshare", "--pid", "--fork", "--mount", "--uts", "--ipc", "--kill-child"]
        with (self.folder / "init.log").open("w") as log:
            self.process = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{self.space}", *spaces, "bash", str(self.folder / "init.sh")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        until((self.folder / "ready").exists, 30, f"{self.name} boots ({self.folder}/init.log)")

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        """Pull the plug: every process of the host ends at once."""
        if self.alive:
            self.process.kill()
        self.process.wait()

    def remove(self) -> None:
        self.kill()
        subprocess.run(["ip", "netns", "del", self.space], check=False, capture_output=True)

    def _command(self, command: str, env: Mapping[str, str]) -> list[str]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        variables = [f"{name}={value}" for name, value in {**self.env, "HOME": self.home, **env}.items()]
        enter = ["nsenter", "-t", children[0], "-n", "-p", "-m", "-u", "-i", f"--wd={ROOT}"]
        path = f"PATH={self.home}/raygrid-env/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return [*enter, "env", "-i", path, "LANG=C.UTF-8", "TERM=dumb", *variables, "bash", "-c", command]

    def spawn(self, command: str, log: Path, **env: str) -> subprocess.Popen[bytes]:
        """Start a command there; its output goes into a file."""
        with log.open("wb") as out:
            return subprocess.Popen(
                self._command(command, env), stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip

    def run(
        self, command: str, timeout: float = 300, check: bool = True, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command there."""
        done = subprocess.run(
            self._command(command, env), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout
        )
        if check:
            assert done.returncode == 0, f"{self.name}: {command}\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
        return done


class Lab:
    """A private network with hosts and services. `gateway` is the hub's address, where the services listen."""

    def __init__(self, folder: Path, gateway: str, bits: int):
        self.folder, self.gateway, self.bits = folder, gateway, bits
        self.prefix = f"rg{os.getpid()}{hashlib.sha256(gateway.encode()).hexdigest()[:2]}"
        self.hub = f"{self.prefix}-hub"
        self.hosts: dict[str, Host] = {}
        self.services: list[subprocess.Popen[bytes]] = []
        self.closing = threading.Event()
        folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Lab:
        hub = f"ip netns exec {self.hub} ip"
        sh(f"ip netns add {self.hub}; {hub} link set lo up; {hub} link add br0 type bridge")
        sh(f"{hub} addr add {self.gateway}/{self.bits} dev br0; {hub} addr add 169.254.169.254/32 dev br0")
        sh(f"{hub} link set br0 up")
        sh(f"[ -f {self.folder}/key ] || ssh-keygen -q -t ed25519 -N '' -f {self.folder}/key")
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        for host in list(self.hosts.values()):
            host.remove()
        for service in self.services:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(service.pid, signal.SIGKILL)
            service.wait()
        subprocess.run(["ip", "netns", "del", self.hub], check=False, capture_output=True)

    def host(self, name: str, ip: str, user: str = "root", authorized: str | None = None, **env: str) -> Host:
        """A new machine."""
        key = authorized if authorized is not None else (self.folder / "key.pub").read_text()
        made = self.hosts[name] = Host(self, name, ip, key, user, {**self.variables, **env})
        return made

    @property
    def variables(self) -> dict[str, str]:
        """Environment with which programs find the lab's S3, and are quick and quiet."""
        return {
            "AWS_ENDPOINT_URL_S3": f"http://{self.gateway}:8333",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-west-2",
            "AWS_DEFAULT_REGION": "us-west-2",
            "OMP_NUM_THREADS": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAYGRID_CACHE": "/tmp/raygrid-cache",
        }

    def service(self, name: str, *command: str, **env: str) -> subprocess.Popen[bytes]:
        """Start a program in the hub."""
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{self.hub}", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **env},
                cwd=self.folder,
            )
        self.services.append(process)
        return process

    def inside(self, work: Callable[[], T]) -> T:
        """Do work in a thread whose network is the hub's."""
        found: list[T] = []
        trouble: list[BaseException] = []

        def there() -> None:
            try:
                self.enter()
                found.append(work())
            except BaseException as error:
                trouble.append(error)

        thread = threading.Thread(target=there, daemon=True)
        thread.start()
        thread.join()
        if trouble:
            raise trouble[0]
        return found[0]

    def enter(self) -> None:
        """Move the calling thread into the hub's network; it cannot come back."""
        with Path(f"/run/netns/{self.hub}").open("rb") as space:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(space.fileno(), 0x40000000) != 0:
                raise OSError(ctypes.get_errno(), "setns")

    def start_s3(self) -> None:
        """A real S3 server that checks signatures, with the bucket `grid`."""
        identity = {"name": "raygrid", "credentials": [{"accessKey": KEY, "secretKey": SECRET}]}
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        (self.folder / "s3.json").write_text(json.dumps({"identities": [{**identity, "actions": actions}]}))
        (self.folder / "s3").mkdir(exist_ok=True)
        self.service(
            "s3", f"{sys.prefix}/bin/weed", "server", f"-dir={self.folder}/s3", f"-ip={self.gateway}",
            f"-ip.bind={self.gateway}", "-s3", f"-s3.config={self.folder}/s3.json", "-s3.port=8333",
            "-master.volumeSizeLimitMB=64", "-volume.max=20", "-s3.allowEmptyFolder=false",
        )  # fmt: skip

        def bucket() -> bool:
            try:
                self.s3().create_bucket(Bucket=BUCKET)
            except Exception:
                return False
            return True

        until(lambda: self.inside(bucket), 60, "the S3 server answers")

    def s3(self) -> Any:
        """A client of the S3 server; use it inside."""
        return self.aws("s3", f"http://{self.gateway}:8333")

    def aws(self, name: str, url: str) -> Any:
        import boto3
        from botocore.config import Config

        quick = Config(retries={"max_attempts": 2}, connect_timeout=3, read_timeout=20)
        return boto3.client(
            name,
            endpoint_url=url,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-west-2",
            config=quick,
        )

    def objects(self, prefix: str = "", ending: str = "") -> dict[str, bytes]:
        """Objects of the bucket."""

        def read() -> dict[str, bytes]:
            client = self.s3()
            found = {}
            for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix):
                for item in page.get("Contents", ()):
                    if item["Key"].endswith(ending):
                        with contextlib.suppress(client.exceptions.NoSuchKey):
                            found[item["Key"]] = client.get_object(Bucket=BUCKET, Key=item["Key"])["Body"].read()
            return found

        return self.inside(read)

    def leases(self) -> dict[str, str]:
        """Cell -> host that trains it now."""
        found = self.objects("raygrid/cells/", "lease.json")
        return {key: json.loads(text)["host"].split(":")[0] for key, text in found.items()}

    def records(self) -> dict[str, dict[str, Any]]:
        """The deterministic part of every record in the bucket, by cell."""
        from raygrid.record import deterministic, read_record

        records = [read_record(text, key) for key, text in self.objects("raygrid/cells/", "record.json").items()]
        return {record.cell.address: deterministic(record) for record in records}


def reference(study: Path, folder: Path, overrides: Sequence[str] = ()) -> Iterator[dict[str, dict[str, Any]]]:
    """Starts an undisturbed run in one process; the second `next` gives the deterministic part of its records."""
    command = [sys.executable, "-m", "raygrid.launch", str(study), "--out", str(folder)]
    for override in (*overrides, "execution.backend=in-process"):
        command += ["--set", override]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    yield {}
    output, _ = process.communicate()
    assert process.returncode == 0, output[-4000:]
    from raygrid.record import deterministic, read_record

    texts = {path: path.read_bytes() for path in (folder / "store").rglob("record.json")}
    records = [read_record(text, str(path)) for path, text in texts.items()]
    yield {record.cell.address: deterministic(record) for record in records}
