"""The page, driven in headless Chromium: typed into, dragged, read, and pictured."""

from __future__ import annotations

import json
import os
import shutil
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_serve_api import Running, dials

from helpers_browser import Browser
from trimtab.dials import Condition, VectorDial

pytestmark = pytest.mark.slow

SIZES = {"wide": (1280, 800, False), "dark": (1280, 800, True), "phone": (390, 844, True)}


@pytest.fixture(scope="module")
def running(tiny: Any, tokenizer: Any) -> Iterator[Running]:
    at = Condition("embed", torch.ones(32), -1.0, "last")  # holds for every prompt
    care = VectorDial({2: torch.ones(32)}, {2: 1.0}, positions="completion", condition=at)
    all_ = {**dials(), "care": care}
    made = Running(tiny("llama", fresh=True), tokenizer, all_, max_tokens=40)
    yield made
    made.stop()


@pytest.mark.parametrize("size", SIZES)
def test_the_page(running: Running, size: str, tmp_path: Path):
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no chromium")
    pictures = Path(os.environ.get("TRIMTAB_PICTURES", tmp_path))
    width, height, dark = SIZES[size]
    address = f"http://127.0.0.1:{running.port}/"
    page = Browser(program, address, width, height, dark=dark)
    page.wait("document.querySelectorAll('.dial').length == 3")
    assert "Turn a dial" in page.js("getComputedStyle($('talk'), '::before').content")
    assert page.js("$('model').textContent") == "tiny"
    said = "document.querySelector('.dial').lastChild.textContent"
    assert page.js(said) == "measured −1 to 1.5; damage here 0 nats a token"
    # the slider goes from -1.6 to 2.15: by mouse to 1.15, by keyboard 0.05 further
    page.drag(".dial input[type=range]", 2.75 / 3.75)
    assert page.js("alphas.honesty") == pytest.approx(1.15)
    page.press("ArrowRight", 39)
    assert page.js("alphas.honesty") == pytest.approx(1.2)
    assert page.js(f"parseFloat({said}.split('here')[1])") == pytest.approx(0.256, abs=0.005)
    assert page.js("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    ends = page.js("['--from', '--to'].map(n => document.activeElement.style.getPropertyValue(n))")
    assert [float(x[:-1]) for x in ends] == pytest.approx([160 / 3.75, 280 / 3.75])
    page.js(
        "$('at').value = '-1 0'; $('most').value = 20; $('seed').value = 5; $('temperature').value = 1"
    )
    page.js("$('say').focus()")
    page.type("Is the sky blue?")
    page.press("Enter", 13)
    page.wait("document.querySelectorAll('.answer').length == 3 && !running.length")
    names = page.js("[...document.querySelectorAll('.answer b')].map(e => e.textContent)")
    assert names == ["honesty −1", "honesty 0", "honesty 1.2"]
    texts = page.js("[...document.querySelectorAll('.answer p')].map(e => e.textContent)")
    assert len(set(texts)) >= 2  # a tiny model may stop soon
    shades = "[...document.querySelectorAll('.answer')].map(a => a.querySelectorAll('span[style]').length)"
    below, bare, above = page.js(shades)
    page.js("document.querySelector('.answer span[style]').click()")  # what touch has for hovering
    assert "nats by the dials" in page.js("document.querySelector('.answer > .faint').textContent")
    assert below
    assert above
    assert not bare
    assert page.js("document.querySelector('.picked b').textContent") == "honesty 1.2"
    assert (
        page.js("document.querySelector('[aria-current=true]').ariaLabel")
        == "answer at honesty 1.2"
    )
    heights = "[...document.querySelector('.curve').points].map(p => p.y)"
    assert max(page.js(heights)[n] for n in (0, -1)) < 20  # it ends as high as it has come
    # a dial beyond what was measured, and one that never was: said
    page.js("alphas.tone = 1; alphas.honesty = 2; dials.forEach(d => d.show()); $('at').value = ''")
    assert page.js(f"{said}.slice(0, 26)") == "outside the measured range"
    page.js("$('say').value = 'Two and two?'; send(); 1")
    page.wait("document.querySelectorAll('.answers').length == 2 && !running.length")
    warned = page.js("document.querySelectorAll('.answers')[1].innerText")
    assert "honesty 2, tone 1" in warned
    assert "outside the range in which it was measured" in warned
    assert "never measured" in warned
    assert page.js("history.map(m => m.role)") == ["user", "assistant"] * 2
    assert page.js("history[1].content") == texts[2]
    assert page.js("document.documentElement.scrollWidth") <= width
    page.shot(pictures / f"{size}.png")
    # another answer of the first turn is gone on from: what came after it is gone
    page.js("document.querySelector('.answer button').click()")
    assert page.js("history.length") == 2
    assert page.js("history[1].content") == texts[0]
    link = page.js("location.href")
    assert json.loads(urllib.parse.unquote(link.partition("#")[2]))["alphas"] == {
        "honesty": 2,
        "tone": 1,
        "care": 0,
    }
    # Esc stops
    running.engine.model.register_forward_hook(lambda *_: time.sleep(0.05))
    page.js(
        "alphas.care = 1; $('say').focus(); $('say').value = 'Go on'; $('temperature').value = 0; send(); 1"
    )
    page.wait("running.length == 1")
    page.wait("document.body.innerText.includes('● care: its condition holds, it acts')")
    assert page.js("running.length") == 1  # told as it begins
    page.press("Escape", 27)
    page.wait("!running.length && document.body.innerText.includes('stopped')")
    running.engine.model._forward_hooks.clear()
    page.close()
    again = Browser(program, link, width, height, dark=dark)
    again.wait("document.querySelectorAll('.dial').length == 3 && history.length == 2")
    assert again.js("[alphas.honesty, alphas.tone, $('seed').value]") == [2, 1, "5"]
    assert again.js("document.querySelector('.answer').textContent") == texts[0]
    again.close()
