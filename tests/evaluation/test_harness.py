"""lm-evaluation-harness on local files: rewards, log-probs, and their sum; beside the harness's own
model class on the same models and tasks."""

from __future__ import annotations

import copy
import json
import os
import zlib
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from test_heads import head
from test_rewards import drawn
from test_vector import vector
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from conftest import VOCAB
from helpers_study import trimtab, write_lines
from trimtab.batching import Encoded, Row
from trimtab.batching.spans import prompts
from trimtab.errors import ConfigError, DataError, ModelError
from trimtab.evaluation.benchmarks import check_tasks, load_tasks
from trimtab.evaluation.harness import _model_class, bench_tasks
from trimtab.evaluation.rewards import rewards_of, score_candidates
from trimtab.rendering import Rendering

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


def test_read_outs(task: str, tiny: Any, tokenizer: Any) -> None:
    """Each is the argmax that it says it is; a dial leans the log-probs."""
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


def test_own_tasks() -> None:
    """The harness finds them, and what it knows itself."""
    from trimtab.evaluation.tasks.stsb import pearson, process_results, spearman

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


def test_the_verb(task: str, tiny: Any, tokenizer: Any, tmp_path: Path, monkeypatch: Any) -> None:
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
    more = ["--apply-chat-template", "--fewshot", 1, "--no-fewshot-as-multiturn", "--limit", 2]
    done = trimtab(
        *words, *more, "--system-instruction", "Be short.", "--out", tmp_path / "chat.json"
    )
    assert done.code == 0, done.err
    note = json.loads((tmp_path / "chat.json").read_text())
    assert (note["fewshot"], note["apply_chat_template"], note["notes"]) == (1, True, [])
    model, chat = tiny("llama"), {"apply_chat_template": True, "fewshot_as_multiturn": False}
    again = bench_tasks(
        model, tokenizer, [task], fewshot=1, limit=2, system_instruction="Be short.", **chat
    )
    assert again == note["results"]
    for more, message in (
        (["--read-out", "sum"], "take --reward DIR"),
        (["--reward", tmp_path / "reward", "--read-out", "logprob"], "take --reward DIR"),
        (["--tasks", "arc_esay"], "did you mean 'arc_easy'"),
    ):
        done = trimtab(*words, *more)
        assert done.code == 2, done.out
        assert message in done.err


# ---- beside the harness's own model class -------------------------------------------------------

CONTEXT = 48
"""Tokens that the models of this part hold."""
KINDS = {
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT, eos_token_id=0
    ),
    "llama": lambda: LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        eos_token_id=0,
        tie_word_embeddings=True,
    ),
}


def short(kind: str) -> Any:
    """A model whose context holds little; learned positions, or rotary ones."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(KINDS[kind]())
    for p in model.parameters():
        p.data = p.data + 0.3 * torch.randn_like(p) * (p.ndim > 1)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module", params=KINDS)
def held(request: Any) -> Any:
    return short(request.param)


@pytest.fixture(scope="module")
def with_bos(tokenizer: Any) -> Any:
    """A tokenizer that puts a BOS before every text, which is not its EOS."""
    from tokenizers.processors import TemplateProcessing

    made = copy.deepcopy(tokenizer)
    made.add_special_tokens({"bos_token": "<|im_start|>"})
    bos = [("<|im_start|>", made.bos_token_id)]
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", pair="<|im_start|> $A $B", special_tokens=bos
    )
    assert made("a")["input_ids"][0] == made.bos_token_id != made.eos_token_id
    return made


LONG = "The capital of France is Paris, and what is blue is the sky, as everything says. " * 2
DOCS = [
    {"q": "Is the sky blue?", "choices": ["Yes", "No", "Yes"], "label": 0},
    {"q": "Two  and  two are", "choices": [" four", "five  six", "fünf"], "label": 1},
    {"q": "Was heißt 空 auf Deutsch? ", "choices": ["Himmel", "空空", "🙂"], "label": 0},
    {"q": LONG, "choices": ["Paris", "nothing at all is said here", "Rome"], "label": 2},
    {"q": LONG + "Why", "choices": ["a", "b", "c"], "label": 1},
    {"q": "A", "choices": ["the", "there then", "answer"], "label": 2},
]
MEANS = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "brier_score")


def drawn_text(doc: Any, results: list[str]) -> dict[str, float]:
    """Figures that tell one drawn text from another."""
    return {"letters": len(results[0]), "checksum": zlib.crc32(results[0].encode())}


@pytest.fixture(scope="module", autouse=True)
def quick() -> Any:
    """Without the harness's report on the machine, which takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm_eval.evaluator.add_env_info", lambda _: None)
        yield


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """A task of each of the harness's four kinds, on the same six documents."""
    folder = tmp_path_factory.mktemp("tasks")
    data = {"test": str(write_lines(folder / "docs.jsonl", DOCS))}
    shots = [{"q": f"Where is {c}?", "choices": [c, "no"], "label": 0} for c in ("Rome", "空", "x")]
    data["train"] = str(write_lines(folder / "shots.jsonl", shots))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": data},
        "test_split": "test",
        "fewshot_split": "train",
        "doc_to_text": "{{q}}",
    }

    def means(*names: str) -> dict[str, Any]:
        return {
            "metric_list": [
                {"metric": n, "higher_is_better": True}
                | ({} if n == "brier_score" else {"aggregation": "mean"})
                for n in names
            ]
        }

    chosen = "{{choices[label]}}"
    return [
        {
            **common,
            "task": "choose",
            "output_type": "multiple_choice",
            "doc_to_target": "label",
            "doc_to_choice": "choices",
            **means(*MEANS),
        },
        {
            **common,
            "task": "say",
            "output_type": "loglikelihood",
            "doc_to_target": f" {chosen}",
            "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
        },
        {
            **common,
            "task": "read",
            "output_type": "loglikelihood_rolling",
            "doc_to_target": "{{q}} " + chosen,
            "metric_list": [
                {"metric": n} for n in ("word_perplexity", "byte_perplexity", "bits_per_byte")
            ],
        },
        {
            **common,
            "task": "write",
            "output_type": "generate_until",
            "doc_to_target": chosen,
            "generation_kwargs": {"until": ["\n", "e"], "max_gen_toks": 12},
            "process_results": drawn_text,
            **means("letters", "checksum"),
        },
    ]


def theirs(
    model: Any, tokenizer: Any, tasks: list[Any], batch_size: int = 1, **settings: Any
) -> Any:
    """The harness's figures."""
    lm = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size)
    manager = TaskManager(include_defaults=False)
    out: Any = lm_eval.simple_evaluate(
        model=lm,
        tasks=tasks,
        task_manager=manager,
        bootstrap_iters=0,
        log_samples=False,
        **settings,
    )
    return out["results"]


def ours(model: Any, tokenizer: Any, tasks: list[Any], **settings: Any) -> tuple[Any, list[str]]:
    said: list[str] = []
    return bench_tasks(model, tokenizer, tasks, say=said.append, **settings), said


def same(found: Any, results: Any) -> None:
    """Every figure of the harness, to the last bit."""
    assert set(found) == set(results)
    for task, metrics in found.items():
        wanted = {
            k.partition(",")[0]: v
            for k, v in results[task].items()
            if "," in k and "stderr" not in k
        }
        assert metrics == wanted


@pytest.mark.parametrize("bos", [False, True])
def test_every_figure_is_the_harness_s(
    held: Any, tasks: Any, tokenizer: Any, with_bos: Any, bos: bool
) -> None:
    """Choices, log-probs, whole texts and drawn answers: prompts over the context, empty ones, equal
    choices, bytes and blanks among them."""
    tok = with_bos if bos else tokenizer
    results = theirs(held, tok, tasks)
    found, said = ours(held, tok, tasks)
    same(found, results)
    assert set(MEANS) == set(found["choose"])
    cut = {line.partition(":")[0]: line for line in said}
    assert set(cut) == {"choose", "say", "write"}
    assert "6 of 36 requests are longer than the model's context of 48 tokens" in cut["choose"]
    assert "2 of 6 requests" in cut["say"]


@pytest.fixture(scope="module")
def bare(held: Any, tasks: Any, tokenizer: Any) -> Any:
    return ours(held, tokenizer, tasks)[0]


@pytest.mark.parametrize(("kind", "alpha"), [("vector", 0.0), ("vector", 1.5), ("head", -2.0)])
def test_with_a_dial(
    held: Any, tasks: Any, tokenizer: Any, bare: Any, kind: str, alpha: float
) -> None:
    """As the harness finds it on the dialled model; at 0 as on the bare one."""
    dial = vector(held, sites=(0, 1)) if kind == "vector" else head(held)
    with dial(held, alpha) if alpha else nullcontext():
        results = theirs(held, tokenizer, tasks)
    found, _ = ours(held, tokenizer, tasks, dial=dial, alpha=alpha)
    same(found, results)
    assert (found == bare) == (alpha == 0)


@pytest.mark.parametrize(
    "settings",
    [
        {"fewshot": 2},
        {"apply_chat_template": True},
        {"apply_chat_template": True, "fewshot": 2},
        {"apply_chat_template": True, "fewshot": 2, "fewshot_as_multiturn": False},
        {"apply_chat_template": True, "system_instruction": "Sag nur  eines: 空."},
        {"system_instruction": "Be short."},
        {"batch_size": 3},
        {"limit": 2},
    ],
    ids=str,
)
def test_flags_of_the_harness(tiny: Any, tasks: Any, tokenizer: Any, settings: Any) -> None:
    model, given = tiny("llama"), dict(settings)
    if "fewshot" in given:
        given["num_fewshot"] = given.pop("fewshot")
    given.setdefault("fewshot_as_multiturn", bool(given.get("apply_chat_template")))
    results = theirs(model, tokenizer, tasks, **given)
    found, _ = ours(model, tokenizer, tasks, **settings)
    same(found, results)


def test_greedy_metrics_are_not_always_zero(tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    """Continuations that the model itself would write count as right."""
    model, docs = tiny("llama"), []
    for i in range(200):
        prompt = f"Number {i} is"
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        with torch.no_grad():
            best = int(model(input_ids=ids).logits[0, -1].argmax())
        text = tokenizer.decode([best])
        if tokenizer(prompt + text)["input_ids"] == [*ids[0].tolist(), best] and text.strip():
            docs.append({"q": prompt, "a": text})
    docs = [*docs[:3], {"q": docs[3]["q"], "a": docs[3]["a"] + "zz"}]
    task = {
        "task": "greedy",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(write_lines(tmp_path / "g.jsonl", docs))}},
        "test_split": "test",
        "output_type": "loglikelihood",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{a}}",
        "metric_list": [{"metric": "acc"}, {"metric": "perplexity"}],
    }
    found, _ = ours(model, tokenizer, [task])
    same(found, theirs(model, tokenizer, [task]))
    assert found["greedy"]["acc"] == 0.75


def test_equal_choices_have_equal_scores(tiny: Any, tokenizer: Any) -> None:
    """Among rewards and sums too, whatever batch they come in."""
    model, reward = tiny("llama"), drawn(aggregate="mean")
    q = tokenizer("Two and two are")["input_ids"]
    requests = [(("", ""), q, tokenizer(f" {w}")["input_ids"]) for w in ("four", "Rome is", "four")]
    for read_out in ("logprob", "reward", "sum"):
        lm = _model_class()(model, tokenizer, None if read_out == "logprob" else reward, read_out)
        (a, _), (b, _), (c, _) = lm._loglikelihood_tokens(requests)
        assert a == c != b


@pytest.mark.parametrize("positions", ["completion", "prompt", "last"])
def test_dials_that_ask_where_prompts_end(held: Any, tokenizer: Any, positions: Any) -> None:
    """A pass over prompt and continuation is told where the prompt ends, cut prompts included."""
    dial = vector(held, sites=(0, 1), positions=positions)
    lm = _model_class()(held, tokenizer)
    texts = [(d["q"], c) for d in DOCS for c in d["choices"]]
    requests = [((q, c), *lm._encode_pair(q, c)) for q, c in texts]
    with dial(held, 2.0):
        found = [value for value, _ in lm._loglikelihood_tokens(requests)]
    for (_, context, continuation), value in zip(requests, found, strict=True):
        ids = (context + continuation)[-CONTEXT - 1 :]
        n = len(ids) - len(continuation)
        with torch.no_grad(), dial(held, 2.0), prompts([n]):
            logp = held(input_ids=torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)
        by_hand = logp[n - 1 :].gather(-1, torch.tensor(continuation)[:, None]).sum()
        assert value == pytest.approx(float(by_hand), abs=1e-5)
    bare = [value for value, _ in lm._loglikelihood_tokens(requests)]
    assert np.abs(np.subtract(bare, found)).min() > 1e-4


def test_the_packed_readings_agree(tiny: Any, tokenizer: Any) -> None:
    """What `evaluate` reads for the same tokens."""
    model, lm = tiny("llama"), _model_class()(tiny("llama"), tokenizer)
    context = tokenizer("The capital of Italy is")["input_ids"]
    answers = tuple(tuple(tokenizer(f" {w}")["input_ids"]) for w in ("Rome", "blue", "everything"))
    found = [
        v for v, _ in lm._loglikelihood_tokens([(("", ""), context, list(a)) for a in answers])
    ]
    row = Row("0", tuple(context), tuple((*a, 0) for a in answers), (), ())
    _, read = rewards_of(model, None, Encoded((row,), 0, 0, "x"), logps=True, count_end=False)
    assert read.logps is not None
    np.testing.assert_allclose(found, read.logps, atol=1e-4)


def test_rewards_of_prompts_over_the_context(held: Any, tasks: Any, tokenizer: Any) -> None:
    """They are cut so that the end has a place, each choice by itself."""
    reward = drawn(aggregate="mean")
    found, said = ours(held, tokenizer, tasks[:1], reward=reward, read_out="reward")
    assert set(found["choose"]) == {"acc"}
    assert any("choose: 6 of 36" in line for line in said)
    right = 0
    for doc in DOCS:
        values = []
        for choice in doc["choices"]:
            lm = _model_class()(held, tokenizer)
            context, answer = lm._encode_pair(doc["q"], f" {choice}")
            context = context[-(CONTEXT - len(answer) - 1) :]
            row = Row("0", tuple(context), ((*answer, 0),), (), ())
            values.append(float(rewards_of(held, reward, Encoded((row,), 0, 0, "x"))[0]))
        right += int(np.argmax(values)) == doc["label"]
    assert found["choose"]["acc"] == pytest.approx(right / len(DOCS))


def test_the_model_and_the_tokenizer_stay_as_they_are(tasks: Any, tokenizer: Any) -> None:
    """Modes, padding token, and a head that was given weights of its own in memory: the harness
    alone would tie it again."""
    model, tok = short("llama"), copy.deepcopy(tokenizer)
    tok.pad_token = None
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight * 2)
    model.train()
    before = [p.clone() for p in model.parameters()]
    found, _ = ours(model, tok, tasks[:1])
    assert model.training
    assert tok.pad_token is None
    assert "tie_weights" not in vars(model)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert found == ours(model.eval(), tok, tasks[:1])[0]


def test_a_system_text_that_the_template_does_not_show(
    tiny: Any, tasks: Any, tokenizer: Any
) -> None:
    deaf = copy.deepcopy(tokenizer)
    deaf.chat_template = "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"
    chat = {"apply_chat_template": True, "system_instruction": "Be short."}
    found, said = ours(tiny("llama"), deaf, tasks[:1], **chat)
    assert ["missing from 6 prompts" in line for line in said] == [True]
    refusing = copy.deepcopy(tokenizer)
    refusing.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    again, said = ours(tiny("llama"), refusing, tasks[:1], **chat)
    assert (again, len(said)) == (found, 1)
    # Folded, it stands in every prompt, and nothing is to be said.
    shown = copy.deepcopy(tokenizer)
    blank = "{{ '\\n\\n' if m.role == 'system' else '' }}"
    shown.chat_template = "{% for m in messages %}{{ m.content }}" + blank + "{% endfor %}"
    truth, _ = ours(tiny("llama"), shown, tasks[:1], **chat)
    fold = Rendering(system_role="fold")
    for made in (deaf, refusing):
        folded, said = ours(tiny("llama"), made, tasks[:1], rendering=fold, **chat)
        assert (folded, said) == (truth, [])
    assert truth != found


def test_filters_have_names(tiny: Any, tasks: Any, tokenizer: Any) -> None:
    """Two filters of one metric are two figures."""
    filters = [
        {"name": "whole", "filter": [{"function": "take_first"}]},
        {"name": "upper", "filter": [{"function": "uppercase"}, {"function": "take_first"}]},
    ]
    found, _ = ours(tiny("llama"), tokenizer, [tasks[3] | {"filter_list": filters}])
    assert set(found["write"]) == {
        f"{m},{f}" for m in ("letters", "checksum") for f in ("whole", "upper")
    }
    assert found["write"]["checksum,whole"] != found["write"]["checksum,upper"]


def test_what_cannot_be_asked(held: Any, tasks: Any, tokenizer: Any, tmp_path: Path) -> None:
    choose, say, _, write = tasks
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    empty = {**say, "doc_to_target": "{{''}}"}
    endless = {**say, "doc_to_target": " {{q}} {{q}}"}
    long = {**write, "generation_kwargs": {"until": ["e"], "max_gen_toks": CONTEXT}}
    blank = {**say, "doc_to_text": "{{'  '}}"}
    nowhere = {**say, "dataset_path": "nobody/has_this", "dataset_kwargs": None}
    reward = {"reward": drawn(aggregate="mean"), "read_out": "reward"}
    for task, tok, settings, kind, message in (
        (empty, tokenizer, {}, DataError, "say: a continuation is empty"),
        (endless, tokenizer, {}, DataError, "tokens; expected 1 to 48"),
        (blank, tokenizer, {}, DataError, "say: a prompt is nothing but blanks"),
        (long, tokenizer, {}, ConfigError, "48 tokens are to be drawn"),
        (nowhere, tokenizer, {}, ConfigError, "task say: cannot be loaded"),
        (
            say,
            tokenizer,
            reward,
            ConfigError,
            "a reward ranks the choices of multiple_choice alone",
        ),
        (write, tokenizer, reward, ConfigError, "type generate_until"),
        (choose, bare, {"apply_chat_template": True}, ModelError, "no chat template"),
        (choose, tokenizer, {"fewshot_as_multiturn": True}, ConfigError, "apply_chat_template"),
        (choose, tokenizer, {"limit": 0}, ConfigError, "limit is 0"),
        (choose, tokenizer, {"batch_size": 0}, ConfigError, "batch_size is 0"),
        (choose, tokenizer, {"fewshot": -1}, ConfigError, "fewshot is -1"),
    ):
        with pytest.raises(kind, match=message):
            bench_tasks(held, tok, [task], **settings)
    with pytest.raises(ConfigError, match=r"nope\.yaml: no such file"):
        check_tasks([str(tmp_path / "nope.yaml")])


def test_tasks_of_files(tiny: Any, tokenizer: Any, tmp_path: Path) -> None:
    """A task's own YAML file; examples of a local file are never the question itself."""
    lines = write_lines(tmp_path / "small.jsonl", QUESTIONS)
    config = check_tasks([f"choices:{lines}"])[0]
    import yaml

    (tmp_path / "own.yaml").write_text(yaml.safe_dump({**config, "task": "own"}))
    found, _ = ours(tiny("llama"), tokenizer, [str(tmp_path / "own.yaml"), f"choices:{lines}"])
    assert found["own"] == found["small"]
    task = load_tasks([config])["tasks"]["small"]
    task.set_config(key="num_fewshot", value=3)
    task.set_fewshot_seed(seed=1)
    task.build_all_requests(rank=0, world_size=1)
    for instance in task.instances:
        assert instance.args[0].count(instance.doc["question"]) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_figures_of_no_numbers_are_refused(
    tiny: Any, tasks: Any, task: str, tokenizer: Any, value: float
) -> None:
    """The harness takes the first choice, or the first token, of NaNs; one choice that overflows is
    enough to make its question's answer mean nothing."""
    model = tiny("llama", fresh=True)
    with torch.no_grad():
        model.lm_head.weight[:, 3] = value
    for one in (task, *tasks):
        with pytest.raises(ModelError, match="no numbers"):
            bench_tasks(model, tokenizer, [one], limit=2)
    sick = drawn(aggregate="mean")
    for p in sick.weights.values():
        p.data[:] = value
    for read_out in ("reward", "sum"):
        with pytest.raises(ModelError, match="rewards that are no numbers"):
            bench_tasks(tiny("llama"), tokenizer, [task], reward=sick, read_out=read_out)
