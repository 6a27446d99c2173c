"""The benchmark's findings as Markdown: ratios first, then what they are made of."""

import statistics

import sweep_scale

from cifar_research.display.tables import as_markdown


def markdown(results):
    """Return a document of what benchmark.py found; a part that was not measured is left out."""
    machine, versions = results["hardware"], results["versions"]
    gpus = f", {', '.join(machine['gpus'])}" if machine["gpus"] else ""
    lines = [
        "# Benchmark",
        "",
        f"`{results['command']}`, {results['date']}: {machine['cores']} cores of {machine['processor']} "
        f"({', '.join(machine['units']) or 'no vector units'}){gpus}; "
        + ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
        + f". Medians of {results['rounds']} rounds, blocks of {results['steps']} steps; the spread is lowest to highest.",
    ]
    for result in results["training"]:
        lines += _training(result)
    if "pipeline" in results:
        lines += _pipeline(results)
    if "start_up" in results:
        table = [["", "seconds", "spread"]]
        for kind, seconds in results["start_up"]["seconds"].items():
            table.append([kind, *_median_and_spread(seconds, ".1f")])
        lines += ["", "## Command to the end of the first step, `wide` in float32", "", as_markdown(table)]
    if "sweep" in results:
        lines += _sweep(results["sweep"])
    if "memory" in results:
        peaks, images, precision = (results["memory"][key] for key in ("peak_bytes", "images", "precision"))
        lines += ["", f"## Peak memory of an epoch of `first_version` over {images:,} images, {precision}", ""]
        rows = [[name, f"{peak / 1e6:,.0f}", f"{peaks['ours'] / peak:.2f}"] for name, peak in peaks.items()]
        lines.append(as_markdown([["", "MB", "ours over it"], *rows]))
    if "transfer" in results:
        lines += _transfer(results["transfer"])
    if "sweep_scale" in results:
        lines += sweep_scale.table(results["sweep_scale"])
    return "\n".join(lines) + "\n"


def _training(result):
    peers = [peer for peer in result["peers"] if not peer.get("failure")]
    lines = ["", f"## {result['model']}, batch {result['batch_size']}"]
    ours = [peer for peer in peers if peer["kind"] == "ours"]
    ratios = [["ratio of images/s, training", "median", "spread"]]
    for precision in ("bfloat16", "float32"):
        mine = _fastest([peer for peer in ours if peer["precision"] == precision])
        for kind, name in (("keras", "keras.fit"), ("torch", "PyTorch")):
            of_kind = [peer for peer in peers if peer["kind"] == kind]
            same = [peer for peer in of_kind if peer["precision"] == precision]
            for label, rival in (("the best", _fastest(of_kind)), (f"{precision}", _fastest(same))):
                if mine and rival and not (precision == "float32" and label == "the best"):
                    of_rounds = [b / a for a, b in zip(mine["train"], rival["train"], strict=True)]
                    ratios.append([f"ours, {precision}, over {label} {name}", *_median_and_spread(of_rounds, ".2f")])
    rates = [["", "images/s, training", "spread", "images/s, evaluation", "peak memory, MB", "of the matrix rate"]]
    for peer in peers:
        trained = _median_and_spread([peer["images"] / seconds for seconds in peer["train"]], ",.0f")
        scored = f"{peer['scored'] / statistics.median(peer['evaluate']):,.0f}"
        rates.append([peer["name"], *trained, scored, f"{peer['peak_memory_bytes'] / 1e6:,.0f}", _share(peer)])
    lines += [line for table in (ratios, rates) if len(table) > 1 for line in ("", as_markdown(table))]
    failed = [peer for peer in result["peers"] if peer.get("failure")]
    return lines + [line for peer in failed for line in ("", f"{peer['name']} failed: `{peer['failure']}`")]


def _fastest(peers):
    return min(peers, key=lambda peer: statistics.median(peer["train"]), default=None)


def _share(peer):
    """Return how much of the rate of matrix products a training reaches, backward counted as two forwards."""
    if not peer["matrix"]:
        return ""
    matrix = peer["facts"]["matrix_flops"] / statistics.median(peer["matrix"])
    reached = 3 * peer["facts"]["forward_flops"] * peer["images"] / statistics.median(peer["train"])
    return f"{reached / matrix:.2f} of {matrix / 1e9:,.0f} GFLOP/s"


def _pipeline(results):
    rates, milliseconds = results["pipeline"]["images_per_second"], results["pipeline"]["step_milliseconds"]
    names = {"ours": "ours, a batch at a time", "keras": "Keras layers, a batch at a time"}
    names |= {"tf_image": "`tf.image`, an image at a time, without rotation"}
    rows = [[name, f"{rates[key]:,.0f}", f"{rates['ours'] / rates[key]:.1f}"] for key, name in names.items()]
    lines = ["", "## Augmentation `slides` in `tf.data`, batch 128", ""]
    lines += [
        as_markdown([["", "images/s", "ours over it"], *rows]),
        "",
        f"Inside a traced step it takes {milliseconds:.2f} ms a batch",
    ]
    for result in results["training"]:
        mine = _fastest([peer for peer in result["peers"] if peer["kind"] == "ours" and not peer.get("failure")])
        if result["model"] == "wide" and result["batch_size"] == 128 and mine:
            step = 1e3 * statistics.median(mine["train"]) / results["steps"]
            share = milliseconds / (step + milliseconds)
            lines[-1] += f", {share:.1%} of a step of `wide` with it ({mine['name']}: {step:.1f} ms without)"
    lines[-1] += "."
    return lines


def _sweep(sweep):
    medians = {name: statistics.median(seconds) for name, seconds in sweep["seconds"].items()}
    heading = (
        f"## Eight cells of `wide`, two epochs of {sweep['images']:,} images each, {sweep['precision']}, whole commands"
    )
    rows = [[name, f"{seconds:.1f}", f"{seconds / medians['ours, 1 job']:.2f}"] for name, seconds in medians.items()]
    return ["", heading, "", as_markdown([["", "seconds", "over it, ours with 1 job"], *rows])]


def _transfer(found):
    """Return images/s of fine-tuning, and the ratios: over keras.fit, and of bfloat16 over float32."""
    lines = ["", f"## Fine-tuning upper blocks at 96 pixels, batch {found['batch_size']}", ""]
    lines += ["«kept»: the features below the upper blocks are computed once, before these steps.", ""]
    table = [["", "images/s", "over keras.fit in this precision", "spread", "over the same in float32"]]
    for name, seconds in found["seconds"].items():
        for label, own in seconds.items():
            kind, _, precision = label.rpartition(", ")
            ratios = [b / a for a, b in zip(own, seconds[f"keras.fit, {precision}"], strict=True)]
            plain = statistics.median(b / a for a, b in zip(own, seconds[f"{kind}, float32"], strict=True))
            rate = found["images"] / statistics.median(own)
            table.append([f"{name}, {label}", f"{rate:,.0f}", *_median_and_spread(ratios, ".2f"), f"{plain:.2f}"])
    return [*lines, as_markdown(table)]


def _median_and_spread(values, form):
    return f"{statistics.median(values):{form}}", f"{min(values):{form}} – {max(values):{form}}"
