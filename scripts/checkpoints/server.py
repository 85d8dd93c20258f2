"""The real server as a child process on a free port, and its HTTP interface."""

import base64
import json
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from .errors import Refused

#: Loading hashes, opens and warms a graph of up to 1.2 GB; large inputs take seconds on a CPU.
START_LIMIT, REQUEST_LIMIT = 600, 600


class Server:
    """`ocelli serve` on the model folders given, for the length of a `with` block."""

    def __init__(self, binary: Path, folders: list, *settings: str):
        self.models = tempfile.TemporaryDirectory(prefix="ocelli-parity-")
        for folder in folders:
            (Path(self.models.name) / folder.name).symlink_to(folder.resolve())
        limits = ("--request-timeout-ms", str(REQUEST_LIMIT * 1000), "--max-body-mb", "200", "--max-batch-size", "2")
        self.command = [str(binary), "serve", "--models-dir", self.models.name, "--listen", "127.0.0.1:0"]
        self.command += ["--log-format", "json", "--log-level", "info", *limits, *settings]
        self.log, self.address = [], None

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        threading.Thread(target=self.read_log, daemon=True).start()
        try:
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self) -> None:
        # SIGINT: without the grace period that load balancers get.
        self.process.send_signal(2)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.models.cleanup()

    def read_log(self) -> None:
        for line in self.process.stderr:
            self.log.append(line.rstrip())
            self.address = self.address or address_in(line)

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_LIMIT
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise Refused("the server ended: " + " / ".join(self.log[-5:]))
            states = self.states() if self.address else {}
            failed = [f"{name}: {model.get('reason')}" for name, model in states.items() if model["state"] == "failed"]
            if failed:
                raise Refused("the server cannot load " + "; ".join(failed))
            if states and all(model["state"] == "ready" for model in states.values()):
                return
            time.sleep(0.2)
        raise Refused(f"the server was not ready within {START_LIMIT} s: " + " / ".join(self.log[-5:]))

    def states(self) -> dict:
        return {model["name"]: model for model in self.request("GET", "/v1/models")["models"]}

    def classify(self, model: str, content: bytes, **parameters) -> list:
        """Pairs of index and score, in the server's order."""
        query = urllib.parse.urlencode({"model": model, **parameters})
        return pairs(self.request("POST", f"/v1/classify?{query}", content, "application/octet-stream"))

    def zero_shot(self, model: str, content: bytes, labels, templates) -> list:
        """Pairs of index and score, in the server's order."""
        body = {"model": model, "image": base64.b64encode(content).decode(), "labels": list(labels)}
        body["hypothesis_template"] = list(templates)
        return pairs(self.request("POST", "/v1/zero-shot", json.dumps(body).encode(), "application/json"))

    def request(self, method: str, path: str, body: bytes | None = None, content_type: str | None = None) -> dict:
        headers = {"Content-Type": content_type} if content_type else {}
        request = urllib.request.Request(f"http://{self.address}{path}", body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=REQUEST_LIMIT) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            raise Refused(
                f"{method} {path} gave {error.code}: {error.read().decode(errors='replace')[:500]}"
            ) from error
        except OSError as error:
            raise Refused(f"{method} {path}: {error}; the server's last words: {' / '.join(self.log[-5:])}") from error


def address_in(line: str):
    try:
        return json.loads(line).get("address")
    except ValueError:
        return None


def pairs(answer: dict) -> list:
    (result,) = answer["results"]
    return [(prediction["index"], prediction["score"]) for prediction in result["predictions"]]
