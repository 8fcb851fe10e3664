"""Export a trained run: `python -m newllm.export RUN --format onnx`; see docs/export.md."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from newllm.config.arguments import Arguments, ends_with_its_reader
from newllm.config.loading import loading

PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "safetensors": ("safetensors",)}


@ends_with_its_reader
def main() -> None:
    """The command line."""
    parser = Arguments(
        prog="python -m newllm.export",
        description=(
            "Export a trained run for other programs: the step of one token as an ONNX model, "
            "compared with the PyTorch model, or the weights as safetensors."
        ),
    )
    add = parser.add_argument
    add("run", type=Path, help="a run directory")
    add("--format", choices=PACKAGES, default="onnx", help="what to write (onnx)")
    add("--int8", action="store_true", help="of onnx: weights of 8 bits; shows what they cost")
    add("--output", type=Path, metavar="FOLDER", help="a new folder (RUN/export-FORMAT)")
    add("--trust", metavar="PACKAGE", action="append", default=[],
        help="a package that the run may load classes from")  # fmt: skip
    options = parser.parse_args()
    if options.int8 and options.format != "onnx":
        parser.error("--int8 needs --format onnx")
    kind = f"{options.format}-int8" if options.int8 else options.format
    folder = options.output or options.run / f"export-{kind}"
    if fault := _fault(options.run, options.format, folder):
        sys.exit(fault)
    with loading():
        import torch  # noqa: F401  (what takes seconds)
    try:
        for line in _exported(options, folder):
            print(line, flush=True)
    except ValueError as error:
        sys.exit(str(error))
    print(f"exported: {folder}")


def _fault(run: Path, format: str, folder: Path) -> str | None:
    """What is wrong, as far as it shows without torch."""
    if missing := [name for name in PACKAGES[format] if find_spec(name) is None]:
        install = "pip install 'newllm[export]'"
        return f"--format {format}: needs {', '.join(missing)}; {install} installs all formats"
    if not run.is_dir():
        return f"{run}: no such run directory"
    if os.path.lexists(folder):
        return f"{folder}: already exists; choose another --output or remove it"
    if not folder.parent.is_dir():
        return f"{folder.parent}: no such folder; make it first"
    return None


def _exported(options: Namespace, folder: Path) -> Iterator[str]:
    """Write the folder, and say what was found.

    Raises:
        ValueError: the run cannot be loaded or exported.
    """
    from newllm.runs.directory import load_run

    run = load_run(options.run, options.trust)
    if options.format == "safetensors":
        from newllm.exporting.safetensors_folder import export_safetensors

        return export_safetensors(run, folder)
    from newllm.exporting.onnx_folder import export_onnx

    return export_onnx(run, folder, options.int8, options.trust)


if __name__ == "__main__":
    main()
