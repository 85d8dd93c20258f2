"""docs/bench.md and docs/bench.svg, out of what a sitting found."""

from statistics import mean

import machine
import suite
import svg
from tools import median

# Most of the processor that others may take for figures to be trusted: a load that is slower by this much is so within its noise.
TAKEN = 0.02

# Label, key of suite.ratios, format, and what the project wants of it.
RATIOS = (
    ("throughput at 32 connections ÷ limit", "throughput_ratio", "{:.2f}", "≥ 0.95"),
    ("the same ÷ the limit of what the load generator left of the processor", "left_ratio", "{:.2f}", ""),
    ("CPU-ms a request of threads that neither preprocess nor infer", "overhead_cpu_ms", "{:.2f}", "≤ 0.3"),
    ("all CPU-ms a request − those of preprocessing and inference without HTTP", "beyond_cpu_ms", "{:.2f}", ""),
    ("one connection, p50 ÷ (preprocessing + one image with all cores)", "latency_ratio", "{:.2f}", "≤ 1.15"),
    ("open loop at 70 %, p99 ÷ the same", "open_ratio", "{:.2f}", "≤ 3"),
    ("throughput at 512 ÷ at 32 connections", "crowd_ratio", "{:.2f}", "≥ 0.97"),
    ("CPU-ms of preprocessing a 12-megapixel JPEG", "large_cpu_ms", "{:.1f}", "≤ 22"),
)
PARTS = (
    ("requests/s at 32 connections", "throughput", "{:.1f}"),
    ("limit, requests/s", "limit", "{:.1f}"),
    ("preprocessing, CPU-ms with all cores busy", "preprocessing_cpu_ms", "{:.2f}"),
    ("preprocessing, CPU-ms with one core busy", "preprocessing_alone_cpu_ms", "{:.2f}"),
    ("preprocessing, ms", "preprocessing_ms", "{:.2f}"),
    ("inference, CPU-ms an image at the best batch", "inference_cpu_ms", "{:.2f}"),
    ("inference of one image with all cores, ms", "single_ms", "{:.2f}"),
    ("one connection, p50 in ms", "p50_ms", "{:.2f}"),
    ("open loop at 70 %, p99 in ms", "open_p99_ms", "{:.1f}"),
    ("12-megapixel photos, requests/s at 8 connections", "large_per_second", "{:.1f}"),
)
EXPLANATION = """
- **limit** = cores ÷ (CPU time of preprocessing + CPU time of inference at its best batch), both measured without HTTP in
  the server's own code (`ocelli bench`). The limit and the load of 32 connections that is compared with it take turns of a
  quarter of a second, in which the other is stopped, so that a machine that is slow for a moment is so for both; the same
  goes for one connection and what it is compared with. Preprocessing counts as it is with all cores busy, since a server
  at its limit has no idle ones. By itself it takes one thread; the server, while it has cores to spare, decodes a picture by two.
- **best batch**: of the three sizes at which one session of all cores, a session a core, or the sessions that serve did
  most images/s, the one that took least CPU time in turns with the load.
- **threads that neither preprocess nor infer** handle HTTP and JSON: their CPU time is told by the system, thread by thread.
  Those that put batches together (which includes normalising) and take part in their runs count as inference, as they do in
  the limit. The difference in the row below also has in it what preprocessing and inference lose to each other's caches
  when they run side by side.
- **requests/s** by connections: answers with status 200 in the last nine tenths of a load. Four photos of about 640×480
  (JPEG, quality 90, 4:2:0) in equal shares. The load generator runs on the same machine; what it costs is in the tables.
- **open loop**: a request at regular intervals, whether or not those before have been answered; latency counts from when
  it was due.
- **peak memory**: of loading and the first load of 32 connections (`VmHWM`).
- **start**: from exec to the first 200 of `/readyz`, with the measurements of an earlier start in the cache.
- The server's settings are its defaults, but for `request_timeout_ms` (two minutes), so that 512 connections all stay.
- Zero-shot models are asked with ten labels whose embeddings are cached.
"""


def write(results, options):
    folder = options.output
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "bench.md"
    page.write_text(markdown(results, options), encoding="utf-8")
    svg.write(folder / "bench.svg", list(panels(results)))
    return page


def markdown(results, options):
    ratios = {name: suite.ratios(result) for name, result in results.items()}
    taken = mean(mean(one["taken"]) for one in ratios.values())
    most_taken = max(max(one["most_taken"]) for one in ratios.values())
    return "\n".join(
        [
            "# Bench",
            "",
            f"Written by `{options.command}`, which measures it all again. Each figure is the median of",
            f"{options.rounds} round(s), with the lowest and the highest in parentheses where it is to be judged by.",
            "",
            *machine_table(),
            "",
            f"Other processes and the host took {taken:.1%} of the processor during the loads, and {most_taken:.1%} during the worst."
            + (" **That is too much for these figures to be trusted.**" if taken > TAKEN else ""),
            "",
            "## Ratios",
            "",
            *ratio_table(results, ratios),
            "",
            "![Throughput and latency by connections](bench.svg)",
            "",
            "## What they are made of",
            "",
            *parts_table(results, ratios),
            EXPLANATION,
            *(line for name, result in results.items() for line in model_section(name, result)),
        ]
    )


def machine_table():
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in machine.describe())]


def table(header, rows):
    return [f"| {' | '.join(header)} |", "|---" * len(header) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def ratio_table(results, ratios):
    rows = [
        [label, wanted, *(spread(one[key], form) for one in ratios.values())] for label, key, form, wanted in RATIOS
    ]
    rows.append(["peak memory, MB", "", *(f"{result['peak_mb']:.0f}" for result in results.values())])
    tuning = [f"{result['tuning_peak_mb']:.0f}" for result in results.values()]
    rows.append(["peak memory of a first start, which tunes, MB", "", *tuning])
    rows.append(["start to ready, s", "", *(f"{result['seconds_to_ready']:.2f}" for result in results.values())])
    failed = [sum(one["failed"]) for one in ratios.values()]
    rows.append(["requests without a 200", "0", *(f"{count:.0f}" for count in failed)])
    return table(["", "wanted", *results], rows)


def parts_table(results, ratios):
    rows = [[label, *(form.format(median(one[key])) for one in ratios.values())] for label, key, form in PARTS]
    return table(["", *results], rows)


def spread(values, form):
    middle = form.format(median(values))
    return f"{middle} ({form.format(min(values))} to {form.format(max(values))})" if len(values) > 1 else middle


def model_section(name, result):
    graph = result["limit"]["graph"]
    full = max(graph["batch_sizes_warmed"])
    yield f"## {name}"
    yield ""
    yield (
        f"Served by {graph['provider']} in {graph['precision']}, {graph['instances']} instance(s) of {graph['threads']} "
        f"thread(s), batches up to {full} ({graph['provider_reason']})."
        + (f" Fewer images: from {graph['small_batch_size']} at a time on." if graph.get("small_batch_size", full) < full else "")
        + (f" Lone images: {graph['solo_threads']} threads." if "solo_threads" in graph else "")
    )
    yield ""
    header = [
        "connections",
        "requests/s",
        "p50 ms",
        "p99 ms",
        "CPU-ms",
        "generator CPU-ms",
        "images a batch",
        "not 200",
    ]
    forms = ("{:.1f}", "{:.1f}", "{:.1f}", "{:.2f}", "{:.2f}", "{:.1f}", "{:.0f}")
    rows = [
        [load, *(form.format(value) for form, value in zip(forms, figures.values()))]
        for load, figures in suite.load_table(result)
    ]
    yield from table(header, rows)
    yield ""
    yield "Without HTTP, in the same arithmetic:"
    yield ""
    header = ["sessions × threads", "batch", "images/s", "CPU-ms an image", "ms a run"]
    yield from table(header, inference_rows(result))
    yield ""


def inference_rows(result):
    for cost in suite.served(result["limit"]):
        ways = f"{cost['instances']} × {cost['threads']}"
        figures = (cost["per_second"], cost["cpu_ms"], cost["run_ms"])
        forms = ("{:.1f}", "{:.2f}", "{:.2f}")
        yield [ways, str(cost["batch_size"]), *(form.format(value) for form, value in zip(forms, figures))]


def panels(results):
    for name, result in results.items():
        limit = median(suite.ratios(result)["limit"])
        loads = [(int(load), figures) for load, figures in suite.load_table(result) if load.isdigit()]
        throughput = svg.Panel(name, "connections", "requests/s")
        throughput.add("measured", [(load, figures["per_second"]) for load, figures in loads])
        throughput.add("limit", [(loads[0][0], limit), (loads[-1][0], limit)], dashed=True)
        latency = svg.Panel(name, "connections", "latency, ms", log_y=True)
        for key, label in (("p50_ms", "median"), ("p99_ms", "99th percentile")):
            latency.add(label, [(load, figures[key]) for load, figures in loads])
        yield throughput
        yield latency
