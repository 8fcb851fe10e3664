"""Print a card for each corpus: ``python -m newllm.data``."""

from rich.console import Console
from rich.table import Table

from newllm.config.arguments import Arguments, ends_with_its_reader
from newllm.config.loading import loading


@ends_with_its_reader
def main() -> None:
    """Write the corpora of this package into a directory and print a card for each."""
    parser = Arguments(prog="python -m newllm.data", description=main.__doc__)
    parser.add_argument("--directory", default="data", help="output folder (default: data)")
    directory = parser.parse_args().directory
    with loading():
        from newllm.data.sources.corpora import BUILT_IN
        from newllm.data.sources.sentences import SentenceSource
        from newllm.data.sources.standard_library import DOCUMENT_READERS, LibrarySource
    console = Console()
    own = [SentenceSource(name, order_seed=0, directory=directory) for name in BUILT_IN]
    read = [LibrarySource(name, order_seed=0, directory=directory) for name in DOCUMENT_READERS]
    for data in (*own, *read):
        try:
            data.setup()
            data.write()
        except ValueError as error:
            parser.exit(1, f"{error}\n")
        table = Table(title=data.name, title_justify="left", show_header=False)
        table.add_column()
        table.add_column(overflow="fold")
        grammar_rows = data.grammar_card() if isinstance(data, SentenceSource) else {}
        for label, value in (data.card() | grammar_rows).items():
            table.add_row(label, value)
        console.print(table)


if __name__ == "__main__":
    main()
