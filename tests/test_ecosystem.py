"""The commands of docs/en/ecosystem.md, section by section and unchanged, with a small model."""

from __future__ import annotations

import json
import math
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib import metadata
from pathlib import Path

import pytest
import torch
import workshop
from peft import PeftModel
from transformers import GPT2LMHeadModel, pipeline
from workshop import ROOT, Workshop

from hfgpt.inference import exported

pytestmark = pytest.mark.e2e

PAGE = (ROOT / "docs" / "en" / "ecosystem.md").read_text(encoding="utf-8")
SECTIONS = {part.splitlines()[0]: part for part in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]}
TEXT = "ROMEO:\nWhat light is it?\n\nJULIET:\nThe sun."


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, python: str) -> Workshop:
    """Return a folder with a checkout's files, and in out/learning a model that has learned to write letters."""
    made = Workshop(tmp_path_factory.mktemp("ecosystem"), python)
    train = "python scripts/train.py recipes/learning.yaml --block_size=64 --n_embd=32 --learning_rate=1e-2"
    made.python(*workshop.few_steps([*train.split()[1:], "--eval_interval=100"], steps=100))
    (made.folder / "my_text.txt").write_text(TEXT, encoding="utf-8")
    return made


def command(section: str) -> list[str]:
    """Return the only command of a section."""
    (line,) = workshop.blocks(SECTIONS[section], "bash")
    return line.split()


def program(section: str) -> str:
    """Return the only Python program of a section."""
    (text,) = workshop.blocks(SECTIONS[section], "python")
    return text


def run(place: Workshop, text: str) -> str:
    """Return what a program prints, in a process that never imports hfgpt."""
    return place.shell("python", "-c", f"{text}\nimport sys\nassert 'hfgpt' not in sys.modules")


def test_each_section_is_typed_here() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    typed = [title for title, text in SECTIONS.items() if "```" in text]
    assert len(typed) == 6
    assert [title for title in typed if f'"{title}")' not in source] == []


def test_the_versions_are_those_that_are_tried() -> None:
    rows = re.findall(r"^\| (.+?) \| ([\d., ]+) \|", PAGE, re.MULTILINE)
    names = ("transformers", "openai", "onnxscript", "onnxruntime", "gguf", "xllamacpp", "lm_eval", "peft")
    tried = {version for _, versions in rows for version in versions.split(", ")}
    assert tried == {metadata.version(name) for name in names}


def test_the_pipeline_and_its_streamer(place: Workshop) -> None:
    text = run(place, program("Transformers"))
    assert "ROMEO:" in text
    assert len(text.split("JULIET:")[1]) > 20


def test_a_server_on_the_loopback(place: Workshop) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = [word.replace("8000", port) for word in command("A server")]
    words[0] = str(Path(sys.executable).parent / words[0])
    with (place.folder / "serve.log").open("w") as log:
        server = subprocess.Popen(words, cwd=place.folder, stdout=log, stderr=log)
    try:
        wait_for(f"http://localhost:{port}/health", server)
        answer = run(place, program("A server").replace("8000", port))
        assert len(answer) == 50 + 1 + 50
        assert answer[:50] == answer[51:], "the same seed, at once and in pieces"
        assert len(set(answer)) > 5, "drawn, not the same letter all the time"
        request = {"model": "out/learning", "messages": [{"role": "user", "content": "Hello"}]}
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(f"http://localhost:{port}/v1/chat/completions", request)
        refused.value.close()
        assert refused.value.code == 500, "the page says that a chat needs a template"
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=60)
    assert "chat_template is not set" in (place.folder / "serve.log").read_text()


def ask(url: str, content: object = None) -> bytes:
    body = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return bytes(answer.read())


def wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and server.poll() is None:
        try:
            ask(url)
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError("the server did not start")


def test_onnx(place: Workshop) -> None:
    said = place.shell(*command("ONNX"))
    assert float(re.findall(r"Transformers': (\S+)", said)[0]) < 1e-5
    write = pipeline("text-generation", model=str(place.folder / "out" / "learning"))
    (greedy,) = write("ROMEO:", do_sample=False, max_length=26)
    assert run(place, program("ONNX")) == greedy["generated_text"] + "\n"


def test_gguf(place: Workshop) -> None:
    assert "the same tensors and tokens back" in place.shell(*command("GGUF and llama.cpp"))
    text = run(place, program("GGUF and llama.cpp"))
    assert len(text.strip()) > 20


def test_lm_eval(place: Workshop) -> None:
    """Its bits per byte are those that Transformers computes: each paragraph in one window, after a line feed."""
    table = place.shell(*command("lm-evaluation-harness"))
    (bits,) = re.findall(r"bits_per_byte\s*\|\S+\s*\|\s*([\d.]+)", table)
    paragraphs, nats = TEXT.split("\n\n"), 0.0
    model, tokenizer = exported.load_folder(place.folder / "out" / "learning", "cpu")
    for paragraph in paragraphs:
        ids = torch.tensor([[0, *tokenizer.encode(paragraph)]])
        with torch.no_grad():
            nats += model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
    length = sum(len(paragraph) for paragraph in paragraphs)
    assert float(bits) == pytest.approx(nats / math.log(2) / length, abs=1e-3)


# PEFT reads an attribute of the model that Transformers has renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_lora(place: Workshop) -> None:
    """It learns, the adapter changes the logits, and the merged model has the adapter's logits."""
    losses = [float(loss) for loss in re.findall(r"^loss (\S+)", run(place, program("LoRA")), re.MULTILINE)]
    assert losses[-1] < losses[0] - 0.005
    folders = [place.folder / "out" / name for name in ("learning", "learning", "merged")]
    base, adapted, merged = (GPT2LMHeadModel.from_pretrained(folder).eval() for folder in folders)
    adapted = PeftModel.from_pretrained(adapted, place.folder / "out" / "lora")
    ids = torch.arange(1, 40)[None]
    with torch.no_grad():
        before, beside, within = (model(ids).logits for model in (base, adapted, merged))
    assert (beside - before).abs().max() > 1e-3
    torch.testing.assert_close(within, beside, rtol=0, atol=1e-5)
