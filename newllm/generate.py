"""Generate text with a trained model: `python -m newllm.generate RUN --prompt "the nurse"`."""

from __future__ import annotations

import math
import sys
from argparse import Namespace
from collections.abc import Iterator
from io import TextIOWrapper
from typing import TYPE_CHECKING

from newllm.config.arguments import Arguments, ends_with_its_reader
from newllm.config.loading import loading

if TYPE_CHECKING:
    from newllm.runs.directory import LoadedRun

SENTENCES = 5
AT_ONCE = 256  # sentences; more are drawn in groups, each shown as soon as it is drawn
SPREAD = 2_654_435_761  # between seeds of groups, of which torch takes the lower 32 bits
LINE = 32  # tokens; for a model that does not know its longest row
NOT_USED_WITH = {  # options beside which others would change nothing
    "interactive": ("prompt", "num"),
    "endless": ("num",),
    "greedy": ("temperature", "top_k", "top_p", "min_p"),
}
LIMITS = ("top_k", "top_p", "min_p", "repetition_penalty")  # of `Sampling`


@ends_with_its_reader
def main() -> None:
    """The command line."""
    parser = Arguments(
        prog="python -m newllm.generate",
        description=(
            "Generate text with a trained run: sentences, one text as it is drawn (-n 1), text "
            "without end (--endless), or answers to lines (--interactive)."
        ),
    )
    add = parser.add_argument
    add("run", help="a run directory")
    add("--prompt", default="", help="text to start with; - reads standard input")
    add("-n", "--num", type=int, help=f"number of sentences ({SENTENCES})")
    add("--max-tokens", type=int, help=(
        "longest text in tokens, including <BOS> and the prompt, or longest answer with "
        "--interactive; 0: without bound (the longest row of training, or 0 with --endless and "
        "--interactive)"
    ))  # fmt: skip
    add("--temperature", type=float, default=1.0, help="below 1: likelier tokens; 0: as --greedy")
    add("--greedy", action="store_true", help="always the likeliest token")
    add("--top-k", type=int, help="only the K likeliest tokens")
    add("--top-p", type=float, default=1.0, help="only the likeliest that reach probability P")
    add("--min-p", type=float, default=0.0, help="only those with P times the largest probability")
    add("--repetition-penalty", type=float, default=1.0, help="above 1: fewer repetitions (1)")
    add("--endless", action="store_true", help="go on after the end of a text, with the state kept")
    add("--interactive", action="store_true", help="answer lines; the state is kept between them")
    add("--trust", metavar="PACKAGE", action="append", default=[],
        help="a package that the model may load classes from")  # fmt: skip
    add("--seed", type=int, default=0, help="random seed (0)")
    options = parser.parse_args()
    _check(parser, options)
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # which a prompt may not hold
    with loading():
        import torch  # noqa: F401  (what takes seconds)

        from newllm.data.reading import one_line
    try:
        if options.prompt == "-":
            options.prompt = sys.stdin.read()
        for piece in _pieces(options):
            _show(piece)
    except BrokenPipeError:
        raise
    except ValueError as error:
        sys.exit(str(error))
    except MemoryError:
        sys.exit("not enough memory")
    except (OSError, RuntimeError, IndexError) as error:  # of parts that do not fit each other
        sys.exit(one_line(error) or type(error).__name__)


def _check(parser: Arguments, options: Namespace) -> None:
    """End the program if options do not fit each other; a temperature of 0 becomes --greedy."""
    cause = "--greedy"
    if options.temperature == 0:
        options.greedy, options.temperature = True, parser.get_default("temperature")
        cause = "--temperature 0"
    for name, others in NOT_USED_WITH.items():
        for other in others if getattr(options, name) else ():
            if getattr(options, other) != parser.get_default(other):
                chosen = cause if name == "greedy" else _option(name)
                parser.error(f"{_option(other)}: is not used with {chosen}")
    for name, least in {"num": 1, "max_tokens": 0, "seed": 0}.items():
        if (value := getattr(options, name)) is not None and value < least:
            parser.error(f"{_option(name)} {value}: must be at least {least}")


def _show(piece: str) -> None:
    try:
        print(piece, end="", flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        sys.exit(f"the output cannot be written; {error.strerror}")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _pieces(options: Namespace) -> Iterator[str]:
    """The text, piece by piece.

    Raises:
        ValueError: the run cannot be loaded, or an option does not fit it.
    """
    from newllm.data.reading import printable
    from newllm.models.distribution import Sampling
    from newllm.models.sampling import Continuation, prompt_tokens, sample_sentences
    from newllm.runs.directory import load_run
    from newllm.runs.generation import COMMANDS, Dialogue, text_of

    run = load_run(options.run, options.trust)
    model, tokenizer = run.model, run.tokenizer
    if tokenizer is None:
        raise ValueError(f"{options.run}: was not trained on text and has no tokenizer")
    temperature = 0.0 if options.greedy else options.temperature
    limits = {name: getattr(options, name) for name in LIMITS}
    try:
        sampling = Sampling(temperature=temperature, **limits)
    except ValueError as error:
        faults = (line.partition("=") for line in str(error).splitlines())
        raise ValueError("\n".join(f"{_option(name)} {rest}" for name, _, rest in faults)) from None
    max_tokens = _longest(options, run) or math.inf
    num = SENTENCES if options.num is None else options.num
    tokens = prompt_tokens(tokenizer, options.prompt)
    if len(tokens) > max_tokens and not options.interactive:
        raise ValueError(
            f"the prompt has {len(tokens)} tokens; the maximum is {max_tokens}; raise --max-tokens"
        )
    if num != 1 and not (options.endless or options.interactive):
        if max_tokens == math.inf:
            raise ValueError("--max-tokens 0: needs -n 1, --endless or --interactive")
        between = ""
        for first in range(0, num, AT_ONCE):
            seed = (options.seed + SPREAD * first) % 2**63
            given = min(AT_ONCE, num - first), options.prompt, max_tokens, sampling, seed
            sentences = sample_sentences(model, tokenizer, *given)
            if any("\n" in sentence for sentence in sentences):
                between = "\n"  # a blank line after each text of several lines
            if first:
                yield between
            yield f"\n{between}".join(map(printable, sentences)) + "\n"
        return
    continuation = Continuation(
        model, tokenizer, sampling, seed=options.seed, is_endless=options.endless
    )
    if options.interactive:
        print(f"write the beginning of a text; {COMMANDS}", file=sys.stderr)
        dialogue = Dialogue(run, continuation, max_tokens)
        yield from dialogue.answers(line.rstrip("\n") for line in sys.stdin)
        return
    continuation.read(tokens)
    start = () if tokenizer.is_of_pairs else tokens
    yield from text_of(continuation, tokenizer, max_tokens - len(tokens), start)


def _longest(options: Namespace, run: LoadedRun) -> int:
    """The most tokens of a text, including `<BOS>` and the prompt; 0 for any number.

    Raises:
        ValueError: more were asked for than the model has positions for.
    """
    if options.max_tokens is not None:
        positions = run.model.positions
        # The last token is drawn, and not read.
        most = positions.max_length + 1 if positions else math.inf
        if options.max_tokens > most and not options.interactive:
            raise ValueError(
                f"--max-tokens {options.max_tokens}: the model has positions for {most} at most"
            )
        return int(options.max_tokens)
    if options.endless or options.interactive:
        return 0
    return int(run.config.model.get("max_length") or 0) or LINE


if __name__ == "__main__":
    main()
