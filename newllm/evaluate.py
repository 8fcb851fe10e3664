"""Evaluate a run: `python -m newllm.evaluate RUN`; see `--help`."""

from __future__ import annotations

import sys
from pathlib import Path

from newllm.config.arguments import Arguments, ends_with_its_reader
from newllm.config.loading import loading


@ends_with_its_reader
def main() -> None:
    """The command line."""
    parser = Arguments(
        prog="python -m newllm.evaluate",
        description=(
            "Evaluate a trained run: its losses and the reference losses of each split, "
            "ablations of its context, and the dynamics of the context over time; on a task, its "
            "accuracy and the drift of its contexts by position."
        ),
    )
    parser.add_argument("run", type=Path, help="a run directory")
    parser.add_argument(
        "--text",
        metavar="FILE",
        type=Path,
        help="score a text of any length, by distance to its start",
    )
    parser.add_argument(
        "--state", metavar="FILE", type=Path, help="of --text: go on from a saved state"
    )
    parser.add_argument(
        "--save-state", metavar="FILE", type=Path, help="of --text: save the state at its end"
    )
    parser.add_argument("--trust", metavar="PACKAGE", action="append", default=[],
                        help="a package that the run may load classes from")  # fmt: skip
    options = parser.parse_args()
    if options.text is None and (options.state or options.save_state):
        parser.error("--state and --save-state need --text")
    with loading():
        from newllm.data.reading import one_line
        from newllm.training.evaluation import evaluate, evaluate_text
    try:
        if options.text is not None:
            places = options.state, options.save_state
            return evaluate_text(options.run, options.text, options.trust, *places)
        folder = evaluate(options.run, options.trust)
    except BrokenPipeError:
        raise
    except (
        OSError,
        ValueError,
        RuntimeError,
        IndexError,
    ) as error:  # of parts that do not fit each other
        sys.exit(one_line(error))
    print(f"results: {folder}")


if __name__ == "__main__":
    main()
