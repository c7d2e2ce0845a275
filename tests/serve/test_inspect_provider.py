"""The provider under Inspect's own `eval` and command line (`make inspect`; inspect_ai is no part of
`dev`, since it holds other packages back)."""

# pyright: reportMissingImports=false
from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

inspect_ai = pytest.importorskip("inspect_ai", reason="inspect_ai is not here: make inspect")

from inspect_ai import Task  # noqa: E402
from inspect_ai.dataset import Sample  # noqa: E402
from inspect_ai.log import read_eval_log  # noqa: E402
from inspect_ai.model import (  # noqa: E402
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    ContentImage,
    GenerateConfig,
    get_model,
)
from inspect_ai.scorer import includes  # noqa: E402
from inspect_ai.solver import generate as ask  # noqa: E402
from inspect_ai.solver import system_message  # noqa: E402
from inspect_ai.tool import ToolInfo  # noqa: E402

from trimtab import load  # noqa: E402
from trimtab.dials import VectorDial  # noqa: E402
from trimtab.errors import ConfigError  # noqa: E402
from trimtab.evaluation import generate  # noqa: E402
from trimtab.evaluation.decoding import Sampling  # noqa: E402

QUESTIONS = ("Is the sky blue?", "What is the capital of France?", "Two and two?")

TASK = """
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes
from inspect_ai.solver import generate

@task
def small():
    return Task([Sample(input="Is the sky blue?", target="a")], solver=generate(), scorer=includes())
"""


@pytest.fixture(scope="module")
def here(tiny: Any, tokenizer: Any, tmp_path_factory: Any) -> Path:
    """A folder with a model and two dials."""
    where = tmp_path_factory.mktemp("inspect")
    tiny("llama").save_pretrained(where / "model")
    tokenizer.save_pretrained(where / "model")
    model, _ = load(str(where / "model"))
    for name, seed in (("up", 1), ("other", 2)):
        v = torch.randn(32, generator=torch.Generator().manual_seed(seed))
        dial = VectorDial({1: v}, {1: 30.0})
        dial.check_base(model)
        dial.save_pretrained(where / name)
    return where


def expected(here: Path, chat: Any, alpha: float, n: int = 8) -> str:
    model, tokenizer = load(str(here / "model"))
    dial = VectorDial.from_pretrained(here / "up")
    how = Sampling(max_new_tokens=n)
    (found,) = generate(model, tokenizer, [chat], dial, [alpha], sampling=how, prompt_style="chat")
    return found.text


def asked(here: Path, messages: list[Any], n: int = 8, *, tools: Any = (), **config: Any) -> Any:
    """One answer of the provider with the dial at 1."""
    model = get_model(f"trimtab/{here / 'model'}", dial=str(here / "up"), memoize=False)

    async def run() -> Any:
        try:
            return await model.generate(
                messages, tools=tools, config=GenerateConfig(**{"max_tokens": n, **config})
            )
        finally:
            model.api.close()

    return asyncio.run(run())


def user(text: str) -> list[Any]:
    return [ChatMessageUser(content=text)]


@pytest.mark.parametrize("alpha", [0, 1.0, -2.5])
def test_an_eval_says_what_the_dialled_model_says(here: Path, tmp_path: Path, alpha: float):
    """Samples that share the batch, behind a system message, at temperature 0."""
    task = Task(
        [Sample(input=q, target="a") for q in QUESTIONS],
        solver=[system_message("Be brief."), ask()],
        scorer=includes(),
    )
    (log,) = inspect_ai.eval(
        task,
        model=f"trimtab/{here / 'model'}",
        model_args={"dial": str(here / "up"), "alpha": alpha},
        log_dir=str(tmp_path),
        display="none",
        max_tokens=8,
        temperature=0.0,
    )
    assert log.status == "success"
    assert log.eval.model_args["alpha"] == alpha
    for sample, question in zip(log.samples, QUESTIONS, strict=True):
        chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": question}]
        assert sample.output.completion == expected(here, chat, alpha)
        assert sample.output.metadata["alphas"] == [alpha]
        told = "it was never measured" in " ".join(sample.output.metadata["warnings"])
        assert told == (alpha != 0)


def test_the_command_line(here: Path, tmp_path: Path):
    """`inspect eval` finds the provider by its entry point; a dial at 1 and another at 0."""
    (tmp_path / "small.py").write_text(TASK)
    words = ["-M", f"dial={here / 'up'},{here / 'other'}", "-M", "alpha=1,0"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "inspect_ai", "eval", "small.py", "--display", "none"),
            *("--model", f"trimtab/{here / 'model'}", *words, "--max-tokens", "8"),
            *("--temperature", "0", "--log-dir", "logs", "--log-format", "json"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = (tmp_path / "logs").glob("*.json")
    (sample,) = read_eval_log(str(file)).samples
    chat = [{"role": "user", "content": QUESTIONS[0]}]
    assert sample.output.completion == expected(here, chat, 1.0)
    assert json.loads(file.read_text())["eval"]["model_args"]["alpha"] == ["1", "0"]


def test_log_probs_are_the_dialled_models(here: Path, tokenizer: Any):
    found = asked(here, user("Two and two?"), temperature=0.0, logprobs=True, top_logprobs=3)
    (choice,) = found.choices
    model, _ = load(str(here / "model"))
    chat = [{"role": "user", "content": "Two and two?"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert found.usage.input_tokens == len(ids)
    with torch.no_grad(), VectorDial.from_pretrained(here / "up")(model, 1.0):
        for entry in choice.logprobs.content:
            logprobs = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            best = logprobs.topk(3)
            assert entry.logprob == pytest.approx(float(logprobs.max()), abs=1e-4)
            assert [t.logprob for t in entry.top_logprobs] == pytest.approx(
                best.values.tolist(), abs=1e-4
            )
            ids.append(int(best.indices[0]))
    assert len(choice.logprobs.content) in (
        found.usage.output_tokens,
        found.usage.output_tokens - 1,
    )
    assert asked(here, user("Two and two?")).choices[0].logprobs is None


def test_stop_seed_lengths_and_choices(here: Path):
    whole = asked(here, user("Two and two?"), temperature=0.0, n=12).choices[0]
    assert whole.stop_reason == "max_tokens"
    stop = whole.message.text[3:5]
    cut = asked(here, user("Two and two?"), temperature=0.0, n=12, stop_seqs=[stop]).choices[0]
    assert cut.stop_reason == "stop"
    assert cut.message.text == whole.message.text[: whole.message.text.index(stop)]

    def drawn(seed: int) -> list[str]:
        found = asked(here, user("Two and two?"), seed=seed, num_choices=3)
        return [choice.message.text for choice in found.choices]

    assert drawn(1) == drawn(1)
    assert len(set(drawn(1))) == 3
    assert drawn(1) != drawn(2)
    long = asked(here, user("word " * 300))
    assert long.stop_reason == "model_length"
    assert "more than" in long.error
    assert asked(here, user("a"), n=5000, temperature=0.0).stop_reason in ("stop", "model_length")


def test_an_earlier_answer_is_part_of_the_chat(here: Path):
    chat = [
        ("system", ChatMessageSystem(content="Be brief.")),
        ("user", ChatMessageUser(content="Is the sky blue?")),
        ("assistant", ChatMessageAssistant(content="Yes.")),
        ("user", ChatMessageUser(content="And now?")),
    ]
    found = asked(here, [message for _, message in chat], temperature=0.0)
    same = [{"role": role, "content": message.text} for role, message in chat]
    assert found.completion == expected(here, same, 1.0)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"top_k": 5}, "top_k: there is no such setting"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"tools": [ToolInfo(name="look", description="looks")]}, "tools are not called here"),
    ],
)
def test_what_would_change_the_answer_and_is_not_known_is_refused(here: Path, how: Any, says: str):
    with pytest.raises(ConfigError, match=says):
        asked(here, user("a"), **how)
    with pytest.raises(ConfigError, match="expected text alone"):
        asked(here, [ChatMessageUser(content=[ContentImage(image="data:image/png;base64,AA==")])])


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"dails": "x"}, "dails: there is no such argument"),
        ({"alpha": [1, 2]}, "2 strengths for 1 dials"),
        ({"alpha": "much"}, "dial-0"),
        ({"prompt_style": "poem"}, "expected chat or plain"),
    ],
)
def test_wrong_arguments_are_said_before_the_model_is_loaded(here: Path, args: Any, says: str):
    with pytest.raises(ConfigError, match=says):
        get_model("trimtab/no-such-model", **{"dial": str(here / "up"), **args})
