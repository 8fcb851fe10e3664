"""The page of docs/export in Chromium: it draws what the client in Python draws.

`make check-page` installs its npm packages and runs this; `make test` leaves it out.
"""

import html
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlencode

import pytest
import torch
from omegaconf import OmegaConf
from small_models import context_model, rnn_model, transformer

from newllm.data.tokenizer import Tokenizer
from newllm.exporting.onnx_folder import export_onnx
from newllm.models.initialization import variance_preserving
from newllm.models.language_model import LanguageModel
from newllm.runs.directory import LoadedRun

pytestmark = pytest.mark.browser
PAGE = Path(__file__).parents[1] / "docs" / "export"
CHROMIUM = (
    *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    "--virtual-time-budget=30000",
)
TEXTS = ["The cat sleeps, while a dog barks at the moon.", "nobody sings naïve 漢字"]


class Quiet(SimpleHTTPRequestHandler):
    """A server that does not report its requests."""

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def top(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to serve: the page, and an exported model of each kind."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "page").symlink_to(PAGE)
    kinds: dict[str, tuple[Callable[..., LanguageModel], dict[str, object]]] = {
        "words": (context_model, {}),
        "positions": (transformer, {"kind": "bpe", "vocabulary_size": 300, "is_exact": True}),
        "pairs": (rnn_model, {"kind": "bpe", "vocabulary_size": 290, "is_of_pairs": True}),
    }
    for number, (name, (make, settings)) in enumerate(kinds.items()):
        torch.manual_seed(number)
        tokenizer = Tokenizer.train(TEXTS, **settings)  # type: ignore[arg-type]
        loud = partial(variance_preserving, output_gain=3.0)
        model = make(tokenizer.size, initialization=loud).eval()
        run = LoadedRun(folder / name, OmegaConf.create(), {}, model, tokenizer)
        list(export_onnx(run, folder / name, is_int8=False))
    return folder


@pytest.fixture(scope="module")
def address(top: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=top))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/page/index.html"
    server.shutdown()
    thread.join()
    server.server_close()


def shown(address: str, **query: str) -> dict[str, str]:
    """What the page shows at its end, by the ids of its elements."""
    done = subprocess.run(
        [*CHROMIUM, "--dump-dom", f"{address}?{urlencode(query)}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    found = re.findall(r'id="(model|text|status)"[^>]*>(.*?)</(?:p|div)>', done.stdout, re.DOTALL)
    return {name: html.unescape(text) for name, text in found}


@pytest.mark.parametrize("name", ["words", "positions", "pairs"])
def test_the_page_draws_what_the_client_in_python_draws(top: Path, address: str, name: str) -> None:
    client = [sys.executable, str(PAGE / "generate.py"), str(top / name), "--temperature=0"]
    done = subprocess.run([*client, "--prompt", "the cat"], capture_output=True, text=True)
    expected = done.stdout.removesuffix("\n")
    found = shown(address, model=f"/{name}", prompt="the cat", temperature="0")
    assert found["status"].startswith("done: ")
    # Browsers and Rust show a character of which bytes are missing by different numbers of marks.
    one_mark = partial(re.sub, "\N{REPLACEMENT CHARACTER}+", "\N{REPLACEMENT CHARACTER}")
    assert one_mark(found["text"]) == one_mark(expected)
    assert len(expected) > len("the cat")


def test_faults_are_shown(address: str) -> None:
    assert shown(address, model="/words", prompt="the zebra")["status"] == (
        "the prompt contains unknown words: zebra"
    )
    assert shown(address, model="/positions", prompt="cat " * 40)["status"].endswith(
        "tokens; the maximum is 32"
    )
    found = shown(address, model="/nowhere")
    assert (found["model"], found["status"]) == (
        "no model",
        "/nowhere/model.json: File not found",
    )


def test_without_a_prompt_in_the_address_it_waits(address: str) -> None:
    found = shown(address, model="/words")
    assert found["model"].startswith("additive C8 H10 L3 E6: ")
    assert (found["text"], found["status"]) == ("", "")
