"""Run by test_memory.py in a process of its own: loads a folder, reads every weight, prints what memory that took."""

import json
import sys
from pathlib import Path

import torch

from bloomery.checkpoint.folder import read_folder
from bloomery.checkpoint.load import load_decoder
from bloomery.quant.scheme import scheme_named


def status(key: str) -> int:
    """Bytes of one line of /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:"))
    return 1024 * int(line.split()[1])


def main(folder: str, dtype: str, quant: str = "none") -> None:
    torch.set_num_threads(1)
    torch.ones(1000).bfloat16().float().sum()  # the first operation loads code
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far, that of importing, is forgotten
    peak, anonymous = status("VmHWM"), status("RssAnon")
    wanted = None if dtype == "None" else getattr(torch, dtype)
    decoder = load_decoder(read_folder(Path(folder)), wanted, scheme=scheme_named(quant))
    parameters = list(decoder.parameters())
    for parameter in parameters:
        parameter.view(-1).view(torch.uint8)[::1024].sum()  # a byte of every page, and of every cache line it takes
    result = {
        "model": sum(parameter.nbytes for parameter in parameters),
        "peak": status("VmHWM") - peak,
        "anonymous": status("RssAnon") - anonymous,
    }
    print(json.dumps(result))


main(*sys.argv[1:])
