"""A server under measurement: started, watched through /proc and its own metrics, stopped."""

import http.client
import json
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

from machine import family_cpu_seconds, process_cpu_seconds, thread_cpu_seconds
from tools import BINARY, ROOT, BenchError

READY_LIMIT = 300
TUNED_LIMIT = 300
STOP_LIMIT = 30
# Linux keeps so many characters.
THREAD_NAME = 15
# 512 connections may each have a request in work, which takes a large model a minute; by default some would be told to come back
# later.
OPTIONS = ["--request-timeout-ms", "120000", "--log-format", "json"]


class Server:
    """Runs `ocelli serve` on a free port, and is ready when entered."""

    def __init__(self, models_dir, cache_dir, log, options=()):
        self.settings = ["--models-dir", models_dir, "--cache-dir", cache_dir, *OPTIONS, *options]
        self.log = log

    def __enter__(self):
        self.port = free_port()
        command = [BINARY, "serve", "--listen", f"127.0.0.1:{self.port}", *map(str, self.settings)]
        with open(self.log, "ab") as log:
            started = time.monotonic()
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        try:
            self.wait_until_ready(started + READY_LIMIT)
        except BaseException:
            self.stop()
            raise
        self.seconds_to_ready = time.monotonic() - started
        self.names = [model["name"] for model in self.models()]
        return self

    def __exit__(self, *_):
        self.stop()

    def wait_until_ready(self, deadline):
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise BenchError(f"the server ended at once; {self.log} says why")
            try:
                if self.request("GET", "/readyz")[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.002)
        raise BenchError(f"the server was not ready in {READY_LIMIT} s; {self.log} says why")

    def stop(self):
        """Stops at once, as Ctrl-C does; nothing is in flight any more."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def wait_until_tuned(self):
        """Waits until no graph is measured any more; a graph of which nothing is left open never is."""
        deadline = time.monotonic() + TUNED_LIMIT
        while time.monotonic() < deadline:
            graphs = [graph for model in self.models() for graph in model["graphs"]]
            if all("tuning" in graph for graph in graphs) or not self.is_busy():
                return
        raise BenchError(f"tuning did not end in {TUNED_LIMIT} s; {self.log} says why")

    def is_busy(self):
        """Does the server compute without being asked anything, itself or in the processes in which it measures?"""
        before = family_cpu_seconds(self.process.pid)
        time.sleep(3)
        return family_cpu_seconds(self.process.pid) - before > 0.3

    def request(self, method, path, body=None, content_type=None):
        """One request on a connection of its own; the status and the body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            headers = {"Content-Type": content_type} if content_type else {}
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def models(self):
        return json.loads(self.request("GET", "/v1/models")[1])["models"]

    def url(self, path):
        return f"http://127.0.0.1:{self.port}{path}"

    def cpu_seconds(self):
        return process_cpu_seconds(self.process.pid)

    def other_cpu_seconds(self):
        """Of the threads that neither preprocess nor infer."""
        threads = thread_cpu_seconds(self.process.pid)
        return sum(seconds for name, seconds in threads if not self.works_on_images(name))

    def works_on_images(self, thread):
        """Workers are called after their model, as far as the system lets them; they put batches together and take part in runs."""
        workers = (f"{name}/"[:THREAD_NAME] for name in self.names)
        return thread.startswith(("preprocess", "inference", *workers))

    def peak_mb(self):
        return self.memory_mb("VmHWM")

    def resident_mb(self):
        return self.memory_mb("VmRSS")

    def memory_mb(self, key):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"^{key}:\s*(\d+) kB", status, re.MULTILINE)[1]) * 1024 / 1e6

    def counts(self):
        """Inference requests answered so far, and the images and runs of the batches that they made."""
        metrics = self.request("GET", "/metrics")[1].decode()

        def total(name, label):
            values = re.findall(rf"^{name}{{[^}}]*{label}[^}}]*}} (\S+)", metrics, re.MULTILINE)
            return sum(float(value) for value in values)

        image_graph = 'graph="(?:vision_)?model"'
        return {
            "answered": total("ocelli_requests_total", 'endpoint="/v1/(?:classify|zero-shot)"'),
            "images": total("ocelli_batch_size_sum", image_graph),
            "runs": total("ocelli_batch_size_count", image_graph),
        }


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def raise_file_limit():
    """512 connections need more open files than some systems allow at first."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def question(task):
    """The path that asks a model for `task`: an image of its own labels, or of ten, which the server keeps."""
    if task == "image-classification":
        return "/v1/classify"
    return "/v1/zero-shot?" + "&".join(f"labels={label.replace(' ', '+')}" for label in LABELS)


LABELS = (
    "a cup of coffee",
    "a rocket",
    "a temple",
    "a flower",
    "a cat",
    "a dog",
    "a car",
    "a landscape",
    "a person",
    "a page of text",
)
