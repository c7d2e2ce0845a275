"""What heads cost: tokens a second of each kind, epochs from stored states beside epochs with the
backbone in the loop, what the store takes, candidates in one pass."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from bench import data, results

SPEC = "genies:truthful_qa/train"
PROMPT = "What happens to you if you swallow chewing gum by accident?"
CANDIDATES = 8


def in_turn(work: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each unit by round, the units in turn, forwards and backwards; a first round warms
    up and is not counted."""
    found: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds + 1):
        for name in work if number % 2 else reversed(work):
            start = time.perf_counter()
            work[name]()
            if number:
                found[name].append(time.perf_counter() - start)
    return found


def ratio(of: Sequence[float], over: Sequence[float]) -> float:
    """Median over rounds of how many times longer `of` took than `over`."""
    return median(a / b for a, b in zip(of, over, strict=True))


# ---- decoding -----------------------------------------------------------------------------------


def run_decoding(repeats: int, quick: bool) -> results.Found:
    """Tokens a second: a low-rank head, merged, a full one, GenARM's pair, over the bare model's."""
    import torch

    from trimtab import models
    from trimtab.dials import AdapterDial, LogitsDial
    from trimtab.dials.adapter import linear_modules
    from trimtab.evaluation.decoding import decode, generate_genarm
    from trimtab.evaluation.generation import Sampling

    model, tokenizer = models.load(data.MODEL, dtype="float32")
    ids = tokenizer(PROMPT)["input_ids"]
    count = 3 if quick else 64
    draw = torch.Generator().manual_seed(0)

    def head(**options: Any) -> LogitsDial:
        dial = LogitsDial.for_model(model, generator=draw, **options)
        dial.B.data = 1e-3 * torch.randn(dial.B.shape, generator=draw)
        return dial.eval()

    low, small, full = head(), head(rank=16), head(shape="full")
    arm = AdapterDial(linear_modules(model), rank=data.RANK, generator=draw).eval()
    merged = low.merged(model, 1.0).eval()
    how: Any = {"sampling": Sampling(max_new_tokens=count), "prompt_style": "plain", "ends": ()}

    def with_dial(dial: LogitsDial) -> None:
        with dial(model, 1.0):
            decode(model, ids, count)

    seconds = in_turn(
        {
            "base": lambda: decode(model, ids, count),
            "low_rank": lambda: with_dial(low),
            "rank_16": lambda: with_dial(small),
            "full": lambda: with_dial(full),
            "merged": lambda: decode(merged, ids, count),
            "genarm": lambda: generate_genarm(model, tokenizer, PROMPT, arm, 1.0, **how),
        },
        2 if quick else 2 * repeats + 1,
    )
    base = seconds["base"]
    found: results.Found = {}
    for name in ("low_rank", "merged", "full"):
        entry: dict[str, Any] = {"ours_s": seconds[name], "theirs_s": base, "tokens": count}
        found[f"head_{name}_of_base"] = (ratio(base, seconds[name]), entry)
    found["head_low_rank_of_base"][1]["notes"] = [
        f"rank {low.rank} of {model.config.hidden_size}; at rank 16 "
        f"{ratio(base, seconds['rank_16']):.3f} of the bare model's tokens a second."
    ]
    entry = {"ours_s": seconds["low_rank"], "theirs_s": seconds["genarm"], "tokens": count}
    found["head_over_genarm"] = (ratio(seconds["genarm"], seconds["low_rank"]), entry)
    return found


# ---- training -----------------------------------------------------------------------------------


def run_epochs(repeats: int, quick: bool) -> results.Found:
    """Epochs of both heads from stored states beside the same with the packed backbone in the loop;
    what the store takes in time and in bytes."""
    import torch

    from trimtab import models
    from trimtab.batching import answer_spans, encode, layout_for, plan_training
    from trimtab.dials import LogitsDial, RewardDial
    from trimtab.readings import features
    from trimtab.store import Store
    from trimtab.training.alignment_head import IAVModule
    from trimtab.training.head import HeadModule, head_batch
    from trimtab.training.recipes import DPHRecipe, IAVRecipe
    from trimtab.training.reward_head import DPHModule, aggregate_all, moments, whole_steps

    model, tokenizer = models.load(data.MODEL, dtype="float32")
    pairs = data.pairs_of(SPEC, 4 if quick else 64, whole=True)
    encoded = encode(pairs, tokenizer)
    rounds = 1 if quick else repeats

    def schedule(recipe: IAVRecipe | DPHRecipe, layout: Any) -> Any:
        return plan_training(
            encoded,
            pairs_per_step=recipe.train.pairs_per_step,
            epochs=1,
            seed=0,
            budget=recipe.train.microbatch_tokens,
            layout=layout,
        )

    def epoch(module: HeadModule, plan: Any, layout: Any) -> Callable[[], None]:
        """An optimizer step for each planned one, as the trainer takes them."""
        optimizer = torch.optim.AdamW(module.dial.parameters(), lr=1e-3)

        def run() -> None:
            for at in range(0, len(plan.microbatches), plan.per_step):
                for rows in plan.microbatches[at : at + plan.per_step]:
                    loss, _ = module(head_batch(encoded, rows, layout, module.live))
                    (loss.sum() / plan.pairs_per_step).backward()
                optimizer.step()
                optimizer.zero_grad()

        return run

    draw = torch.Generator().manual_seed(0)
    found: results.Found = {}
    with tempfile.TemporaryDirectory() as scratch:
        recipe: Any = IAVRecipe()
        layout = layout_for(model, "predicting")
        plan = schedule(recipe, layout)
        made: list[HeadModule] = []
        for _ in range(2):
            dial: Any = LogitsDial.for_model(model, generator=draw, rank=recipe.dial.rank)
            made.append(IAVModule(model, dial, recipe.objective, encoded).train())
        stored, live = made
        start = time.perf_counter()
        states = features(model, encoded, stored.sites, stored.where, store=Store(scratch))
        cost = time.perf_counter() - start
        stored.stored = states
        seconds = in_turn(
            {"store": epoch(stored, plan, layout), "live": epoch(live, plan, layout)}, rounds
        )
        entry: dict[str, Any] = {"ours_s": seconds["store"], "theirs_s": seconds["live"]}
        size = f"{encoded.n_pairs} pairs, {int(states.counts.sum()):,} token states of {SPEC}"
        entry["notes"] = [size]
        found["iav_epoch_from_store"] = (ratio(seconds["live"], seconds["store"]), entry)
        two = cost + 2 * median(seconds["store"])
        found["store_and_2_epochs_over_live"] = (
            two / (2 * median(seconds["live"])),
            {"ours_s": [two], "theirs_s": [2 * median(seconds["live"])], "store_s": cost},
        )
        width = model.config.hidden_size
        share = states.nbytes / int(states.counts.sum()) / (2 * width)
        found["store_bytes_over_2d"] = (share, {"bytes": states.nbytes})

        recipe = DPHRecipe()
        layout = layout_for(model, "answer")
        plan = schedule(recipe, layout)
        spans = answer_spans(encoded)
        heads = torch.zeros(encoded.n_pairs, dtype=torch.long)
        rewards = [RewardDial.for_model(model, generator=draw) for _ in range(2)]
        final = features(model, encoded, ("final",), "answer", store=Store(scratch))
        for reward in rewards:
            reward.standardise(*moments(final, spans))
        ours, theirs = (
            DPHModule(model, reward, recipe.objective, encoded, heads).train() for reward in rewards
        )
        ours.vectors = aggregate_all(rewards[0], final, spans)
        seconds = in_turn(
            {
                "store": epoch(ours, whole_steps(plan), layout),
                "live": epoch(theirs, plan, layout),
            },
            rounds,
        )
        entry = {"ours_s": seconds["store"], "theirs_s": seconds["live"]}
        found["dph_epoch_from_store"] = (ratio(seconds["live"], seconds["store"]), entry)
    return found


# ---- candidates ---------------------------------------------------------------------------------


def run_candidates(repeats: int, quick: bool) -> results.Found:
    """Rewards of 8 candidates in one packed pass, and one by one."""
    from trimtab import models
    from trimtab.dials import RewardDial
    from trimtab.evaluation.rewards import score_candidates

    model, tokenizer = models.load(data.MODEL, dtype="float32")
    pairs = data.pairs_of(SPEC, 4 * CANDIDATES, whole=True)
    answers = list(dict.fromkeys(str(a) for p in pairs for a in (p.chosen, p.rejected)))
    answers = answers[:CANDIDATES]
    prompt, dial = str(pairs[0].prompt), RewardDial.for_model(model)
    seconds = in_turn(
        {
            "packed": lambda: score_candidates(model, tokenizer, dial, prompt, answers),
            "apart": lambda: [
                score_candidates(model, tokenizer, dial, prompt, [answer]) for answer in answers
            ],
        },
        1 if quick else 2 * repeats + 1,
    )
    entry = {"ours_s": seconds["packed"], "theirs_s": seconds["apart"]}
    return {"candidates_packed": (ratio(seconds["apart"], seconds["packed"]), entry)}
