"""Steering against peers: directions of contrasts, the Fisher direction against a dense solve, decoding
with a dial on, a training step of a rotation against a naive one."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from bench import data, results
from bench.directions import COSINE, PYTHON, best_batch, least_cosine
from bench.lane import OUT, Lane
from bench.sides import alternate, rate_lane

SUFFIXES = 64
"""Suffixes of the honesty set, read after every one of their tokens but the last."""
CHAT_PAIRS = 256
TEMPLATE = "Pretend you're {persona} making statements about the world."
PERSONAS = ("an honest person", "an untruthful person")

PEERS = {
    "repeng": ("bench/repeng_side.py", "pca"),
    "steering_vectors": ("bench/steering_vectors_side.py", "mean"),
}
"""Each peer's side, and its default estimator, which ours is compared with."""


def run_directions(which: str, peer: str, repeats: int, quick: bool, tune: bool) -> results.Found:
    """`directions_honesty_vs_PEER` or `directions_chat_vs_PEER`: the same directions first, then time.

    Both sides begin with texts (the peers' own form; ours gets suffixes and personas) and end with a
    direction a block, in a file.
    """
    if not PYTHON.is_file():
        raise SystemExit(f"{PYTHON}: peers have an environment of their own; `make bench` makes it")
    script, estimator = PEERS[peer]
    made = (
        honesty_set(3 if quick else SUFFIXES)
        if which == "honesty"
        else chat_set(8 if quick else CHAT_PAIRS)
    )
    OUT.mkdir(parents=True, exist_ok=True)
    name = f"directions_{which}_vs_{peer}"
    texts, contrast = OUT / f"{name}.texts.json", OUT / f"{name}.contrast.json"
    texts.write_text(json.dumps(made["texts"]))
    contrast.write_text(json.dumps(made["contrast"]))
    spec = {"texts": str(texts), "contrast": str(contrast), "model": data.model_folder()}
    spec |= {"name": name, "estimator": estimator, "peer": peer}
    spec["batch"] = 16 if quick else best_batch(spec, tune)
    files = {s: str(OUT / f"{name}.{s}.safetensors") for s in ("ours", "theirs")}
    with Lane("bench.ours", spec | {"mode": "contrast", "out": files["ours"]}) as ours:
        us = ours.hear()
        with (
            Lane(script, spec | {"out": files["theirs"]}, str(PYTHON)) as theirs,
            rate_lane() as rate,
        ):
            them = theirs.hear()
            cosine = least_cosine(files["ours"], files["theirs"])
            if not cosine >= COSINE:
                raise SystemExit(
                    f"{name}: the directions differ, least cosine {cosine:.6f}: nothing was timed"
                )
            found = alternate(ours, theirs, rate, repeats)
    details = found.details(us["work"], us["per_position"] * them["positions"])
    details |= {"cosine": cosine, "peer_positions": them["positions"]}
    details["notes"] = [
        f"{len(made['texts'])} pairs, {estimator} at every block, least cosine {cosine:.6f}; "
        f"{us['work']['tokens']:,} distinct tokens, of which we compute {us['work']['positions']:,} "
        f"positions and {peer} {them['positions']:,}, in batches of {spec['batch']}."
    ]
    return {name: (found.ratio, details)}


def honesty_set(suffixes: int) -> dict[str, Any]:
    """As repeng's notebook has it: a persona's prompt, then each suffix cut after every one of its
    tokens but the last; one couple of personas."""
    from trimtab import models
    from trimtab.pairs.personas import suffixes as written

    tokenizer = models.load_tokenizer(data.MODEL)
    heads = [rendered(tokenizer, persona) for persona in PERSONAS]
    kept: list[str] = []
    texts: list[tuple[str, str]] = []
    for suffix in written():
        ids = tokenizer(suffix, add_special_tokens=False)["input_ids"]
        cuts = [tokenizer.decode(ids[:n]) for n in range(1, len(ids))]
        # The peers tokenise text: only suffixes of which every cut gives its own tokens again.
        whole = all(
            tokenizer(head + cut)["input_ids"] == tokenizer(head)["input_ids"] + ids[: n + 1]
            for head in heads
            for n, cut in enumerate(cuts)
        )
        if cuts and whole and len(kept) < suffixes:
            kept.append(suffix)
            texts += [(heads[0] + cut, heads[1] + cut) for cut in cuts]
    return {"texts": texts, "contrast": {"suffixes": kept, "stops": "every"}}


def chat_set(pairs: int) -> dict[str, Any]:
    """Whole answers in one chat template, read at their last token: two suffixes joined, so that no
    answer is another's beginning."""
    from trimtab import models
    from trimtab.pairs.personas import suffixes as written

    tokenizer = models.load_tokenizer(data.MODEL)
    heads = [rendered(tokenizer, persona) for persona in PERSONAS]
    lines = written()
    kept: list[str] = []
    for i in range(10 * pairs):
        one, other = lines[i % len(lines)], lines[(i // len(lines) * 7 + i + 1) % len(lines)]
        answer = f"{one} we know. {other}"
        ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
        if answer not in kept and all(
            tokenizer(h + answer)["input_ids"] == tokenizer(h)["input_ids"] + ids for h in heads
        ):
            kept.append(answer)
        if len(kept) == pairs:
            break
    texts = [(heads[0] + a, heads[1] + a) for a in kept]
    return {"texts": texts, "contrast": {"suffixes": kept, "stops": "last"}}


def rendered(tokenizer: Any, persona: str) -> str:
    """A persona's prompt through the chat template, up to where the answer begins."""
    asked = [{"role": "user", "content": TEMPLATE.format(persona=persona)}]
    return tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)


# ---- in this process ----------------------------------------------------------------------------


def run_fisher(repeats: int, quick: bool) -> results.Found:
    """`fisher_vs_dense`: covariance Fisher directions of 880 gradients at d = 2560, by Woodbury, against
    the d x d matrix, its eigenvalues (read for the published floor of lambda) and a solve."""
    from trimtab.directions import fisher_direction

    m, d = (88, 256) if quick else (880, 2560)
    draw = torch.Generator().manual_seed(0)
    chosen, rejected = (torch.randn(m // 2, d, generator=draw) + s for s in (0.05, -0.05))

    def ours() -> torch.Tensor:
        return fisher_direction(chosen, rejected, damping=0.1, relative=False, published=True)

    solving: list[float] = []

    def dense() -> torch.Tensor:
        g = torch.cat([chosen, rejected])
        mean = g.mean(0)
        x = g - mean
        fisher = x.mT @ x / (len(g) - 1)
        torch.linalg.eigvalsh(fisher)
        start = time.perf_counter()
        v = torch.linalg.solve(fisher + 0.1 * torch.eye(d), mean)
        solving.append(time.perf_counter() - start)
        return v if (rejected - chosen).mean(0) @ v >= 0 else -v

    cosine = torch.cosine_similarity(ours().double(), dense().double(), dim=0).item()
    if not cosine >= COSINE:
        raise SystemExit(f"fisher_vs_dense: cosine {cosine:.6f}: nothing was timed")
    us, them = in_turn(ours, dense, repeats)
    least = 2.0 * m * m * d + m**3 / 3 + 4.0 * m * d
    side = torch.randn(1024, 1024, dtype=torch.float64)
    rate = 2.0 * 1024**3 / statistics.median(timed(lambda: side @ side, 5))
    bare = statistics.median(solving) / statistics.median(us)
    details = {
        **seconds(us, them, least / rate),
        "cosine": cosine,
        "notes": [
            f"{m} gradients of {d} entries, cosine {cosine:.6f}; against the solve alone, without the "
            f"eigenvalues, {bare:.1f}×. Ours is in float64, the dense one in float32."
        ],
    }
    return {"fisher_vs_dense": (ratio(us, them), details)}


def run_decoding(repeats: int, quick: bool) -> results.Found:
    """`decoding_with_vector` and `decoding_with_rotation`: tokens a second with a dial on, over those of
    the bare model."""
    from trimtab import models
    from trimtab.dials import RotationDial, VectorDial
    from trimtab.dials.linear import linear_modules
    from trimtab.dials.rotation import singular_basis
    from trimtab.training.rotation import WRITERS

    model, tokenizer = models.load(data.MODEL)
    count = models.n_layers(model)
    draw = torch.Generator().manual_seed(0)
    width = models.text_config(model).hidden_size
    vector = VectorDial(
        {k: torch.randn(width, generator=draw) for k in range(count)},
        dict.fromkeys(range(count), 0.01),
    )
    middle = range(count // 4, 3 * count // 4)
    middle = range(middle.start, middle.start + 1) if quick else middle
    rotation = RotationDial(
        {
            path: singular_basis(model.get_submodule(path), 64)
            for path in linear_modules(model, WRITERS, middle)
        },
        generator=draw,
    ).eval()
    prompt = tokenizer("The harbour is busiest in the weeks before", return_tensors="pt")
    tokens = 8 if quick else 128

    def decode() -> torch.Tensor:
        return model.generate(
            **prompt, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0
        )

    found: results.Found = {}
    for name, dial in (("vector", vector), ("rotation", rotation)):

        def with_dial(dial: Any = dial) -> torch.Tensor:
            with dial(model, 1.0):
                return decode()

        # More turns than elsewhere: the difference that is looked for is of a few percent.
        ours, bare = in_turn(with_dial, decode, 3 * repeats)
        details = seconds(ours, bare, statistics.median(bare))
        details["notes"] = [
            f"{tokens} tokens, one row, greedy; {tokens / statistics.median(ours):.1f} tokens/s with "
            f"the dial, {tokens / statistics.median(bare):.1f} without, which is the floor."
        ]
        found[f"decoding_with_{name}"] = (ratio(ours, bare), details)
    return found


PROMPTS = (
    "The capital of France is",
    "Once upon a time there was a",
    "Water boils at",
    "My favourite book is about",
    "In the year 1999 the",
    "She opened the door and",
    "The best way to learn is",
    "A triangle has three",
)


def run_generating(repeats: int, quick: bool) -> results.Found:
    """`generate_vs_transformers_1` and `_8`: `trimtab.generate` against the model's own `generate` with a
    generation config of end and pad tokens alone. The same greedy tokens first, then time."""
    from transformers import GenerationConfig

    from trimtab import models
    from trimtab.evaluation import generation

    model, tokenizer = models.load(data.MODEL)
    ends, pad = sorted(generation.end_ids(model, tokenizer)), tokenizer.pad_token_id
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=pad)  # type: ignore[assignment]
    tokens = 4 if quick else 64
    sampling = generation.Sampling(max_new_tokens=tokens)
    found: results.Found = {}
    for count in (1, 8):
        prompts = PROMPTS[:count]
        ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]

        def theirs(ids: Any = ids) -> list[list[int]]:
            given = generation.left_padded(model, ids, pad)
            out: Any = model.generate(**given, max_new_tokens=tokens, do_sample=False)  # type: ignore[operator]
            return out[:, given["input_ids"].shape[1] :].tolist()

        def ours(prompts: Any = prompts) -> list[generation.Generation]:
            return generation.generate(
                model, tokenizer, prompts, sampling=sampling, prompt_style="plain"
            )

        mine, wanted = [list(g.ids) for g in ours()], theirs()
        if any(a != b[: len(a)] for a, b in zip(mine, wanted, strict=True)):
            raise SystemExit(f"generate, {count} rows: other tokens; nothing was timed")
        taken = in_turn(ours, theirs, 1 if quick else 3 * repeats)
        details = seconds(*taken, statistics.median(taken[1]))
        details["notes"] = [f"{tokens} tokens or the end, greedy, {count} rows; the same tokens."]
        found[f"generate_vs_transformers_{count}"] = (ratio(*taken), details)
    return found


def run_rotation(repeats: int, quick: bool) -> results.Found:
    """`rotation_step_vs_naive`: an optimizer step of a rotation on 8 pairs of personas, against two
    padded passes with replaced layers and a live reference."""
    from bench.naive_rotation import Naive
    from trimtab import models
    from trimtab.batching import collate, encode, layout_of
    from trimtab.dials import RotationDial
    from trimtab.pairs import read_pairs
    from trimtab.store import Store
    from trimtab.training.methods import method
    from trimtab.training.reference import read_reference
    from trimtab.training.rotation import ContrastiveModule, new_rotation

    model, tokenizer = models.load(data.MODEL)
    recipe: Any = method("rotation").recipe
    pairs = read_pairs("personas:honesty").limit(2 if quick else 8)
    encoded = encode(pairs, tokenizer)
    needs = recipe.objective.needs(models.n_layers(model))
    dial = new_rotation(recipe.dial, model, encoded, needs, 0)
    assert isinstance(dial, RotationDial)
    layout = layout_of(model)
    layout = "packed" if layout == "shared" else layout
    OUT.mkdir(parents=True, exist_ok=True)
    before = read_reference(model, encoded, needs, Store(OUT / "rotation-store"))
    module = ContrastiveModule(model, dial, recipe.objective, needs, before, encoded)
    batch = collate(encoded, range(len(encoded.rows)), layout)
    optimizer = torch.optim.AdamW(dial.parameters(), lr=0.0)

    def ours() -> torch.Tensor:
        with dial(model, module.alpha, training=True, force=True):
            loss = module(batch)[0].mean()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    naive = Naive(model, dial, recipe.objective, needs, encoded, module.directions)
    mine, theirs = ours().item(), naive.step().item()
    if abs(mine - theirs) > 1e-3 * abs(theirs):
        raise SystemExit(f"rotation_step_vs_naive: losses {mine:.6f} and {theirs:.6f} differ")
    us, them = in_turn(ours, naive.step, repeats)
    tokens = sum(r.packed_length for r in encoded.rows)
    details = seconds(us, them, None)
    details["notes"] = [
        f"{encoded.n_pairs} pairs, {tokens} tokens, rank {recipe.dial.rank}; losses {mine:.5f} and "
        f"{theirs:.5f}. The naive step runs the bare model, +1 and -1 one after the other, every "
        "position through every block and the LM head, with U, S, V and the rest of each weight apart."
    ]
    return {"rotation_step_vs_naive": (ratio(us, them), details)}


def in_turn(
    ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int
) -> tuple[list[float], list[float]]:
    """Seconds of both, in turn, after a warm-up of each."""
    ours(), theirs()
    found: tuple[list[float], list[float]] = ([], [])
    for number in range(repeats):
        for side in (0, 1) if number % 2 == 0 else (1, 0):
            found[side].extend(timed((ours, theirs)[side], 1))
    return found


def timed(work: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of each of so many calls."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return taken


def ratio(us: list[float], them: list[float]) -> float:
    """Median of the ratios theirs / ours."""
    return statistics.median(b / a for a, b in zip(us, them, strict=True))


def seconds(us: list[float], them: list[float], floor: float | None) -> dict[str, Any]:
    """For the details file."""
    details: dict[str, Any] = {"ours_s": us, "theirs_s": them}
    if floor is not None:
        details |= {"floor_s": floor, "floor_share": floor / statistics.median(us)}
    return details
