"""Documents from the Python standard library of the user: its documentation, and its source code.

Both are real text that needs no download. They differ a little between versions of Python, so the
version is a part of what a run states.
"""

from __future__ import annotations

import ast
import hashlib
import platform
import random
import re
import sysconfig
import tokenize
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from newllm.data.sources.corpora import SPLIT_SEED, SPLITS, Corpus

# Tests, installed packages, and files that the installation generates.
LEFT_OUT = re.compile(
    r"(^|/)(tests?|idle_test|site-packages|dist-packages|config-[^/]*|_sysconfigdata[^/]*)(/|$)"
)
PERCENT_TRAIN, PERCENT_VALIDATION = 80, 10  # of the modules
SALT = 73  # of the first split of Python 3.11 with 25 modules to validate and to test on


def _documentation(file: Path) -> Iterator[str]:
    """The documentation strings of a module, its classes and its functions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes of other authors
        module = ast.parse(file.read_bytes())
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(module):
        if isinstance(node, documented) and (text := ast.get_docstring(node)):
            yield text


def _source(file: Path) -> Iterator[str]:
    """The source code of a module."""
    with tokenize.open(file) as opened:
        yield opened.read()


READERS: dict[str, Callable[[Path], Iterable[str]]] = {
    "stdlib_docs": _documentation,
    "stdlib_source": _source,
}


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
    """`stdlib_docs` or `stdlib_source`: each documentation string or each file is a document.

    No top-level module is in two splits. A text that occurs again is left out, first of all from
    the evaluation splits.
    """
    documents: dict[str, list[str]] = {split: [] for split in SPLITS}
    for file_name, file in library_files().items():
        documents[split_of(Path(file_name).parts[0].removesuffix(".py"))] += READERS[name](file)
    seen: set[str] = set()
    for split in SPLITS:
        distinct = dict.fromkeys(text for text in documents[split] if text.strip())
        documents[split] = [text for text in distinct if text not in seen]
        seen.update(distinct)
        random.Random(SPLIT_SEED).shuffle(documents[split])  # a limit then keeps a fair sample
    return Corpus(
        name,
        documents["train"],
        documents["validation"],
        documents["test"],
        unit="documents",
    )


def version_faults(python: str | None) -> list[str]:
    """A fault if another version of Python is asked for than the one that runs."""
    own = platform.python_version()
    if python in (None, own):
        return []
    return [f"data.python={python}: this is Python {own}, whose library differs"]
