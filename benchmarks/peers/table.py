"""Medians, ratios and the Markdown table of what peers answered. Knows no peer."""

from statistics import median
from typing import Any

AGREE = 1e-3
"""Losses of the same work differ by no more: in fp32 in nats, in bf16, which has three digits, relative to the loss."""
NAMES = {
    "ours": "bloomery",
    "hugging_face": "Hugging Face Trainer",
    "plain_loop": "plain loop (nanoGPT's)",
    "lit": "litgpt",
}


def compare(answers: dict[str, list[Any]], tokens: int, case: dict[str, Any]) -> dict[str, Any]:
    """Per peer what it measured, and ours over each: speeds of one round are compared with each other.

    Args:
        answers: of each peer what it said when it was ready, after the block that is not timed, and after each block.
        tokens: of a block.
    """
    gemm = median(ruler["gemm_tflops"] for ruler in case["ruler"])
    peers: dict[str, Any] = {}
    for peer, (ready, warm, *blocks) in answers.items():
        speeds = [tokens / block["seconds"] for block in blocks]
        speed = median(speeds)
        tflops = speed * case["flops_of_a_step"] / case["tokens_of_a_step"] / 1e12
        peers[peer] = {
            "versions": ready["versions"],
            "tokens_per_s": speed,
            "ms_per_step": 1000 * case["tokens_of_a_step"] / speed,
            "tflops": tflops,
            "of_gemm": tflops / gemm,
            "peak_bytes": blocks[-1]["peak"],
            "grown_bytes": blocks[-1]["grown"],
            "blocks": speeds,
            "losses": warm["losses"] + [loss for block in blocks for loss in block["losses"]],
        }
    ours = peers["ours"]
    ratios, apart = {}, {}
    for peer in list(peers)[1:]:
        paired = sorted(a / b for a, b in zip(ours["blocks"], peers[peer]["blocks"], strict=True))
        ratios[peer] = {
            "speed": median(paired),
            "speed_lowest": paired[0],
            "speed_highest": paired[-1],
            "peak": ours["peak_bytes"] / peers[peer]["peak_bytes"],
            "grown": ours["grown_bytes"] / peers[peer]["grown_bytes"],
        }
        apart[peer] = distance(ours["losses"], peers[peer]["losses"], relative=case["dtype"] == "bfloat16")
    return {"peers": peers, "ratios": ratios, "apart": apart, "agrees": all(most <= AGREE for most in apart.values())}


def distance(ours: list[float], theirs: list[float], *, relative: bool) -> float:
    pairs = list(zip(ours, theirs, strict=True))
    return max(abs(a - b) / (max(1.0, abs(b)) if relative else 1.0) for a, b in pairs)


def as_table(results: dict[str, Any]) -> str:
    machine = results["machine"]
    lines = [
        f"{machine['cpu']}, {results['options']['threads']} threads, torch {machine['torch']}",
        "",
        "| shape | dtype | peer | tokens/s | ms/step | of GEMM | peak MB | grown MB | our speed | our peak | losses |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [row(case, peer) for case in results["cases"] for peer in case["peers"]]
    lines.append("")
    for case in results["cases"]:
        rulers = ", then ".join(f"{r['gemm_tflops']:.3f} TFLOP/s, {r['gb_per_s']:.1f} GB/s" for r in case["ruler"])
        lines.append(f"- ruler around {case['shape']} in {case['dtype']}: {rulers}")
    lines += [f"- {NAMES[peer]} is left out: {why}" for peer, why in results["left_out"].items()]
    return "\n".join(lines)


def row(case: dict[str, Any], peer: str) -> str:
    of = case["peers"][peer]
    cells = [
        case["shape"],
        case["dtype"],
        NAMES[peer],
        f"{of['tokens_per_s']:,.0f}",
        f"{of['ms_per_step']:.0f}",
        f"{of['of_gemm']:.0%}",
        f"{of['peak_bytes'] / 1e6:,.0f}",
        f"{of['grown_bytes'] / 1e6:,.0f}",
    ]
    if peer in case["ratios"]:
        ratio = case["ratios"][peer]
        cells.append(f"{ratio['speed']:.2f} ({ratio['speed_lowest']:.2f}–{ratio['speed_highest']:.2f})")
        cells += [f"{ratio['peak']:.2f}", f"{case['apart'][peer]:.1e}"]
    else:
        cells += ["", "", ""]
    return "| " + " | ".join(cells) + " |"
