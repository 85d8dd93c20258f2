"""The machine: what it is, and who used its processor meanwhile."""

import os
import platform
import subprocess
from datetime import date
from pathlib import Path

from tools import BINARY, OHA_VERSION, ROOT

TICKS = os.sysconf("SC_CLK_TCK")


def describe():
    """What a reader has to know to compare figures, as (name, value) pairs."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    settings = sorted(f"{key}={value}" for key, value in os.environ.items() if key.startswith("OCELLI_"))
    return [
        ("date", date.today().isoformat()),
        ("processor", f"{processor()}, {len(os.sched_getaffinity(0))} cores usable"),
        ("memory", f"{memory:.0f} GiB"),
        ("system", f"{distribution()}, Linux {platform.release().split('-')[0]}"),
        ("Ocelli", f"{output(BINARY, '--version').split()[-1]}, {COMMIT}"),
        ("ONNX Runtime", library()),
        ("compiler", output("rustc", "--version")),
        ("load generator", f"oha {OHA_VERSION}, on the same machine"),
        ("settings", ", ".join(settings) or "none: the defaults"),
    ]


def output(*command):
    try:
        return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            flags = [flag for flag in ("avx512f", "avx512_bf16", "amx_bf16") if flag in cpu_flags()]
            return f"{line.split(':', 1)[1].strip()} ({', '.join(flags) or platform.machine()})"
    return platform.machine()


def cpu_flags():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return line.split()
    return []


def distribution():
    try:
        lines = Path("/etc/os-release").read_text().splitlines()
    except OSError:
        return platform.system()
    names = [line.split("=", 1)[1].strip('"') for line in lines if line.startswith("PRETTY_NAME=")]
    return names[0] if names else platform.system()


def commit():
    changed = " with changes" if output("git", "status", "--porcelain", "--untracked-files=no") else ""
    return output("git", "rev-parse", "--short", "HEAD") + changed


# Told at the start: what is measured was built then, and the pages that are written would count as changes.
COMMIT = commit()


def library():
    named = os.environ.get("OCELLI_ONNXRUNTIME") or os.environ.get("ORT_DYLIB_PATH")
    folder = Path(named) if named else ROOT / ".setup" / "onnxruntime"
    found = sorted(folder.glob("libonnxruntime.so.*")) if folder.is_dir() else [folder]
    version = found[0].name.split(".so.")[-1] if found else "unknown"
    openvino = " with OpenVINO" if (found[0].parent / "libonnxruntime_providers_openvino.so").exists() else ""
    return version + openvino


def process_cpu_seconds(pid):
    """CPU time of a process and all of its threads, without its children."""
    return sum(map(int, process_fields(pid)[11:13])) / TICKS


def thread_cpu_seconds(pid):
    """(name, CPU time) of each thread of a process."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            nanoseconds = int((task / "schedstat").read_text().split()[0])
            yield (task / "comm").read_text().strip(), nanoseconds / 1e9
        except OSError:
            # It has ended meanwhile.
            continue


def family_cpu_seconds(pid):
    """CPU time of a process and its children, those that have ended included."""
    total = sum(map(int, process_fields(pid)[11:15]))
    for other in Path("/proc").glob("[0-9]*"):
        try:
            fields = process_fields(other.name)
        except OSError:
            continue  # It has ended since.
        if fields[1] == str(pid):
            total += int(fields[11]) + int(fields[12])
    return total / TICKS


def process_fields(pid):
    """What /proc tells of a process, from its state on; the name before that may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


class Watch:
    """Measures from its start on how much CPU time the whole machine used, and this program with its children."""

    def __init__(self):
        self.machine, self.stolen = machine_cpu_seconds()
        self.own = own_cpu_seconds()
        self.children = children_cpu_seconds()

    def generator(self):
        """CPU time of the children that have ended since: the load generator's."""
        return children_cpu_seconds() - self.children

    def others(self, server, wall):
        """The share of the machine that others used than the server (its CPU seconds) and this program; the stolen one."""
        machine, stolen = machine_cpu_seconds()
        own = own_cpu_seconds() - self.own
        capacity = wall * len(os.sched_getaffinity(0))
        return max(0.0, machine - self.machine - own - server) / capacity, (stolen - self.stolen) / capacity


def machine_cpu_seconds():
    """CPU time of all processes on the usable cores since the machine's start, and what the host gave to others."""
    # cpu  user nice system idle iowait irq softirq steal: interrupts belong to whom they serve, which nobody knows.
    lines = (line.split() for line in Path("/proc/stat").read_text().splitlines())
    usable = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    cores = [[int(field) for field in line[1:9]] for line in lines if line and line[0] in usable]
    return sum(sum(fields[:3]) for fields in cores) / TICKS, sum(fields[7] for fields in cores) / TICKS


def own_cpu_seconds():
    return sum(os.times()[:4])


def children_cpu_seconds():
    times = os.times()
    return times.children_user + times.children_system
