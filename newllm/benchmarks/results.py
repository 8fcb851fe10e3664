"""A benchmark as a table, a picture, and a line about the machine."""

from __future__ import annotations

import platform
from collections.abc import Mapping

import torch
from llvmlite.binding import get_host_cpu_name

import newllm
from newllm.benchmarks.timing import Timing
from newllm.reporting.drawing import BLUE, GREY, Figure


def machine(device: torch.device | None = None) -> str:
    """Processor, threads and versions, in one line; with the name of a GPU, if that is measured."""
    gpu = ""
    if device is not None and device.type == "cuda":
        gpu = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}, "
    return (
        f"{gpu}{get_host_cpu_name()}, {torch.get_num_threads()} threads at most, Python "
        f"{platform.python_version()}, torch {torch.__version__}, newllm {newllm.__version__}"
    )


def markdown(rows: Mapping[str, Timing], machine: str) -> str:
    """The rows as a Markdown table."""
    lines = [f"Measured on {machine}.", "", "| row | ms | spread | ratio | MB |"]
    lines.append("|---|---:|---:|---:|---:|")
    lines += [
        f"| {name} | {1000 * row.seconds:.2f} | {100 * row.spread:.0f} % | {row.ratio:.2f} | "
        f"{'' if row.megabytes is None else format(row.megabytes, '.0f')} |"
        for name, row in rows.items()
    ]
    return "\n".join([*lines, "", "On a GPU: python -m newllm.benchmark --device cuda.", ""])


def picture(rows: Mapping[str, Timing]) -> Figure:
    """Bars of the ratios, with a panel for each kind of row (the first word of its name)."""
    kinds: dict[str, dict[str, float]] = {}
    for name, row in rows.items():
        kind, _, label = name.partition(" ")
        kinds.setdefault(kind, {})[label] = row.ratio
    figure = Figure(figsize=(11, 1.2 + 0.22 * len(rows)), layout="constrained")
    heights = [len(ratios) + 1 for ratios in kinds.values()]
    panels = figure.subplots(len(kinds), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (kind, ratios) in zip(panels, kinds.items(), strict=True):
        bars = axes.barh(list(ratios), list(ratios.values()), color=BLUE)
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=7)
        axes.axvline(1, color=GREY, linewidth=1)
        axes.invert_yaxis()
        axes.tick_params(labelsize=7)
        axes.margins(x=0.1)
        axes.set_title(kind, loc="left", fontsize=9)
    figure.supxlabel("ratio to the first row of each group (roofline: share reached)", fontsize=8)
    return figure
