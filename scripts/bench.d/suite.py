"""The sitting: for each model the limit, the loads over HTTP, and the ratios between them."""

import shutil
from statistics import mean

from load import closed_loop, open_loop
from server import Server, question
from tools import (
    WORK,
    BenchError,
    bench_command,
    figure_options,
    link_models,
    median,
    ocelli_bench,
    point_options,
    say,
    way_of,
)
from turns import load_and_bench

# Between these, throughput is compared with the limit; after it, memory is read.
FULL = 32
CONNECTIONS = (FULL, 1, 8, 128, 512)
OPEN_LOOP_SHARE = 0.7
LARGE_CONNECTIONS = (1, 8)
PLAN = ("provider", "precision", "instances", "threads", "small_batch_size", "solo_threads", "batch_sizes_warmed")
# So many batch sizes come into question for the limit.
BEST_BATCHES = 3
# So often each figure is measured in turns with a load.
TURNS_ROUNDS = 10


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
        path = question(model["task"])
        closed_loop(server, path, usual, FULL, 1)
        # Before anything else of the server's is measured.
        result["peak_mb"] = server.peak_mb()
        say(f"{name}: the limit …")
        every_batch = [*figure_options(options), "--rounds", options.rounds, "--largest-batch", options.largest_batch]
        limit = result["limit"] = ocelli_bench(models_dir, cache, name, [*usual, large], *every_batch)
        check_plan(server, limit["graph"])

        def in_turns(connections, costs):
            points = point_options(map(way_of, costs), (cost["batch_size"] for cost in costs))
            # It logs when it begins to measure.
            fixed = [*figure_options(options), "--rounds", TURNS_ROUNDS, "--log-level", "ocelli=info"]
            command = bench_command(models_dir, cache, name, usual, *fixed, *points)
            return load_and_bench(server, path, usual, connections, command)

        for number in range(1, options.rounds + 1):
            say(f"{name}: round {number} of {options.rounds} …")
            turns = {FULL: in_turns(FULL, best_batches(limit)), 1: in_turns(1, [single(limit)])}
            result["rounds"].append({"turns": turns, **measure_loads(options, server, path, usual, large)})
    return result


def check_plan(server, graph):
    """What is measured with and without HTTP has to be the same."""
    (model,) = server.models()
    served = model["graphs"][0]
    different = [key for key in PLAN if served.get(key) != graph.get(key)]
    if different:
        raise BenchError(f"the server runs {model['name']} with another {' and '.join(different)} than `ocelli bench`")


def measure_loads(options, server, path, usual, large):
    closed = {}
    for connections in CONNECTIONS:
        # Long enough for some answers to each, at the throughput that the first load showed: at the end as many images as there
        # are connections are decoded and not yet answered, and that work must not count for much.
        pace = closed[FULL]["per_second"] if closed else float("inf")
        seconds = max(options.seconds, min(60, 8 * connections / pace))
        closed[connections] = closed_loop(server, path, usual, connections, seconds)
    rate = OPEN_LOOP_SHARE * closed[FULL]["per_second"]
    # A hundredth of the answers lies beyond the 99th percentile, and a few of them have to be there.
    seconds = options.seconds if options.quick else max(options.seconds, min(30, 500 / rate))
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
    rounds = [round_ratios(result["limit"], one) for one in result["rounds"]]
    return {key: [values[key] for values in rounds] for key in rounds[0]}


def round_ratios(limit, one):
    closed = one["closed"]
    (full, without), (alone, lone) = one["turns"][FULL], one["turns"][1]
    inference = min(without["inference"], key=lambda cost: cost["cpu_ms"])
    (lone_inference,) = lone["inference"]
    preprocessing = mean_of(without["preprocessing"], "cpu_ms_all_cores")
    cost = preprocessing + inference["cpu_ms"]
    possible = limit["cores"] * 1e3 / cost
    lone_preprocessing = mean_of(lone["preprocessing"], "wall_ms")
    floor = lone_preprocessing + lone_inference["run_ms"]
    taken = [load["others"] + load["stolen"] for load in loads_of(one)]
    return {
        "preprocessing_cpu_ms": preprocessing,
        "preprocessing_alone_cpu_ms": mean_of(without["preprocessing"], "cpu_ms"),
        "preprocessing_ms": lone_preprocessing,
        "inference_cpu_ms": inference["cpu_ms"],
        "single_ms": lone_inference["run_ms"],
        "limit": possible,
        "throughput": full["per_second"],
        "throughput_ratio": full["per_second"] / possible,
        "left_ratio": full["per_second"] / (possible - full["per_second"] * closed[FULL]["generator_cpu_ms"] / cost),
        "overhead_cpu_ms": closed[FULL]["other_cpu_ms"],
        "beyond_cpu_ms": full["cpu_ms"] - cost,
        "floor_ms": floor,
        "p50_ms": alone["p50_ms"],
        "latency_ratio": alone["p50_ms"] / floor,
        "open_p99_ms": one["open"]["p99_ms"],
        "open_ratio": one["open"]["p99_ms"] / floor,
        "crowd_ratio": closed[512]["per_second"] / closed[FULL]["per_second"],
        "large_cpu_ms": limit["preprocessing"][-1]["cpu_ms"],
        "large_per_second": one["large"][8]["per_second"],
        "failed": sum(load["failed"] for load in loads_of(one)),
        "taken": mean(taken),
        "most_taken": max(taken),
    }


def mean_of(costs, key):
    return mean(cost[key] for cost in costs)


def loads_of(one):
    return [*one["closed"].values(), one["open"], *one["large"].values()]


def served(limit):
    """What was measured in the arithmetic that the server runs."""
    graph = limit["graph"]
    arithmetic = (graph["provider"], graph["precision"])
    return [cost for cost in limit["inference"] if (cost["provider"], cost["precision"]) == arithmetic]


def best_batches(limit):
    """Where most images a second are run, and at which other sizes: what was best once was lucky too."""
    ranking = sorted(served(limit), key=lambda cost: -cost["per_second"])
    return [cost for cost in ranking if way_of(cost) == way_of(ranking[0])][:BEST_BATCHES]


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
