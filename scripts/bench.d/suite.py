"""The sitting: for each model the limit, the loads over HTTP, and the ratios between them."""

import shutil
from collections import defaultdict

from load import closed_loop, open_loop
from server import Server, question
from tools import WORK, BenchError, link_models, median, ocelli_bench, say

# Between these, throughput is compared with the limit; after it, memory is read.
FULL = 32
CONNECTIONS = (FULL, 1, 8, 128, 512)
OPEN_LOOP_SHARE = 0.7
LARGE_CONNECTIONS = (1, 8)
PLAN = ("provider", "precision", "instances", "threads", "solo_threads", "batch_sizes_warmed")
# Of the length of a load, for a figure without HTTP.
FIGURE_SHARE = 0.1


def measure_models(options, usual, sizes):
    """Everything that is measured of each model, by its name."""
    return {name: measure_model(options, name, usual, sizes["12"]) for name in options.models}


def measure_model(options, name, usual, large):
    """Tunes a model in a start of its own, then measures a start with warm caches."""
    folder = WORK / "run" / name
    shutil.rmtree(folder, ignore_errors=True)
    models_dir = link_models(folder / "models", [(name, options.models_dir / name)])
    cache, log = folder / "cache", folder / "server.log"
    say(f"{name}: tuning …")
    with Server(models_dir, cache, log) as server:
        server.wait_until_tuned()
        tuning_peak_mb = server.peak_mb()
    with Server(models_dir, cache, log) as server:
        (model,) = server.models()
        result = {"seconds_to_ready": server.seconds_to_ready, "tuning_peak_mb": tuning_peak_mb, "rounds": []}
        closed_loop(server, question(model["task"]), usual, FULL, 1)
        for number in range(1, options.rounds + 1):
            say(f"{name}: round {number} of {options.rounds} …")
            report = measure_limit(options, models_dir, cache, name, [*usual, large])
            check_plan(server, report["graph"])
            loads = measure_loads(options, server, question(model["task"]), usual, large, result)
            result["rounds"].append({"limit": report, **loads})
    return result


def measure_limit(options, models_dir, cache, name, photos):
    seconds = max(0.05, options.seconds * FIGURE_SHARE)
    return ocelli_bench(models_dir, cache, name, photos, "--seconds", seconds, "--largest-batch", options.largest_batch)


def check_plan(server, graph):
    """What is measured with and without HTTP has to be the same."""
    (model,) = server.models()
    served = model["graphs"][0]
    different = [key for key in PLAN if served.get(key) != graph.get(key)]
    if different:
        raise BenchError(f"the server runs {model['name']} with another {' and '.join(different)} than `ocelli bench`")


def measure_loads(options, server, path, usual, large, result):
    closed = {}
    for connections in CONNECTIONS:
        # Long enough for some answers to each, at the throughput that the first load showed: at the end as many images as there
        # are connections are decoded and not yet answered, and that work must not count for much.
        pace = closed[FULL]["per_second"] if closed else float("inf")
        seconds = max(options.seconds, min(60, 8 * connections / pace))
        closed[connections] = closed_loop(server, path, usual, connections, seconds)
        # Loading and 32 connections are what the peak is told for; later rounds and loads may need more.
        result.setdefault("peak_mb", server.peak_mb())
    rate = OPEN_LOOP_SHARE * closed[FULL]["per_second"]
    # A hundredth of the answers lies beyond the 99th percentile, and a few of them have to be there.
    seconds = max(options.seconds, min(30, 500 / rate) if options.rounds > 1 else 0)
    return {
        "closed": closed,
        "open": open_loop(server, path, usual, rate, seconds),
        "large": {
            connections: closed_loop(server, path, [large], connections, options.seconds)
            for connections in LARGE_CONNECTIONS
        },
    }


def ratios(result):
    """The figures to judge by, each as a list with a value a round."""
    best = best_batch([one["limit"] for one in result["rounds"]])
    rounds = [round_ratios(one, best) for one in result["rounds"]]
    return {key: [values[key] for values in rounds] for key in rounds[0]}


def round_ratios(one, best):
    limit, closed = one["limit"], one["closed"]
    *usual, large = limit["preprocessing"]
    (inference,) = (cost for cost in served(limit) if point(cost) == best)
    preprocessing = weighted(usual, closed[FULL], "cpu_ms_all_cores")
    cost = preprocessing + inference["cpu_ms"]
    possible = limit["cores"] * 1e3 / cost
    floor = weighted(usual, closed[1], "wall_ms") + single(limit)["run_ms"]
    return {
        "preprocessing_cpu_ms": preprocessing,
        "preprocessing_alone_cpu_ms": weighted(usual, closed[FULL], "cpu_ms"),
        "preprocessing_ms": weighted(usual, closed[1], "wall_ms"),
        "inference_cpu_ms": inference["cpu_ms"],
        "inference_per_second": inference["per_second"],
        "single_ms": single(limit)["run_ms"],
        "limit": possible,
        "throughput": closed[FULL]["per_second"],
        "throughput_ratio": closed[FULL]["per_second"] / possible,
        "overhead_cpu_ms": closed[FULL]["other_cpu_ms"],
        "beyond_cpu_ms": closed[FULL]["cpu_ms"] - cost,
        "floor_ms": floor,
        "p50_ms": closed[1]["p50_ms"],
        "latency_ratio": closed[1]["p50_ms"] / floor,
        "open_p99_ms": one["open"]["p99_ms"],
        "open_ratio": one["open"]["p99_ms"] / floor,
        "crowd_ratio": closed[512]["per_second"] / closed[FULL]["per_second"],
        "large_cpu_ms": large["cpu_ms"],
        "large_per_second": one["large"][8]["per_second"],
        "failed": sum(load["failed"] for load in loads_of(one)),
        "others": max(load["others"] for load in loads_of(one)),
        "stolen": max(load["stolen"] for load in loads_of(one)),
    }


def loads_of(one):
    return [*one["closed"].values(), one["open"], *one["large"].values()]


def weighted(costs, load, key):
    """The mean cost of the photos, each as often as it was sent."""
    counts = [count for _, count in load["by_photo"]]
    return sum(cost[key] * count for cost, count in zip(costs, counts)) / sum(counts)


def served(limit):
    """What was measured in the arithmetic that the server runs."""
    graph = limit["graph"]
    arithmetic = (graph["provider"], graph["precision"])
    return [cost for cost in limit["inference"] if (cost["provider"], cost["precision"]) == arithmetic]


def best_batch(limits):
    """Where most images a second are run, by the medians of all rounds: the best of one round was lucky too."""
    rates = defaultdict(list)
    for limit in limits:
        for cost in served(limit):
            rates[point(cost)].append(cost["per_second"])
    return max(rates, key=lambda key: median(rates[key]))


def point(cost):
    return cost["instances"], cost["threads"], cost["batch_size"]


def single(limit):
    """One image with all cores."""
    whole = [cost for cost in served(limit) if cost["instances"] == 1 and cost["threads"] == limit["cores"]]
    return min(whole, key=lambda cost: cost["batch_size"])


def load_table(result):
    """(name, medians of each figure of the load), in the order in which a reader looks for them."""
    rounds = result["rounds"]
    rows = [(f"{connections}", [one["closed"][connections] for one in rounds]) for connections in sorted(CONNECTIONS)]
    rows.append((f"open loop, {OPEN_LOOP_SHARE:.0%}", [one["open"] for one in rounds]))
    rows += [(f"{count}, 12 MP", [one["large"][count] for one in rounds]) for count in LARGE_CONNECTIONS]
    keys = ("per_second", "p50_ms", "p99_ms", "cpu_ms", "generator_cpu_ms", "batch", "failed")
    return [(name, {key: median([load[key] for load in loads]) for key in keys}) for name, loads in rows]
