"""TensorBoard on any runs, under names that say what they differ in.

`python -m newllm.board [RUN ...]` starts it. TensorBoard names a run by its path and cuts long
ones, so it reads a folder of links with short names. A run that starts later needs a new start.
"""

from __future__ import annotations

import signal
import sys
import tempfile
from pathlib import Path

from newllm.config.arguments import Arguments
from newllm.config.loading import loading


def main() -> None:
    """The command line."""
    parser = Arguments(
        prog="python -m newllm.board",
        description="Show runs in TensorBoard under names that state their differences.",
    )
    parser.add_runs("outputs", "run directories, or folders that contain some")
    parser.add_argument("--port", type=int, default=6006, help="port of the server (6006)")
    options = parser.parse_args()
    with loading():
        from newllm.reporting.tensorboard import serve
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # removes the folder
    with tempfile.TemporaryDirectory(prefix="newllm-board-") as top:
        try:
            code = serve(options.runs, Path(top), options.port)
        except ValueError as error:
            sys.exit(str(error))
    sys.exit(code)


if __name__ == "__main__":
    main()
