"""The Markdown tables of what was measured. Knows no model."""

from typing import Any


def as_tables(results: dict[str, Any]) -> str:
    """Whatever parts are there."""
    model, held_out = results["model"], results["texts"]["held_out"]
    size = f"{model['parameters']:,} parameters, weights {model['weights_mb']:.2f} MB ({model['weights_dtype']})"
    lines = [
        f"{model['name']}: {size}, context {model['context']}, vocabulary {model['vocabulary']:,}",
        "",
        f"Held out: {held_out['file']}, {held_out['bytes']:,} bytes",
        "",
        "| | bits per byte | nats per token | tokens predicted |",
        "|---|--:|--:|--:|",
    ]
    lines += _predicted(results.get("held_out"))
    lines += [f"| {row['name']} | {row['bits_per_byte']:.4f} | | |" for row in results.get("baselines", ())]
    if "samples" in results:
        lines += ["", *_read(results["samples"])]
    lines += ["", *(f"- {name} is left out: {why}" for name, why in results["left_out"].items())]
    lines += [f"- {name} could not be measured: {why}" for name, why in results["not_measured"].items()]
    return "\n".join(lines).rstrip()


def _predicted(measured: dict[str, Any] | None) -> list[str]:
    if measured is None:
        return []
    disjoint, sliding = measured["disjoint"], measured["sliding"]
    names = (
        f"model, disjoint windows of {disjoint['window']} tokens",
        f"model, sliding window: at least {sliding['least_before']} of {sliding['window']} tokens before each",
    )
    return [
        f"| {name} | {one['bits_per_byte']:.4f} | {one['nats_per_token']:.4f} | {one['tokens_predicted']:,} |"
        for name, one in zip(names, (disjoint, sliding), strict=True)
    ]


def _read(samples: dict[str, Any]) -> list[str]:
    drawn, settings = samples["drawn"], samples["settings"]
    names = (
        "words",
        "of them in the training texts",
        f"with a loop of {settings['loop_tokens']} tokens or more",
        "longest copy from the training texts",
        "median of the longest copies",
    )
    columns = zip(names, _column(drawn), _column(samples["held_out_stretches"]), strict=True)
    title = f"{settings['count']} texts of at most {settings['tokens']} tokens"
    lines = [
        f"| {title} | samples at temperature {settings['temperature']} | held-out text |",
        "|---|--:|--:|",
        *(f"| {name} | {one} | {other} |" for name, one, other in columns),
    ]
    copy = drawn["longest_copy"]
    return [*lines, "", f"Longest copy, from {copy['source']}: {copy['text']!r}"] if copy["text"] else lines


def _column(found: dict[str, Any]) -> list[str]:
    copy = found["longest_copy"]
    return [
        f"{found['words']:,}",
        "none" if found["word_share"] is None else f"{found['word_share']:.2%}",
        str(found["samples_with_loop"]),
        f"{copy['characters']} characters, {copy['tokens']} tokens",
        f"{found['median_copy_characters']:.0f} characters",
    ]
