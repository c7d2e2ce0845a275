"""`trimtab serve` and `trimtab chat`, as they are typed."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import types
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trimtab import serve as serving
from trimtab.cli.chat import Chat
from trimtab.cli.chat import main as chat
from trimtab.cli.serve import main as serve
from trimtab.dials import VectorDial
from trimtab.errors import ConfigError
from trimtab.evaluation import Sampling, generate
from trimtab.serve import Engine, Shelf


def vector(seed: int = 0) -> VectorDial:
    v = torch.randn(32, generator=torch.Generator().manual_seed(seed))
    return VectorDial({1: v}, {1: 3.0})


@pytest.fixture
def chats(tiny: Any, tokenizer: Any) -> Any:
    dials = {"honesty": vector(), "tone": vector(1)}
    args = types.SimpleNamespace(system=None, max_new_tokens=8, temperature=0.0)
    with Engine(tiny("llama", fresh=True), tokenizer, dials, context=128) as engine:
        yield Chat(engine, Shelf("tiny", dials), args)


def test_a_chat_keeps_its_history_and_turns_its_dials(chats: Chat, tokenizer: Any, tiny: Any):
    def expected(*texts: str, system: str = "", alpha: float = 0.0) -> str:
        roles = ["user", "assistant"] * 3
        messages: Any = [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]
        if system:
            messages.insert(0, {"role": "system", "content": system})
        (found,) = generate(
            tiny("llama", fresh=True), tokenizer, [messages], vector(), [alpha],
            sampling=Sampling(max_new_tokens=8), prompt_style="chat", force=True,
        )  # fmt: skip
        return found.text

    def says(line: str) -> str:
        return "".join(chats.says(line))

    first = says("Is the sky blue?")
    assert first == expected("Is the sky blue?")
    second = says("And now?")
    assert second == expected("Is the sky blue?", first, "And now?")
    turned = says("/alpha honesty 1.5")
    assert turned.startswith("honesty 1.5, tone 0\n")
    assert "never measured" in turned
    again = says("/again")
    assert again == expected("Is the sky blue?", first, "And now?", alpha=1.5)
    assert says("/history") == (
        f"user: Is the sky blue?\nassistant: {first}\nuser: And now?\nassistant: {again}"
    )
    says("/reset")
    says("/system Be brief.")
    assert says("Is it?") == expected("Is it?", system="Be brief.", alpha=1.5)
    assert says("/alpha") == "honesty 1.5, tone 0"
    assert says("") == ""
    assert "/quit" in says("/nothing")
    assert "/quit" in says("/alpha honesty")
    for line in ("/alpha kindness 1", "/alpha honesty much"):
        with pytest.raises(ConfigError, match=r"no dial|expected finite"):
            says(line)


def test_an_answer_that_is_stopped_is_kept_as_far_as_it_came(chats: Chat):
    whole = "".join(chats.says("Is the sky blue?"))
    chats.messages = []
    answer: Any = chats.says("Is the sky blue?")
    begun = "".join(next(answer) for _ in range(3))
    answer.close()
    assert chats.messages[-1] == {"role": "assistant", "content": begun}
    assert whole.startswith(begun)


def test_chat_reads_lines_until_they_end(
    saved_model: Callable[..., Path], tmp_path: Path, monkeypatch: Any, capsys: Any
):
    vector().save_pretrained(tmp_path / "honesty")
    lines = "/alpha honesty 0.5\n/alpha other 1\nIs the sky blue?\n/quit\nnever read\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    chat([
        "--model", str(saved_model()), "--dial", str(tmp_path / "honesty"), "--alpha", "honesty=1",
        "--max-new-tokens", "5", "--quiet",
    ])  # fmt: skip
    said = capsys.readouterr().out
    assert said.startswith("honesty 1\nhonesty: it was never measured")
    assert "honesty 0.5" in said
    assert "no dial 'other'" in said
    assert len(said.splitlines()) >= 6


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--dial", "a=one", "--dial", "a=two"], "two are called a"),
        (["--dial", "one/a", "--dial", "two/a"], "two are called a"),
        (["--port", "70000"], "0 to 65535"),
        (["--rows", "0"], "rows"),
        (["--model", "nowhere/at-all"], "nowhere"),
    ],
)
def test_serve_says_what_it_cannot_do_before_it_loads(words: list[str], says: str):
    with pytest.raises(Exception, match=says):
        serve(words)


def test_dials_have_names_that_requests_can_write(tiny: Any):
    for name in ("a+b", "a@1", "a b", ""):
        with pytest.raises(ConfigError, match="a name of letters"):
            Shelf("tiny", {name: vector()})


def test_text_on_the_fullest_shade_can_be_read():
    page = (Path(serving.__file__).parent / "page.html").read_text("utf-8")

    def light(shade: str) -> float:
        """Relative luminance, as WCAG has it."""
        digits = shade * 2 if len(shade) == 3 else shade
        parts = [int(digits[n : n + 2], 16) / 255 for n in (0, 2, 4)]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return sum(w * x for w, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    found = re.findall(r"--([a-z]+): light-dark\(#(\w+), #(\w+)\)", page)
    shades = {name: tuple(map(light, of)) for name, *of in found}
    for ground, mark, least in [
        ("up", "ink", 4.5), ("down", "ink", 4.5), ("card", "faint", 4.5), ("page", "faint", 4.5),
        ("card", "warn", 4.5), ("page", "warn", 4.5), ("card", "edge", 3), ("page", "accent", 3),
    ]:  # fmt: skip
        for one, other in zip(shades[ground], shades[mark], strict=True):
            ratio = (max(one, other) + 0.05) / (min(one, other) + 0.05)
            assert ratio >= least, (ground, mark, ratio)


@pytest.mark.slow
def test_serve_runs_until_it_is_interrupted(saved_model: Callable[..., Path], tmp_path: Path):
    vector().save_pretrained(tmp_path / "honesty")
    words = [
        "serve",
        "--model",
        str(saved_model()),
        "--dial",
        f"h={tmp_path / 'honesty'}",
        "--port",
        "0",
    ]
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "trimtab", *words],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TRIMTAB_CACHE": str(tmp_path / "cache")},
    )
    assert process.stdout is not None
    line = next(x for x in process.stdout if "http" in x)
    found = re.search(r"http://127.0.0.1:\d+", line)
    assert found
    assert "model with h" in line
    with urllib.request.urlopen(f"{found[0]}/health", timeout=20) as answer:
        assert b'"status":"ok"' in answer.read()
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
