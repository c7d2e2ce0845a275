"""Every chat template of `templates.py` through every verb that renders: the very ids that reach the
model, what is scored and pooled of them, and the ids that end an answer, against each case's strings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_rewards import drawn

from helpers_study import trimtab, write_lines
from templates import CASES, SPECIAL, Case, ids, tokenizer, user
from trimtab.batching.spans import BARE
from trimtab.compat.repeng import ControlVector, make_dataset
from trimtab.dials import VectorDial
from trimtab.evaluation import Sampling, generate
from trimtab.evaluation.decoding import generate_args, generate_genarm
from trimtab.evaluation.explain import explain
from trimtab.evaluation.harness import _model_class, bench_tasks
from trimtab.evaluation.judge import compare_answers, reward_judge
from trimtab.evaluation.rewards import Drawing, draw, score_candidates
from trimtab.pairs import Pair, PairSet
from trimtab.pairs.prompts import Prompt
from trimtab.readings import collect
from trimtab.rendering import Rendering
from trimtab.store import Store
from trimtab.studies.steering import trait as steering_trait
from trimtab.studies.steering.plan import Dosing
from trimtab.studies.steering.trait import Trait
from trimtab.study import evaluate
from trimtab.study.cells import Host
from trimtab.training import fit
from trimtab.training.condition import fit_condition

ASKS = ("Why?", "How?", "What?", "Where?")
SHORT, DRAWN = Sampling(max_new_tokens=2), Sampling(max_new_tokens=3, temperature=1.0)
each = pytest.mark.parametrize("name", CASES)
asked_once = pytest.mark.parametrize("name", [n for n, c in CASES.items() if len(c.chat) == 1])


@pytest.fixture(scope="module")
def model(tiny: Any) -> Any:
    return tiny("llama")


@contextmanager
def reached(model: Any) -> Iterator[list[tuple[int, ...]]]:
    """The token rows that reach the model's embedding, proofs left out."""
    seen: list[tuple[int, ...]] = []

    def look(_: Any, given: Any) -> None:
        if not BARE.get():
            seen.extend(tuple(row) for row in given[0].tolist())

    look.__module__ = "trimtab"  # else nothing is kept of a model that a stranger looks into
    handle = model.get_input_embeddings().register_forward_pre_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


def unpadded(seen: list[tuple[int, ...]], wanted: list[tuple[int, ...]]) -> set[tuple[int, ...]]:
    """What was seen, each row without what fills it up behind one that is wanted, and behind what all
    share, where that came first."""
    shared, *rest = seen
    if rest and all(w[: len(shared)] == shared != w for w in wanted):
        seen = [shared + row for row in rest]
    return {
        next((w for w in wanted if row[: len(w)] == w and len({*row[len(w) :]}) < 2), row)
        for row in seen
    }


def begins(row: tuple[int, ...], text: str) -> bool:
    return row[: len(ids(text))] == ids(text)


def asking(case: Case, ask: str) -> tuple[Any, ...]:
    """The case's chat with another question."""
    return tuple({**m, "content": m["content"].replace("Why?", ask)} for m in case.chat)


def saying(case: Case, text: str) -> str:
    """What is scored of another answer."""
    return case.scored.replace("Because.", text)


def pairs_of(case: Case) -> PairSet:
    no = ({"role": "assistant", "content": case.answer.replace("Because.", "No.")},)
    made = [Pair(asking(case, a), case.reply, no, a, source=f"f.jsonl:{a}") for a in ASKS]
    return PairSet(made, "f")


def rows_of(case: Case) -> list[tuple[int, ...]]:
    """The packed rows of those pairs."""
    text = case.scored + saying(case, "No.")
    return [ids(case.head.replace("Why?", ask) + text) for ask in ASKS]


@torch.no_grad()
def by_hand(model: Any, head: str, answer: str) -> tuple[float, int]:
    """Log-prob of an answer's tokens behind a prompt, and how many there are."""
    whole, n = torch.tensor([ids(head + answer)]), len(ids(head))
    logps = model(input_ids=whole).logits[0, n - 1 : -1].log_softmax(-1)
    return float(logps.gather(-1, whole[0, n:, None]).sum()), whole.shape[1] - n


def style_of(case: Case) -> dict[str, Any]:
    return {"prompt_style": "chat", "rendering": Rendering(**case.settings)}


def known(case: Case, dial: Any, method: str = "mean") -> Any:
    """A dial that says that it was fitted behind the case's template."""
    dial.info.method = method
    dial.info.config = {"read_as": "chat", "rendering": Rendering(**case.settings).record()}
    return dial


def lean() -> VectorDial:
    return VectorDial({1: torch.randn(32, generator=torch.Generator().manual_seed(0))}, {1: 3.0})


def ends_of(model: Any, case: Case) -> set[int]:
    """What ends an answer: the checkpoint's id, the tokenizer's and the template's."""
    own = {model.generation_config.eos_token_id, SPECIAL.index(case.eos)}
    return own | set(ids(case.end.strip())[-1:])


# ---- what generates ------------------------------------------------------------------------------


@each
def test_generate(name: str, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    case, given = CASES[name], []
    inner, made = type(model).generate, case.tokenizer

    def spy(self: Any, **kwargs: Any) -> Any:
        if not BARE.get():
            given.append(kwargs["generation_config"])
        return inner(self, **kwargs)

    monkeypatch.setattr(type(model), "generate", spy)
    how = {"sampling": SHORT, "rendering": Rendering(**case.settings)}
    system = [m["content"] for m in case.chat if m["role"] == "system"]
    asked: list[Any] = [case.chat, [case.chat], [list(case.chat)], Prompt(case.chat)]
    if system:  # as --system puts it
        asked.append(Prompt(case.chat[1:]).with_system(system[0]))
        asked.append(Prompt("Why?", system=system[0]))
    elif len(case.chat) == 1:
        asked.append("Why?")
    for prompt in asked:
        with reached(model) as seen:
            generate(model, made, prompt, **how)
        assert seen[0] == ids(case.head)
        assert set(given[-1].eos_token_id) == ends_of(model, case)
    with reached(model) as seen:  # told nothing, a dial says it
        generate(model, made, case.chat, known(case, lean()), sampling=SHORT)
    assert seen[0] == ids(case.head)


@each
def test_what_decodes_by_itself(name: str, model: Any) -> None:
    """explain, genarm and args are given the prompt; explain stops at the template's end."""
    case = CASES[name]
    made, dial, reward = case.tokenizer, known(case, lean()), known(case, drawn())
    for run in (
        lambda: explain(model, made, dial, Prompt(case.chat), steps=2),
        lambda: generate_genarm(model, made, [case.chat], dial, sampling=SHORT),
        lambda: generate_args(model, made, [case.chat], reward, sampling=SHORT, k=3),
    ):
        with reached(model) as seen:
            run()
        assert seen[0] == ids(case.head)


@each
def test_candidates(name: str, model: Any) -> None:
    """They are drawn behind the prompt, and rewarded at the mark that ended answers in training."""
    case = CASES[name]
    reward = known(case, drawn(aggregate="marker", sites=(1,)), "dph")
    with reached(model) as seen:
        found = draw(model, case.tokenizer, Prompt(case.chat), reward, Drawing(2), sampling=DRAWN)
    assert seen[0] == ids(case.head)
    mark = ids(case.end)[-1] if case.end else SPECIAL.index(case.eos)
    assert {c.tokens[-1] for c in found} == {mark}
    for c in found:
        whole = torch.tensor([[*ids(case.head), *c.tokens]])
        h = model(input_ids=whole, output_hidden_states=True).hidden_states
        assert c.reward == pytest.approx(at(reward, h, -1), abs=1e-3)


def at(reward: Any, hidden: Any, place: int) -> float:
    """A reward of the state at one place, from plain hidden states."""
    states = torch.stack([hidden[site + 1][0, place] for site in reward.sites])
    one = torch.ones(1, 1, dtype=torch.bool)
    return float(reward.rewards(reward.aggregated(states[None, None], one, one))[0, 0])


# ---- what scores ---------------------------------------------------------------------------------


@each
def test_evaluate(name: str, model: Any, store: Any) -> None:
    case = CASES[name]
    with reached(model) as seen:
        lines = evaluate(model, case.tokenizer, None, pairs_of(case), store=store, **style_of(case))
    assert unpadded(seen, rows_of(case)) == set(rows_of(case))
    margins = []
    for ask in ASKS:
        head = case.head.replace("Why?", ask)
        (yes, n), (no, k) = (by_hand(model, head, saying(case, t)) for t in ("Because.", "No."))
        margins.append(yes / n - no / k)
    (margin,) = (line["value"] for line in lines if line["metric"] == "margin")
    assert margin == pytest.approx(np.mean(margins), abs=2e-4)


@each
def test_what_is_stored(name: str, model: Any) -> None:
    """`cache` and the directions read the mean of the content's states, and those of the end's."""
    from trimtab.batching import encode

    case = CASES[name]
    encoded = encode(pairs_of(case), case.tokenizer, rendering=Rendering(**case.settings))
    found = collect(model, encoded, sites=[1], pool="completion")
    whole = ids(case.head + case.scored)
    start = len(ids(case.head + case.first))
    stop = start + len(ids(case.content))
    row = next(n for n, r in enumerate(encoded.rows) if r.item == "Why?")
    h = model(input_ids=torch.tensor([whole]), output_hidden_states=True).hidden_states[2][0]
    answer = encoded.answer_offsets[row] + encoded.rows[row].pairs[0][0]
    torch.testing.assert_close(found.states[1][answer], h[start:stop].mean(0), rtol=1e-4, atol=1e-4)


@each
def test_fit(name: str, model: Any, tmp_path: Any) -> None:
    """A direction, an alignment head and a reward head see the same rows as `evaluate`, and say in
    which format they are to be used."""
    case = CASES[name]
    for method in ("mean", "iav", "dph") if name in ("channels", "system_folded") else ("mean",):
        with reached(model) as seen:
            own = Store(tmp_path / method)
            dial = fit(method, model, case.tokenizer, pairs_of(case), store=own, **style_of(case))
        assert unpadded(seen, rows_of(case)) == set(rows_of(case))
        with reached(model) as seen:
            if dial.kind == "reward":
                judge = reward_judge(model, case.tokenizer, dial)  # type: ignore[arg-type]
                if len(case.chat) == 1:
                    judge("Why?", "Because.", "No.")
            else:
                generate(model, case.tokenizer, [case.chat], dial, sampling=SHORT)
        assert all(begins(row, case.head) for row in seen[:1])


@asked_once
def test_conditions(name: str, model: Any) -> None:
    case = CASES[name]
    others = [f"Who {n}?" for n in "abcd"]
    with reached(model) as seen:
        found = fit_condition(
            model, case.tokenizer, ASKS, others, sites="0", over="last", **style_of(case)
        )
    wanted = [ids(case.head.replace("Why?", ask)) for ask in (*ASKS, *others)]
    assert unpadded(seen, wanted) == set(wanted)
    dial = VectorDial({1: torch.ones(32)}, {1: 3.0}, condition=found.condition)
    with reached(model) as seen:
        generate(model, case.tokenizer, "Why?", dial, sampling=SHORT)
    assert seen[0] == ids(case.head)


# ---- what judges ---------------------------------------------------------------------------------


@asked_once
def test_judge(name: str, model: Any) -> None:
    """Answers of two files: both behind the prompt that the reward was learned behind, ended alike."""
    from trimtab.evaluation.answers import Answer

    case = CASES[name]
    reward = known(case, drawn(aggregate="marker", sites=(1,)), "dph")
    sides = [
        [Answer("Why?", case.answer.replace("Because.", t), "me")] for t in ("Because.", "No.")
    ]
    with reached(model) as seen:
        (found,) = compare_answers(*sides, reward_judge(model, case.tokenizer, reward))
    case = replace(case, content=case.content.strip())  # as every answer that is given as text
    yes, no = saying(case, "Because."), saying(case, "No.")
    assert set(seen) == {ids(case.head + yes + no), ids(case.head + no + yes)}
    rewards = []
    for text in ("Because.", "No."):
        whole = ids(case.head + saying(case, text))
        place = len(whole) - len(ids(case.trail)) - 1
        h = model(input_ids=torch.tensor([whole]), output_hidden_states=True).hidden_states
        rewards.append(at(reward, h, place))
    assert found.win == float(rewards[0] > rewards[1])
    given = score_candidates(model, case.tokenizer, reward, "Why?", [s[0].text for s in sides])
    assert given.tolist() == pytest.approx(rewards, abs=1e-3)


# ---- doses, other tools, the command line ----------------------------------------------------------

LED = {
    "chatml_system": "<|im_start|>system\nBe brief.<|im_end|>\n",
    "system_dropped": "<|im_start|>system\nBe brief.<|im_end|>\n",
    "system_last": "Be brief.\n\n",
    "system_folded": "Be brief.\n\n",
}
"""What a system text adds to a prompt."""


@pytest.mark.parametrize("name", LED)
def test_dose(name: str, model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The persona as a prompt: questions, damage and answers stand behind one and the same rendering."""
    case, passages = CASES[name], ("The sky is blue.", "Water boils.")
    monkeypatch.setattr(steering_trait, "NEUTRAL", passages)
    dosing = Dosing(rendering=Rendering(**case.settings), passages=2, prompts=1, new_tokens=2)
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))  # what was read is not read again
    stage = Trait(replace(dosing, traits=("honesty",)), tmp_path, Host())
    stage.loaded = (model, case.tokenizer)
    stage.personas = {1.0: "Be brief.", -1.0: "Be long."}
    stage.test = PairSet([replace(p, prompt=p.prompt[1:]) for p in pairs_of(case)][:1], "f")
    stage.questions = [(user("Who?"),)]
    with reached(model) as seen:
        found = stage._prompt()
    wanted: dict[float, list[tuple[int, ...]]] = {-1: [], 0: [], 1: []}
    for sign, system in ((-1, "Be long."), (0, ""), (1, "Be brief.")):
        led = LED[name].replace("Be brief.", system) if system else ""
        head = case.head.replace(LED[name], led)
        request = head.replace("Why?", steering_trait.REQUEST["content"])
        wanted[sign] = [
            ids(head + case.scored + saying(case, "No.")),
            ids(head.replace("Why?", "Who?")),
            *(ids(request + case.first + text) for text in passages),
        ]
    assert {row for row in seen if len(row) > 1} == {
        row for rows in wanted.values() for row in rows
    }
    for place, system in enumerate(("Be long.", "", "Be brief.")):
        head = case.head.replace(
            LED[name], LED[name].replace("Be brief.", system) if system else ""
        )
        (yes, n), (no, k) = (by_hand(model, head, saying(case, t)) for t in ("Because.", "No."))
        assert found["ratio"][place] == [pytest.approx(yes / n - no / k, abs=2e-4)]


@asked_once
def test_compat_repeng(name: str, model: Any, store: Any) -> None:
    case = CASES[name]
    if case.settings:
        return  # these are a run's, which repeng does not know
    made = case.tokenizer
    entries = make_dataset("{persona} Why?", ["kind", "good"], ["cruel", "bad"], ["So"], made)
    found = ControlVector.train(model, made, entries, method="mean", store=store)
    header = case.first if name == "channels" else ""

    def state(who: str) -> torch.Tensor:
        whole = ids(case.head.replace("Why?", f"{who} Why?") + header + "So")
        out = model(input_ids=torch.tensor([whole]), output_hidden_states=True)
        return out.hidden_states[2][0, -1]

    wanted = state("kind") + state("good") - state("cruel") - state("bad")
    direction = torch.from_numpy(found.directions[1])
    torch.testing.assert_close(direction, wanted / wanted.norm(), rtol=1e-3, atol=1e-4)


def bench(model: Any, made: Any, tmp_path: Any, **how: Any) -> set[tuple[int, ...]]:
    """The rows that a task of one question makes."""
    file = write_lines(
        tmp_path / "t.jsonl", [{"question": "why", "choices": ["Yes", "No"], "label": 0}]
    )
    with reached(model) as seen:
        bench_tasks(model, made, [f"choices:{file}"], **how)
    return set(seen)


SAME = ("thinking_inserted", "thinking_given", "strips", "keeps_blanks", "eos_newline", "no_end")
"""Cases whose prompts are those of others."""


@pytest.mark.parametrize(
    "name", [n for n, c in CASES.items() if (len(c.chat) == 1 or n in LED) and n not in SAME]
)
def test_bench_tasks(name: str, model: Any, tmp_path: Any) -> None:
    """Choices stand behind the prompt."""
    case = CASES[name]
    seen = bench(
        model,
        case.tokenizer,
        tmp_path,
        apply_chat_template=True,
        system_instruction="Be brief." if name in LED else None,
        rendering=Rendering(**case.settings),
    )
    head = case.head.replace("Why?", "Question: why\nAnswer:")
    assert seen == {ids(head + word)[:-1] for word in ("Yes", "No")}


@pytest.mark.parametrize("name", ["strips", "no_end", "channels"])
def test_rewards_of_benchmarks_are_read_at_the_end_of_training(
    name: str, model: Any, tmp_path: Any
) -> None:
    """B5: behind the template the mark is its own, not EOS."""
    case = CASES[name]
    made = tokenizer(case.template, "<eos>")
    how = {"reward": drawn(), "read_out": "reward", "apply_chat_template": True}
    seen = bench(model, made, tmp_path, **how)
    head = case.head.replace("Why?", "Question: why\nAnswer:")
    end, blank = case.end or "<eos>", head[len(head.rstrip()) :]  # which the harness moves
    assert seen == {ids(f"{head.rstrip()}{blank}Yes{end}{blank}No{end}")}


@pytest.mark.parametrize("adds", ["bos", "eos", "bos eos"])
def test_bench_tasks_of_a_tokenizer_that_adds(adds: str, model: Any, tmp_path: Any) -> None:
    """Choices never stand behind an EOS. A BOS is put, as by the harness, where there is none yet."""
    bos, asked = "<s>" if "bos" in adds else "", "Question: why\nAnswer:"
    for name, before in (("chatml", bos), ("system_last", "")):
        case = CASES[name]
        chat = {"apply_chat_template": True}
        made = tokenizer(case.template, case.eos, adds=adds)
        text = before + case.head.replace("Be brief.\n\n", "").replace("Why?", asked)
        seen = bench(model, made, tmp_path, **chat)
        assert seen == {ids(text + word)[:-1] for word in ("Yes", "No")}
    seen = bench(model, made, tmp_path)
    assert seen == {ids(f"{bos}{asked} {word}")[:-1] for word in ("Yes", "No")}
    lm = _model_class()(model, made, batch_size=2)
    found, mask = lm.tok_batch_encode(["Why?", "Who is it?"])
    rows = [tuple(row[m.bool()].tolist()) for row, m in zip(found, mask, strict=True)]
    assert rows == [ids(bos + "Why?"), ids(bos + "Who is it?")]
    assert lm.tok_batch_encode(["Why?"], left_truncate_len=3)[0].tolist() == [list(ids("hy?"))]


@pytest.mark.parametrize("name", ["chatml_system", "system_folded", "setting", "date"])
def test_the_command_line(name: str, model: Any, tmp_path: Any, monkeypatch: Any) -> None:
    """Flags say what the Python calls are told: `generate --system`, `cache`, `evaluate`."""
    case, made = CASES[name], CASES[name].tokenizer
    monkeypatch.setattr("trimtab.models.load", lambda *_, **__: (model, made))
    monkeypatch.setattr("trimtab.cli.flags.check_model", lambda *_: None)
    flags: list[object] = ["--model", "m"]
    if "system_role" in case.settings:
        flags += ["--system-role", "fold"]
    if "template_kwargs" in case.settings:
        flags += ["--template-kwargs", json.dumps(case.settings["template_kwargs"])]
    system = ["--system", "Be brief."] if case.chat[0]["role"] == "system" else []
    with reached(model) as seen:
        done = trimtab("generate", *flags, "--prompt", "Why?", *system, "--max-new-tokens", "1")
    assert done.code == 0, done.err
    assert seen[0] == ids(case.head)
    row = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
    row |= {"system": "Be brief."} if system else {}
    spec = f"jsonl:{write_lines(tmp_path / 'f.jsonl', [row])}"
    chat = ["--prompt-style", "chat", "--quiet"]
    for words in (
        ["cache", *flags, *chat, "--pairs", spec, "--out", tmp_path / "store"],
        ["evaluate", *flags, *chat, "--pairs", f"a={spec}", "--out", tmp_path / "eval"],
    ):
        monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / str(words[0])))
        with reached(model) as seen:
            done = trimtab(*words)
        assert done.code == 0, done.err
        wanted = ids(case.head + case.scored + saying(case, "No."))
        assert unpadded(seen, [wanted]) == {wanted}
