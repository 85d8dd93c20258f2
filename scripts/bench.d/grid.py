"""How close `auto` comes: its choices beside every way to run a model, for throughput and for latency."""

import shutil

from report import machine_table, table
from tools import WAY, WORK, figure_options, link_models, ocelli_bench, point_options, say, way_of

# How often the choice and the best are measured against each other, in turns.
DUEL_ROUNDS = 20
# Twice what the server takes at most by default.
LARGEST_BATCH = 16
WANTED = "≤ 5 %"


def write(options, usual):
    """Measures all models, prints by how much `auto` misses, and writes the page."""
    sections = [measure_model(options, name, usual) for name in options.models]
    options.output.mkdir(parents=True, exist_ok=True)
    page = options.output / "bench-grid.md"
    misses = [miss for section in sections for miss in section["misses"]]
    for model, objective, miss, choice, best in misses:
        print(f"{model}: {objective}: auto misses the best by {miss:.1%} ({choice}; best: {best})", flush=True)
    rows = [[model, objective, f"{miss:.1%}", choice, best] for model, objective, miss, choice, best in misses]
    lines = [
        "# What `auto` chooses, beside every way",
        "",
        f"Written by `{options.command}`. Each way (provider, precision, sessions × threads) was measured",
        f"{options.rounds} time(s) at each batch size, in the server's own code without HTTP; then the choice and the best",
        f"of them in turns, {DUEL_ROUNDS} times. For throughput, as many images as are run are decoded and preprocessed meanwhile, as in",
        f"a server; single images are run by themselves. What a choice misses is wanted to be {WANTED}.",
        "",
        *machine_table(),
        "",
        *table(["model", "objective", "missed", "choice", "best"], rows),
        "",
        *(line for section in sections for line in section["lines"]),
    ]
    page.write_text("\n".join(lines), encoding="utf-8")
    return page


def measure_model(options, name, photos):
    folder = WORK / "grid" / name
    shutil.rmtree(folder, ignore_errors=True)
    models_dir = link_models(folder / "models", [(name, options.models_dir / name)])

    def bench(*ways):
        largest = min(options.largest_batch, LARGEST_BATCH)
        fixed = [*figure_options(options), "--largest-batch", largest, "--with-preprocessing"]
        return ocelli_bench(models_dir, folder / "cache", name, photos, *fixed, *ways)

    say(f"{name}: every way …")
    report = bench("--all-ways", "--rounds", options.rounds)
    say(f"{name}: the choice and the best …")
    return summarise(name, report, bench)


def by_point(report):
    """The report's costs, by way and batch size."""
    return {(way_of(cost), cost["batch_size"]): cost for cost in report["inference"]}


def summarise(name, report, bench):
    forbidden, points = unfaithful(report), by_point(report)
    allowed = {key: cost for key, cost in points.items() if key[0][:2] not in forbidden}
    singles = single_times(allowed)
    # None: single images have a session of their own, so the others may take as long as they like.
    longest = min(singles.values()) * (report["latency_bound"] or float("inf"))
    within = {way for way, time in singles.items() if time <= longest}
    misses = []
    for choice in report["choices"]:
        chosen = way_of(choice)
        if choice["objective"] == "throughput":
            rates = {key: cost["served_per_second"] for key, cost in allowed.items()}
            best = max((key for key in rates if key[0] in within), key=rates.get)
            mine = (chosen, max(size for way, size in rates if way == chosen and size <= choice["max_batch_size"]))
            miss = 1 - duel(bench, mine, best, "served_per_second")
        else:
            # The smallest batch that there is: 1, but for graphs that insist on another.
            smallest = min(size for way, size in allowed if way == chosen)
            best, mine = (min(singles, key=singles.get), smallest), (chosen, smallest)
            miss = duel(bench, mine, best, "run_ms") - 1
        misses.append((name, choice["objective"], max(0.0, miss), describe(*mine), describe(*best)))
    return {"misses": misses, "lines": list(details(name, points, report, forbidden))}


def single_times(points):
    """The time of the smallest batch, by way."""
    smallest = min(size for _, size in points)
    return {way: cost["run_ms"] for (way, size), cost in points.items() if size == smallest}


def unfaithful(report):
    """Provider and precision of what tuning ruled out."""
    candidates = (report["graph"].get("tuning") or {"candidates": []})["candidates"]
    return {(one["provider"], one["precision"]) for one in candidates if one.get("ruled_out")}


def duel(bench, mine, best, key):
    """The choice's figure ÷ the best one's, both measured again in turns: the best of many was lucky too."""
    if mine == best:
        return 1.0
    ways, sizes = zip(mine, best)
    points = by_point(bench(*point_options(ways, sizes), "--rounds", DUEL_ROUNDS))
    return points[mine][key] / points[best][key]


def describe(way, batch):
    provider, precision, instances, threads = way
    return f"{provider} {precision}, {instances} × {threads}, batches of {batch}"


def details(name, points, report, forbidden):
    sizes = sorted({size for _, size in points})
    ways = sorted({way for way, _ in points})
    yield f"## {name}"
    yield ""
    yield "Images/s by batch size with as many being decoded and preprocessed, and the time of the smallest batch by itself:"
    yield ""
    rows = []
    for way in ways:
        costs = [points.get((way, size)) for size in sizes]
        cells = [f"{cost['served_per_second']:.1f}" if cost else "" for cost in costs]
        single = next(cost["run_ms"] for cost in costs if cost)
        note = "not faithful" if way[:2] in forbidden else ""
        rows.append([f"{way[0]} {way[1]}, {way[2]} × {way[3]}", *cells, f"{single:.2f}", note])
    yield from table(["way", *map(str, sizes), "one, ms", ""], rows)
    yield ""
    for failure in report["failures"]:
        yield f"- {' '.join(str(failure[key]) for key in WAY)} cannot be run: {failure['reason']}"
    yield ""
