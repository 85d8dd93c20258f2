"""Loads over HTTP with oha: closed loops of connections, and open loops at a rate."""

import csv
import io
import subprocess
import time

from machine import Watch
from tools import OHA, BenchError

# What comes before is not counted: connections open, batches fill.
SETTLING = 0.1
OPEN_LOOP_CONNECTIONS = 128


def closed_loop(server, path, photos, connections, seconds):
    """`connections` clients, each of which asks again when it has its answer; the photos in equal shares."""
    if connections < len(photos):
        stages = [[(photo, connections)] for photo in photos]
    else:
        share, rest = divmod(connections, len(photos))
        stages = [[(photo, share + (index < rest)) for index, photo in enumerate(photos)]]
    return measure(server, path, stages, seconds)


def open_loop(server, path, photos, rate, seconds):
    """A request every 1/`rate` seconds, whether or not the one before has been answered; one photo after the other."""
    stages = [[(photo, OPEN_LOOP_CONNECTIONS)] for photo in photos]
    return measure(server, path, stages, seconds, ["-q", f"{rate:.3f}", "--latency-correction"])


def measure(server, path, stages, seconds, options=()):
    """Runs stage after stage, each a list of (photo, connections) that run side by side."""
    length = seconds / len(stages)
    watch, counts, started = Watch(), server.counts(), time.monotonic()
    cpu, other = server.cpu_seconds(), server.other_cpu_seconds()
    answers = []
    for stage in stages:
        command = ["-z", f"{max(1, round(length * 1000))}ms", *options]
        running = [(photo, start(server.url(path), photo, connections, command)) for photo, connections in stage]
        answers += [(photo, read_answers(generator)) for photo, generator in running]
    wall, generator = time.monotonic() - started, watch.generator()
    cpu, other = server.cpu_seconds() - cpu, server.other_cpu_seconds() - other
    others, stolen = watch.others(cpu, wall)
    after = server.counts()
    counts = {key: after[key] - counts[key] for key in counts}
    requests = sum(len(rows) for _, rows in answers)
    if requests == 0:
        raise BenchError("the load generator got no answer; lengthen the loads with --seconds")
    if counts["answered"] < requests:
        raise BenchError(f"{requests} answers came, but the server counts {counts['answered']:.0f}")
    return {
        "requests": requests,
        "by_photo": [(photo.name, len(rows)) for photo, rows in answers],
        # Answers that say no, and those that did not arrive.
        "failed": counts["answered"] - sum(status == 200 for _, rows in answers for _, _, status in rows),
        "per_second": sum(rate(rows, length) for _, rows in answers) / len(stages),
        **percentiles([duration for _, rows in answers for begin, duration, _ in rows if begin >= SETTLING * length]),
        "cpu_ms": cpu * 1e3 / counts["answered"],
        "other_cpu_ms": other * 1e3 / counts["answered"],
        "generator_cpu_ms": generator * 1e3 / requests,
        "batch": counts["images"] / counts["runs"] if counts["runs"] else 0,
        "others": others,
        "stolen": stolen,
    }


def start(url, photo, connections, options):
    # -w: what is under way at the end is waited for, so that no CPU time is spent on what is not counted.
    fixed = ["--no-tui", "--output-format", "csv", "-w", "-m", "POST", "-T", "image/jpeg", "--worker-threads", "1"]
    command = [OHA, *fixed, *options, "-c", connections, "-D", photo, url]
    return subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True)


def read_answers(generator):
    """(start in seconds, duration in milliseconds, status) of each answer."""
    output, _ = generator.communicate()
    if generator.returncode != 0:
        raise BenchError(f"the load generator failed with {generator.returncode}")
    rows = csv.DictReader(io.StringIO(output))
    return [(float(row["request-start"]), float(row["request-duration"]) * 1e3, int(row["status"])) for row in rows]


def rate(rows, length):
    """Good answers per second between the settling and the end of the stage."""
    begin = SETTLING * length
    good = sum(status == 200 and begin <= start + duration / 1e3 < length for start, duration, status in rows)
    return good / (length - begin)


def percentiles(durations):
    durations = sorted(durations)
    if not durations:
        raise BenchError("a load was too short for a single answer; lengthen it with --seconds")

    def at(share):
        return durations[min(len(durations) - 1, int(len(durations) * share))]

    return {"p50_ms": at(0.5), "p90_ms": at(0.9), "p99_ms": at(0.99)}
