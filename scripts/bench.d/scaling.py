"""How cost grows with the work: images, labels, connections, models, and the size of a photo."""

import itertools
import json
import shutil
import time
from urllib.parse import urlencode

import svg
from load import closed_loop
from report import machine_table, table
from server import Server, question
from tools import WORK, BenchError, link_models, median, say

IMAGES = (1, 2, 4, 8, 16, 32, 64)
LABELS = (1, 3, 10, 30, 100, 300, 1000)
CONNECTIONS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
MODELS = (1, 2, 4, 7, 10)
LEAST_REQUESTS = 3
BOUNDARY = "ocelli-bench-boundary"
TASKS = {"classifier": "image-classification", "zero-shot": "zero-shot-image-classification"}


class Series:
    """A cost by the amount of work: [(work, cost), …]."""

    def __init__(self, panel, name, work, unit, points):
        self.panel, self.name, self.work, self.unit, self.points = panel, name, work, unit, points

    def growth(self):
        """The most that the cost grew from the first point on, in parts of what the work did."""
        (work, cost), *rest = self.points
        return max((later_cost / cost) / (later_work / work) for later_work, later_cost in rest)


def write(options, usual, sizes):
    """Measures everything and writes the page and the plot."""
    folder = WORK / "scaling"
    shutil.rmtree(folder, ignore_errors=True)
    models = find_tasks(options, folder)
    series = list(measure(options, folder, models, usual, sizes))
    options.output.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps([vars(one) for one in series], indent=1), encoding="utf-8")
    svg.write(options.output / "bench-scaling.svg", panels(series))
    page = options.output / "bench-scaling.md"
    page.write_text(markdown(options, models, series), encoding="utf-8")
    return page


def find_tasks(options, folder):
    """The first model of each task, among those that were named."""
    everything = link_models(folder / "all", [(name, options.models_dir / name) for name in options.models])
    with Server(everything, folder / "cache", folder / "server.log") as server:
        tasks = {model["name"]: model.get("task") for model in server.models() if model["state"] == "ready"}
    found = {}
    for kind, task in TASKS.items():
        names = [name for name in options.models if tasks.get(name) == task]
        if not names:
            raise BenchError(f"there is no model for {task}; put one into {options.models_dir}, or leave --model out")
        found[kind] = names[0]
    return found


def measure(options, folder, models, usual, sizes):
    paths = {name: options.models_dir / name for name in models.values()}
    cache, log = folder / "cache", folder / "server.log"
    pair = link_models(folder / "pair", paths.items())
    say("tuning …")
    with Server(pair, cache, log) as server:
        server.wait_until_tuned()
    with Server(pair, cache, log) as server:
        yield from by_images(options, server, usual)
        yield from by_labels(options, server, usual[0])
    alone = link_models(folder / "alone", [(models["classifier"], paths[models["classifier"]])])
    with Server(alone, cache, log) as server:
        yield from by_connections(options, server, usual)
    yield from by_models(options, folder, paths[models["classifier"]], cache, log, usual)
    with Server(alone, cache, log) as server:
        yield from by_size(options, server, sizes)


def by_images(options, server, usual):
    say("by images per request …")
    photos = [path.read_bytes() for path in usual]
    points = []
    for count in IMAGES:
        body = multipart([("image", photo) for photo in itertools.islice(itertools.cycle(photos), count)])
        points.append((count, *repeat(options, server, "/v1/classify", lambda body=body: body)))
    yield from latency_and_cpu("images per request", "", points)


def by_labels(options, server, photo):
    say("by labels per request …")
    image = ("image", photo.read_bytes())
    fresh = itertools.count()

    def new_labels(count):
        # Of words that every vocabulary has, and never the same twice.
        return [("labels", f"a photo of {next(fresh)} things".encode()) for _ in range(count)]

    for kind in ("first", "repeated"):
        points = []
        for count in LABELS:
            same = multipart([image, *new_labels(count)])
            body = (lambda same=same: same) if kind == "repeated" else lambda: multipart([image, *new_labels(count)])
            points.append((count, *repeat(options, server, "/v1/zero-shot", body)))
        yield from latency_and_cpu("labels per request", f"{kind}: ", points)


def by_connections(options, server, usual):
    say("by connections …")
    path = question(TASKS["classifier"])
    points, pace = [], None
    for connections in CONNECTIONS:
        seconds = max(options.seconds, min(60, 2 * connections / pace)) if pace else options.seconds
        load = closed_loop(server, path, usual, connections, seconds)
        pace = load["per_second"]
        points.append((connections, load["p50_ms"], load["cpu_ms"], server.peak_mb()))
    yield from latency_and_cpu("connections", "", [point[:3] for point in points])
    yield Series("memory by connections", "peak", "connections", "MB", [(work, mb) for work, _, _, mb in points])


def by_models(options, folder, model, cache, log, usual):
    """Copies of one model by other names, so that nothing but their number differs."""
    say("by models loaded …")
    start, memory, latency = [], [], []
    for count in MODELS:
        names = [f"copy-{index}" for index in range(count)]
        models_dir = link_models(folder / f"copies-{count}", [(name, model) for name in names])
        with Server(models_dir, cache, log) as server:
            load = closed_loop(server, f"/v1/classify?{urlencode({'model': names[-1]})}", usual, 1, options.seconds)
            start.append((count, server.seconds_to_ready * 1e3))
            memory.append((count, server.peak_mb()))
            latency.append((count, load["p50_ms"]))
    yield Series("models loaded", "start to ready", "models", "ms", start)
    yield Series("models loaded", "one image, p50", "models", "ms", latency)
    yield Series("memory by models", "peak", "models", "MB", memory)


def by_size(options, server, sizes):
    say("by size of the photo …")
    points, memory = [], []
    for size, photo in sizes.items():
        body = photo.read_bytes()
        points.append((float(size), *repeat(options, server, "/v1/classify", lambda body=body: body, "image/jpeg")))
        # Sizes grow, so that the peak so far is this one's.
        memory.append((float(size), server.peak_mb()))
    yield from latency_and_cpu("megapixels", "", points)
    yield Series("memory by size of the photo", "peak", "megapixels", "MB", memory)


def latency_and_cpu(work, prefix, points):
    yield Series(work, f"{prefix}latency", work, "ms", [(amount, latency) for amount, latency, _ in points])
    yield Series(work, f"{prefix}CPU", work, "ms", [(amount, cpu) for amount, _, cpu in points])


def repeat(options, server, path, make_body, content_type=f"multipart/form-data; boundary={BOUNDARY}"):
    """One request after the other; the median latency and the server's CPU time a request, in milliseconds."""
    check(server, path, make_body(), content_type)
    latencies, cpu, begin = [], server.cpu_seconds(), time.monotonic()
    while len(latencies) < LEAST_REQUESTS or time.monotonic() - begin < options.seconds:
        body = make_body()
        started = time.monotonic()
        check(server, path, body, content_type)
        latencies.append((time.monotonic() - started) * 1e3)
    return median(latencies), (server.cpu_seconds() - cpu) * 1e3 / len(latencies)


def check(server, path, body, content_type):
    status, answer = server.request("POST", path, body, content_type)
    if status != 200:
        raise BenchError(f"{path} answered {status}: {answer[:300].decode(errors='replace')}")


def multipart(fields):
    """A form's body; an image is sent as a file."""
    parts = []
    for name, value in fields:
        file = '; filename="photo.jpg"' if name == "image" else ""
        parts.append(f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode())
        parts += [value, b"\r\n"]
    return b"".join([*parts, f"--{BOUNDARY}--\r\n".encode()])


def by_panel(series):
    """Series that are shown together, by their panel's title."""
    groups = {}
    for one in series:
        groups.setdefault(one.panel, []).append(one)
    return groups


def panels(series):
    result = []
    for title, group in by_panel(series).items():
        panel = svg.Panel(title, group[0].work, group[0].unit, log_y=True)
        for one in group:
            panel.add(one.name, one.points)
        # As the work grows, from the highest first point.
        (work, _), (last, _) = group[0].points[0], group[0].points[-1]
        highest = max(one.points[0][1] for one in group)
        panel.add("in proportion", [(work, highest), (last, highest * last / work)], dashed=True)
        result.append(panel)
    return result


def markdown(options, models, series):
    lines = [
        "# Cost as the work grows",
        "",
        f"Written by `{options.command}`, with {models['classifier']} and {models['zero-shot']}, one request after the",
        "other but for the connections. **Growth** is the most that a cost grew from the first column on, in parts of what",
        "the work did: 1 is in proportion.",
        "",
        *machine_table(),
        "",
        "![Costs by work](bench-scaling.svg)",
        "",
    ]
    for title, group in by_panel(series).items():
        works = [work for work, _ in group[0].points]
        header = [group[0].work, *(f"{work:g}" for work in works), "growth"]
        rows = [
            [f"{one.name}, {one.unit}", *(svg.number(cost) for _, cost in one.points), f"{one.growth():.2f}"]
            for one in group
        ]
        lines += [f"## {title[0].upper()}{title[1:]}", "", *table(header, rows), ""]
    return "\n".join(lines)
