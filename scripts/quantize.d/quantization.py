"""The steps from a model folder and images to a variant that is kept or refused."""

import sys
from pathlib import Path

import agreement
import folder
import graphs
import images
import onnx
from errors import Refused


def run(options) -> None:
    model = folder.open_folder(options.model_folder)
    measure = agreement.measure_for(model.config, model.is_dual_encoder)
    result = model.result(options.output_variant)
    if result.exists() and not options.force:
        raise Refused(f"{result} exists already; --force replaces it")
    graph = graphs.Graph(model.graph, model.is_dual_encoder, model.processor.output_size)
    found = images.gather(model.processor, options.images, options.held_out, options.held_out_share)
    for file in found.unreadable:
        say(f"left out, as it cannot be read: {file}")
    images.check(found, options.force)
    with folder.working_folder(model) as working:
        say(f"calibrating on {len(found.calibration)} images, then comparing on {len(found.held_out)} …")
        made = working / result.name
        method = make(graph, model.processor, found.calibration, made)
        figures = compare(graph, model, found.held_out, made, measure)
        reached = judge(figures, options.min_agreement)
        record = {
            "agreement": reached,
            "min_agreement": options.min_agreement,
            "providers": figures,
            "images": images.counts(found),
            "source": {
                **folder.described(model.graph, model.path),
                "external_data": [folder.described(file, model.path) for file in graph.external_files],
            },
            "result": {**folder.described(made, working), "file": result.relative_to(model.path).as_posix()},
            "method": method,
            "versions": graphs.versions(),
        }
        folder.publish(model, made, options.output_variant, record)
    before = record["source"]["bytes"] + sum(file["bytes"] for file in record["source"]["external_data"])
    after = record["result"]["bytes"]
    print(f"{result}: {after / 1e6:.1f} MB instead of {before / 1e6:.1f} MB; figures in {folder.RECORD}")


def make(graph, processor, pixels: list, made: Path) -> dict:
    """Writes the int8 graph to `made`; says how it was made."""
    try:
        quantized, method = graphs.quantize(graph, processor, pixels)
        onnx.checker.check_model(quantized)
    except Refused:
        raise
    except Exception as error:
        raise Refused(f"NNCF cannot quantise this graph: {graphs.first_line(error)}") from error
    onnx.save(quantized, made)
    return method


def compare(graph, model, pixels: list, made: Path, measure) -> dict:
    """Figures by provider, against f32 on the plain CPU provider."""

    def answers(file: Path, provider: str):
        tensors = (model.processor.tensor(image) for image in pixels)
        return agreement.answers(graphs.session(file, provider), graph, tensors)

    reference = answers(model.graph, graphs.CPU)
    figures = {}
    for provider in graphs.providers():
        try:
            compared = answers(made, provider)
        except Refused as refused:
            if provider == graphs.CPU:
                raise
            # The server cannot run it there either, and takes another provider.
            figures[provider] = {"problem": str(refused)}
            continue
        agreement.check_finite(reference, compared, provider)
        figures[provider] = measure(reference, compared)
    return figures


def judge(figures: dict, least: float) -> float:
    """Prints the figures; the smallest agreement, if that is enough."""
    for provider, of_provider in figures.items():
        print(f"{provider}: {of_provider.get('problem') or agreement.in_words(of_provider)}", flush=True)
    reached = min(of_provider["agreement"] for of_provider in figures.values() if "agreement" in of_provider)
    if reached < least:
        raise Refused(
            f"the agreement with f32 is {reached:.3f}, below {least:g}; nothing is kept. More images, like those that "
            "the model will see, may help; --min-agreement sets another bound"
        )
    return reached


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
