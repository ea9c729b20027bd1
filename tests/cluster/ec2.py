"""An EC2 whose instances are hosts of the lab: moto keeps the books, a thread gives every instance a body.

The metadata service of the bodies tells a spot instance when it will be taken back, as AWS does two minutes before.
"""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.cluster.lab import Host, Lab


class Ec2:
    """Simulated EC2 in the hub of a lab, at port 5555."""

    def __init__(self, lab: Lab):
        self.lab = lab
        self.url = f"http://{lab.gateway}:5555"
        self.bodies: dict[str, Host] = {}
        self.started: list[tuple[str, str]] = []
        """(instance, type) of all that ever ran"""
        self.noticed: set[str] = set()
        """addresses that have been told that they will be taken back"""
        self.trouble: BaseException | None = None
        self.thread = threading.Thread(target=self._embody, daemon=True)

    def start(self) -> None:
        import sys
        from pathlib import Path

        server = str(Path(sys.prefix) / "bin" / "moto_server")
        self.lab.service("moto", server, "-H", self.lab.gateway, "-p", "5555", MOTO_IAM_LOAD_MANAGED_POLICIES="true")
        self.thread.start()

    def client(self, name: str = "ec2") -> Any:
        """Use it inside the lab."""
        return self.lab.aws(name, self.url)

    def instances(self) -> list[dict[str, Any]]:
        """What runs now."""

        def ask() -> list[dict[str, Any]]:
            found = self.client().describe_instances()["Reservations"]
            alive = ("pending", "running")
            return [i for r in found for i in r["Instances"] if i["State"]["Name"] in alive]

        return self.lab.inside(ask)

    def workers(self) -> list[dict[str, Any]]:
        assert self.trouble is None, self.trouble
        return [i for i in self.instances() if tags(i).get("ray-node-type") == "worker"]

    def take_back(self, instance: str) -> None:
        """Notice, then the end: what happens to a spot machine."""
        self.noticed.add(self.bodies[instance].ip)

    # --- bodies --------------------------------------------------------------------------------------------------

    def _embody(self) -> None:
        try:
            self.lab.enter()
            self._metadata()
            client = self.client()
            while not self.lab.closing.is_set():
                time.sleep(1)
                try:
                    found = client.describe_instances()["Reservations"]
                except Exception:
                    continue  # moto is not up yet, or is slow
                alive = {
                    i["InstanceId"]: i
                    for r in found
                    for i in r["Instances"]
                    if i["State"]["Name"] in ("pending", "running")
                }
                for id in list(self.bodies):
                    if id not in alive:
                        self.bodies.pop(id).remove()
                    elif not self.bodies[id].alive:
                        client.terminate_instances(InstanceIds=[id])
                        self.bodies.pop(id).remove()
                for id, instance in alive.items():
                    if id not in self.bodies and not self.lab.closing.is_set():
                        self.bodies[id] = self._body(client, instance)
        except BaseException as error:
            self.trouble = error
            raise

    def _body(self, client: Any, instance: dict[str, Any]) -> Host:
        keys = client.describe_key_pairs(KeyNames=[instance["KeyName"]], IncludePublicKey=True)["KeyPairs"]
        ip = instance["PrivateIpAddress"]
        self.noticed.discard(ip)  # another machine had it before
        self.started.append((instance["InstanceId"], instance["InstanceType"]))
        name = "ip-" + ip.replace(".", "-")
        if (self.lab.folder / "hosts" / name).exists():  # EC2 gives addresses again, and never an old disk
            name += f"-{len(self.started)}"
        env = {"AWS_ENDPOINT_URL": self.url, "RAYGRID_METADATA": "http://169.254.169.254"}
        return self.lab.host(name, ip, user="ubuntu", authorized=keys[0]["PublicKey"], **env)

    def _metadata(self) -> None:
        noticed = self.noticed

        class Metadata(BaseHTTPRequestHandler):
            def answer(self, code: int, text: str = "") -> None:
                self.send_response(code)
                self.end_headers()
                self.wfile.write(text.encode())

            def do_PUT(self) -> None:
                self.answer(200, "a-token")

            def do_GET(self) -> None:
                if self.headers.get("X-aws-ec2-metadata-token") != "a-token":
                    self.answer(401)
                elif self.path.endswith("spot/instance-action") and self.client_address[0] in noticed:
                    self.answer(200, json.dumps({"action": "terminate", "time": "2030-01-01T00:00:00Z"}))
                else:
                    self.answer(404)

            def log_message(self, format: str, *args: object) -> None: ...

        server = ThreadingHTTPServer(("169.254.169.254", 80), Metadata)
        threading.Thread(target=server.serve_forever, daemon=True).start()


def tags(instance: dict[str, Any]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in instance.get("Tags", ())}
