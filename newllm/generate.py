"""Sample sentences from a language model: `python -m newllm.generate RUN --prompt "the nurse"`."""

from __future__ import annotations

import sys

from newllm.config.arguments import Arguments, ends_with_its_reader
from newllm.config.loading import loading


@ends_with_its_reader
def main() -> None:
    """The command line."""
    parser = Arguments(
        prog="python -m newllm.generate", description="Sample sentences from a trained run."
    )
    parser.add_argument("run", help="a run directory")
    parser.add_argument("--prompt", default="", help="words to start with")
    parser.add_argument("--num", type=int, default=5, help="number of sentences (5)")
    parser.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        help="sampling temperature; below 1, likelier words (1)",
    )
    parser.add_argument(
        "--max-tokens", type=int, default=32, help="maximum length of a sentence (32)"
    )
    parser.add_argument("--trust", metavar="PACKAGE", action="append", default=[],
                        help="a package that the model may load classes from")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="random seed (0)")
    options = parser.parse_args()
    with loading():
        from newllm.data.reading import printable
        from newllm.models.sampling import sample_sentences
        from newllm.runs.directory import load_run
    try:
        run = load_run(options.run, options.trust)
        if run.tokenizer is None:
            raise ValueError(f"{options.run}: was not trained on text and has no tokenizer")
        sentences = sample_sentences(
            run.model,
            run.tokenizer,
            options.num,
            options.prompt,
            options.max_tokens,
            options.temperature,
            options.seed,
        )
    except ValueError as error:
        sys.exit(str(error))
    is_of_lines = not any("\n" in sentence for sentence in sentences)
    print(("\n" if is_of_lines else "\n\n").join(map(printable, sentences)))


if __name__ == "__main__":
    main()
