"""lm-evaluation-harness on local files: log-prob as it counts itself, rewards, and their sum."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers_study import trimtab, write_lines
from test_heads import head
from test_rewards import drawn
from trimtab.errors import ConfigError
from trimtab.evaluate.rewards import score_candidates

os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
QUESTIONS = [
    {"question": "is the sky blue", "choices": ["Yes", "No"], "label": 0},
    {"question": "two and two", "choices": ["five", "four", "Rome"], "label": 1},
    {"question": "the capital of Italy", "choices": ["Rome", "Paris", "water"], "label": 0},
    {"question": "what is nothing", "choices": ["nothing", "three sides"], "label": 1},
]


def test_without_the_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    done = trimtab("bench-tasks", "--tasks", "piqa")
    assert done.code == 2
    assert "pip install 'trimtab[eval]'" in done.err


@pytest.fixture
def lm_eval() -> Any:
    return pytest.importorskip("lm_eval")


@pytest.fixture
def task(tmp_path: Path) -> str:
    return f"choices:{write_lines(tmp_path / 'small.jsonl', QUESTIONS)}"


def accuracy(scores: list[Any]) -> float:
    right = [int(np.argmax(s)) == q["label"] for s, q in zip(scores, QUESTIONS, strict=True)]
    return float(np.mean(right))


def by_hand(model: Any, tokenizer: Any, reward: Any) -> tuple[list[Any], list[Any]]:
    logps, rewards = [], []
    for q in QUESTIONS:
        prompt = f"Question: {q['question']}\nAnswer:"
        answers = [f" {c}" for c in q["choices"]]
        rewards.append(score_candidates(model, tokenizer, reward, prompt, answers).numpy())
        found = []
        for answer in answers:
            ids = torch.tensor([tokenizer(prompt + answer)["input_ids"]])
            n = len(tokenizer(prompt)["input_ids"])
            with torch.no_grad():
                logp = model(input_ids=ids).logits[0, n - 1 : -1].log_softmax(-1)
            found.append(float(logp.gather(-1, ids[0, n:, None]).sum()))
        logps.append(np.array(found))
    return logps, rewards


def test_read_outs(lm_eval: Any, task: str, tiny: Any, tokenizer: Any) -> None:
    """Each is the argmax that it says it is; a dial leans the log-probs."""
    from trimtab.evaluate.harness import _model_class, bench_tasks

    model, reward = tiny("llama"), drawn(aggregate="mean")
    logps, rewards = by_hand(model, tokenizer, reward)
    lm = _model_class()(model, tokenizer, reward, "sum", False)
    contexts = [f"Question: {q['question']}\nAnswer:" for q in QUESTIONS]
    requests = [
        (("", ""), *lm._encode_pair(c, f" {choice}"))
        for c, q in zip(contexts, QUESTIONS, strict=True)
        for choice in q["choices"]
    ]
    both = [value for value, _ in lm._loglikelihood_tokens(requests)]
    np.testing.assert_allclose(
        both, np.concatenate(logps) + np.concatenate(rewards), rtol=1e-3, atol=1e-3
    )
    for read_out, wanted in (
        ("logprob", accuracy(logps)),
        ("reward", accuracy(rewards)),
        ("sum", accuracy([a + b for a, b in zip(logps, rewards, strict=True)])),
    ):
        found = bench_tasks(
            model,
            tokenizer,
            [task],
            reward=None if read_out == "logprob" else reward,
            read_out=read_out,  # type: ignore[arg-type]
        )
        assert found == {"small": {"acc": wanted}}
    dial = head(model)
    with dial(model, 2.0):
        leaning, _ = by_hand(model, tokenizer, reward)
    found = bench_tasks(model, tokenizer, [task], dial=dial, alpha=2.0)
    assert found["small"]["acc"] == accuracy(leaning)


def test_own_tasks(lm_eval: Any) -> None:
    """The harness finds them, and what it knows itself."""
    from trimtab.evaluate.harness import check_tasks
    from trimtab.evaluate.tasks.stsb import pearson, process_results, spearman

    assert check_tasks(["race_middle", "piqa"]) == ["race_middle", "piqa"]
    assert "stsb" in check_tasks(["glue"])
    with pytest.raises(ConfigError, match="unknown task 'arc_esay'; did you mean 'arc_easy'"):
        check_tasks(["arc_esay"])
    with pytest.raises(ConfigError, match="no such file"):
        check_tasks(["choices:nowhere/test"], "/nowhere")
    made = process_results({"label": 3.2}, [(-4.0, False), (-1.0, False), (-3.0, False)])
    assert made == {"pearson": (1.0, 3.2), "spearman": (1.0, 3.2)}
    items = [(0.0, 0.5), (1.0, 1.0), (3.0, 2.0), (5.0, 5.0)]
    assert spearman(items) == pytest.approx(1)
    assert pearson(items) == pytest.approx(float(np.corrcoef(*zip(*items, strict=True))[0, 1]))
    assert pearson([(1.0, 0.5), (1.0, 2.0)]) == 0


def test_the_verb(
    lm_eval: Any, task: str, tiny: Any, tokenizer: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    tiny("llama").save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    drawn(aggregate="mean").save_pretrained(tmp_path / "reward")
    words = ["bench-tasks", "--model", tmp_path / "model", "--tasks", task]
    done = trimtab(*words, "--reward", tmp_path / "reward", "--out", tmp_path / "out.json")
    assert done.code == 0, done.err
    note = json.loads((tmp_path / "out.json").read_text())
    assert note["read_out"] == "reward"
    assert set(note["results"]["small"]) == {"acc"}
    assert f"{100 * note['results']['small']['acc']:.1f}" in done.out
    for more, message in (
        (["--read-out", "sum"], "take --reward DIR"),
        (["--reward", tmp_path / "reward", "--read-out", "logprob"], "take --reward DIR"),
        (["--tasks", "arc_esay"], "did you mean 'arc_easy'"),
    ):
        done = trimtab(*words, *more)
        assert done.code == 2, done.out
        assert message in done.err
