"""Texts from the Python standard library of the user: its documentation, and its source code.

They are real text that needs no download, and differ a little between versions of Python, so the
version is a part of what a run states.
"""

from __future__ import annotations

import ast
import doctest
import hashlib
import platform
import random
import re
import sysconfig
import tokenize
import warnings
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from pathlib import Path
from typing import Any

from newllm.config.faults import no_such_option
from newllm.data.sources.corpora import SPLIT_SEED, SPLITS, Corpus
from newllm.data.sources.corpus_source import CorpusSource

# Tests, installed packages, and files that the installation generates.
LEFT_OUT = re.compile(
    r"(^|/)(tests?|idle_test|site-packages|dist-packages|config-[^/]*|_sysconfigdata[^/]*)(/|$)"
)
PERCENT_TRAIN, PERCENT_VALIDATION = 80, 10  # of the modules
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
SALT = 73  # of the first split of Python 3.11 with 25 modules to validate and to test on


def _documentation(file: Path) -> Iterator[str]:
    """The documentation strings of a module, its classes and its functions."""
    return (ast.get_docstring(node) or "" for node in _documented(file))


def _documented(file: Path) -> Iterator[Documented]:
    """The module, classes and functions of a file that have a documentation string."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes of other authors
        module = ast.parse(file.read_bytes())
    for node in ast.walk(module):
        if isinstance(node, Documented) and ast.get_docstring(node):
            yield node


def _source(file: Path) -> Iterator[str]:
    """The source code of a module."""
    with tokenize.open(file) as opened:
        yield opened.read()


def _summaries(file: Path) -> Iterator[tuple[str, str]]:
    """The code of each function, and the first line of its documentation."""
    for node in _documented(file):
        if not isinstance(node, ast.Module | ast.ClassDef) and len(node.body) > 1:
            summary = (ast.get_docstring(node) or "").strip().partition("\n")[0]
            code = copy(node)
            code.body = node.body[1:]
            yield ast.unparse(code), summary


def _dialogues(file: Path) -> Iterator[tuple[str, str]]:
    """The interactive sessions in documentation, up to each answer, and the answer."""
    for text in _documentation(file):
        session = ""
        for example in _examples(text):
            session += ">>> " + "\n... ".join(example.source.splitlines()) + "\n"
            if example.want.strip():
                yield session, example.want.rstrip("\n")
            session += example.want


def _examples(text: str) -> list[doctest.Example]:
    try:
        return doctest.DocTestParser().get_examples(text)
    except ValueError:  # a session that only looks like one
        return []


Reader = Callable[[Path], Iterable[str] | Iterable[tuple[str, str]]]
DOCUMENT_READERS: dict[str, Reader] = {"stdlib_docs": _documentation, "stdlib_source": _source}
PAIR_READERS: dict[str, Reader] = {
    "stdlib_summaries": _summaries,
    "stdlib_dialogues": _dialogues,
}
READERS = DOCUMENT_READERS | PAIR_READERS


def library_folder() -> Path:
    """Where the standard library lies."""
    return Path(sysconfig.get_path("stdlib"))


def library_files() -> dict[str, Path]:
    """The modules of the standard library by path, in alphabetical order.

    Raises:
        ValueError: there are none, as in an installation without source code.
    """
    folder = library_folder()
    found = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*.py")}
    kept = {name: found[name] for name in sorted(found) if not LEFT_OUT.search(name)}
    if not kept:
        raise ValueError(f"data: the library of this Python has no source code in {folder}")
    return kept


def library_digest() -> str:
    """SHA-256 of all files that are read, in hexadecimal."""
    digest = hashlib.sha256()
    for name, file in library_files().items():
        content = file.read_bytes()
        digest.update(f"{name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def split_of(module: str) -> str:
    """The split of a top-level module, by a hash of its name.

    A twin such as `_pydecimal` is in the split of its module.
    """
    name = module.removeprefix("_py").lstrip("_")
    percent = int.from_bytes(hashlib.sha256(f"{SALT} {name}".encode()).digest()[:4]) % 100
    is_train = percent < PERCENT_TRAIN
    is_validation = percent < PERCENT_TRAIN + PERCENT_VALIDATION
    return SPLITS[0] if is_train else SPLITS[1] if is_validation else SPLITS[2]


def standard_library_corpus(name: str) -> Corpus:
    """One of `READERS`: documentation strings or files, or pairs of prompt and response.

    No top-level module is in two splits. A text or pair that occurs again is left out, first of all
    from the evaluation splits.
    """
    found: dict[str, list[Any]] = {split: [] for split in SPLITS}
    for file_name, file in library_files().items():
        found[split_of(Path(file_name).parts[0].removesuffix(".py"))] += READERS[name](file)
    seen: set[Any] = set()
    for split in SPLITS:
        distinct = dict.fromkeys(text for text in found[split] if not _is_blank(text))
        found[split] = [text for text in distinct if text not in seen]
        seen.update(distinct)
        random.Random(SPLIT_SEED).shuffle(found[split])  # a limit then keeps a fair sample
    if name not in PAIR_READERS:
        train, validation, test = found.values()
        return Corpus(name, train, validation, test, unit="documents")
    train, validation, test = ([text for _, text in pairs] for pairs in found.values())
    prompts = {split: [prompt for prompt, _ in pairs] for split, pairs in found.items()}
    return Corpus(name, train, validation, test, unit="pairs", prompts=prompts)


def _is_blank(text: str | tuple[str, str]) -> bool:
    return not all(part.strip() for part in ([text] if isinstance(text, str) else text))


class LibrarySource(CorpusSource):
    """Texts from the standard library.

    Args:
        corpus: one of `READERS`.
        python: the version of Python whose library is read. None takes the one that runs.
        settings: of `CorpusSource`.
    """

    def __init__(self, corpus: str, python: str | None = None, **settings: Any) -> None:
        faults = no_such_option("data", READERS, corpus=corpus)
        self._python = platform.python_version()
        if python not in (None, self._python):
            told = f"this is Python {self._python}, whose library differs"
            faults.append(f"data.python={python}: {told}")
        unit = "pairs" if corpus in PAIR_READERS else "documents"
        super().__init__(corpus, unit, False, faults, **settings)

    def read(self) -> Corpus:
        """Read the corpus from the files of the library."""
        self.announce("reading the standard library of Python")
        return standard_library_corpus(self.name)

    def text_settings(self) -> dict[str, Any]:
        """The corpus and a digest of the library."""
        return {"corpus": self.name, "text": library_digest()}

    def is_large(self) -> bool:
        """Always."""
        return True

    def card(self) -> dict[str, str]:
        """The usual card, and the version of Python."""
        return super().card() | {"Python": self._python}
