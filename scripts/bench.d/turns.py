"""A load over HTTP and the same work without HTTP, in turns of a fraction of a second: what slows the machine slows both alike.

Both go on all the time, but for signals that stop one while the other has its turn.
"""

import json
import signal
import subprocess
import time

from load import read_answers, start
from tools import BenchError, median

TURN = 0.25
# Connections open, batches fill.
WARM_UP = 1.5
# The load ends when the bench does, which is sooner.
LONG = ["-z", "3600s"]


def load_and_bench(server, path, photos, connections, command):
    """Loads the server for as long as `command`, an `ocelli bench`, measures. The photos share the connections; where there are
    fewer of these, they have one at a time, turn by turn. Returns the load's figures and the bench's report.
    """
    bench = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    generators = []
    try:
        await_measuring(bench)
        bench.send_signal(signal.SIGSTOP)
        for photo in photos:
            begin = time.monotonic()
            generators.append((start(server.url(path), photo, max(1, connections // len(photos)), LONG), begin))
        time.sleep(WARM_UP)
        processes = [process for process, _ in generators]
        cpu = server.cpu_seconds()
        turns = take_turns(server.process, bench, processes, together=connections >= len(photos))
        cpu = server.cpu_seconds() - cpu
        output, _ = bench.communicate()
        if bench.returncode != 0:
            raise BenchError(f"`{' '.join(command)}` failed with {bench.returncode}")
        answers = [stop(process, begin) for process, begin in generators]
    finally:
        send([server.process], signal.SIGCONT)
        for process in (bench, *(process for process, _ in generators)):
            process.kill()
            process.wait()
    return figures(turns, answers, cpu), json.loads(output)["report"]


def await_measuring(bench):
    """Until the bench has opened its sessions. What it says after that is little enough for a pipe to hold."""
    for line in bench.stderr:
        if "measuring" in line:
            return
    raise BenchError("`ocelli bench` ended before it measured anything")


def take_turns(server, bench, generators, together):
    """Until the bench has ended. Returns (begin, end, numbers of the generators that ran) of each turn of the load."""
    turns = []
    send(generators, signal.SIGSTOP)
    while bench.poll() is None:
        running = range(len(generators)) if together else [len(turns) % len(generators)]
        processes = [server, *(generators[index] for index in running)]
        begin = time.monotonic()
        send(processes, signal.SIGCONT)
        time.sleep(TURN)
        send(reversed(processes), signal.SIGSTOP)
        turns.append((begin, time.monotonic(), running))
        send([bench], signal.SIGCONT)
        try:
            bench.wait(TURN)
        except subprocess.TimeoutExpired:
            send([bench], signal.SIGSTOP)
    send([server, *generators], signal.SIGCONT)
    return turns


def send(processes, number):
    for process in processes:
        process.send_signal(number)


def stop(process, begin):
    """Ends a generator. Returns (start, end, status) of each of its answers, by this program's clock."""
    process.send_signal(signal.SIGINT)
    return [(begin + at, begin + at + took / 1e3, status) for at, took, status in read_answers(process)]


def figures(turns, answers, cpu):
    """Good answers a second of all turns; of those that came in the turn in which they were asked for, the mean of the turns' medians."""
    # A generator's clock begins when it has started, some hundredths of a second after this program has told it to. So its answers are not
    # sorted into turns to be counted: it gets none outside of them.
    first, last = turns[0][0], turns[-1][1]
    count = sum(status == 200 for rows in answers for _, done, status in rows if first <= done <= last)
    medians = []
    for begin, end, running in turns:
        rows = [row for index in running for row in answers[index] if begin <= row[1] <= end]
        durations = [(done - at) * 1e3 for at, done, _ in rows if at >= begin]
        if durations:
            medians.append(median(durations))
    if not count:
        raise BenchError("the load generator got no answer in any turn; lengthen the loads with --seconds")
    return {
        "per_second": count / sum(end - begin for begin, end, _ in turns),
        "p50_ms": sum(medians) / len(medians) if medians else float("nan"),
        "cpu_ms": cpu * 1e3 / count,
    }
