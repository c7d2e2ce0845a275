"""What is killed: every verb that writes, on as little as it runs on. HERE has what is read, OUT is what is
written."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from helpers_study import SMALL, rows, write_lines, write_suite

TESTS = Path(__file__).resolve().parents[1]
EXPORTS = ("gguf", "repeng", "peft", "merged", "steering-vectors", "gguf-lora")
OWN = "--out OUT --quiet --device cpu --dtype float32"
FIT = f"--model HERE/model --pairs jsonl:HERE/train.jsonl {OWN}"
STEP = "--train.epochs 1 --train.pairs-per-step 3"
COMPARED = f"--suite HERE/suite.yaml --limit 4 {' '.join(SMALL)} {OWN}"
EXPORT = "--model HERE/model --out OUT --device cpu"
VERBS = {
    "fit mean": f"fit mean {FIT}",
    "fit mean, over another": f"fit mean {FIT} --overwrite --sites 1",
    "fit dpo": f"fit dpo {FIT} {STEP} --dial.rank 1",
    "fit innerdpo": f"fit innerdpo {FIT} {STEP}",
    "fit iav": f"fit iav {FIT} {STEP}",
    "fit iav, from a store": f"fit iav {FIT} {STEP} --store HERE/place/store",
    "fit dph": f"fit dph {FIT} {STEP}",
    "fit-condition": "fit-condition --model HERE/model --prompt-style plain --sites 0,1 "
    f"--acting HERE/acting.txt --resting HERE/resting.txt {OWN}",
    "cache": f"cache {FIT}",
    "calibrate": "calibrate --model HERE/model --dial OUT --budget kl=0.1 --passages 2 --device cpu",
    "evaluate": f"evaluate --model HERE/model --dial HERE/dial --pairs t=jsonl:HERE/test.jsonl {OWN}",
    "generate": "generate --model HERE/model --prompt The --max-new-tokens 2 --out OUT --device cpu",
    "import": "import HERE/v.npy --model HERE/model --out OUT --device cpu",
    "a model in GGUF": f"fit mean {FIT}".replace("HERE/model", "HERE/model.gguf"),
    "tune": f"tune mean --model HERE/model --suite HERE/suite.yaml --trials 2 {OWN} "
    "--parameters sites=0.3,0.6",
    "report": "report HERE/place/out",
    "recipe": "recipe HERE/recipe.yaml",
    "compare": f"compare --model HERE/model --methods dpo mean --seeds 0 {COMPARED}",
    "compare, with a panel": "compare --model HERE/model --methods mean --panel HERE/panel.yaml "
    f"{COMPARED}",
    "compare-heads": "compare-heads --model HERE/model --train jsonl:HERE/train.jsonl "
    "--tests jsonl:HERE/test.jsonl --alpha 1 --kl-items 3 --args-answers 2 --k 4 --head-seeds 0 "
    f"--max-new-tokens 2 --rounds 1 --head-epochs 1 --epochs 1 {OWN}",
    "compare-rewards": "compare-rewards --model HERE/model --data-root HERE --tasks a --held-out b "
    f"--train-limit 4 --test-limit 3 --head-seeds 0 --no-ablation {OWN}",
    "dose": "dose --model HERE/model --traits honesty --limit 6 --items 3 --passages 2 --steps 1 "
    f"--max-new-tokens 2 --random-seeds 0 --kl 0.001 --methods mean {OWN}",
    "screens": "study run screens --model HERE/model --pairs letters:HERE/tea.jsonl --train 6 --test 3 "
    f"--blocks 0,0.5 {OWN}",
    "panel": "study run panel --model HERE/model --panel HERE/panel.yaml --panel-items 4 "
    f"--dials a=HERE/dial {OWN}",
    "anchoring": "study run anchoring --experiments 1.6 1.4 --seeds 1 --steps 20 --quiet --out OUT",
    **{f"export {to}": f"export {EXPORT} --dial HERE/dial --to {to}" for to in EXPORTS},
    "export peft, over another": f"export {EXPORT} --dial HERE/dial --to peft --overwrite --alpha 0.5",
}
VERBS["export gguf-lora"] = (
    f"export {EXPORT} --dial HERE/lora --to gguf-lora --base-gguf HERE/base.gguf"
)


def words(verb: str, here: Path) -> list[str]:
    """What is typed."""
    typed = VERBS[verb].replace("HERE", str(here))
    return [str(here / "place" / "out") if word == "OUT" else word for word in typed.split()]


BEFORE = {
    "fit mean, over another": "dial",
    "calibrate": "dial",
    "report": "study",
    "export peft, over another": "exported",
}
"""What lies at OUT already, by verb."""
MADE: dict[str, str] = {"dial": "fit mean", "lora": "fit dpo"}
MADE |= {"study": "evaluate", "exported": "export peft"}
"""What is made by which verb, once."""


def prepare(here: Path, *, gguf: bool) -> None:
    """A tiny model, if wanted also in GGUF, pairs, a suite, a panel, directions."""
    import numpy as np

    from conftest import _tokenizer, build

    model = build("llama")
    model.save_pretrained(here / "model")
    _tokenizer().save_pretrained(here / "model")
    if gguf:
        sys.path += [
            str(folder) for folder in TESTS.iterdir() if folder.is_dir()
        ]  # as pytest has it
        from test_gguf_lora import write_base
        from test_loading import write_gguf

        write_base(model, here / "base.gguf")
        write_gguf(here / "model.gguf", model, _tokenizer())
    for name in ("train", "test"):
        write_lines(here / f"{name}.jsonl", rows(6, name))
    write_suite(here, train=8, test=4, oos=3)
    np.save(here / "v.npy", np.random.default_rng(0).normal(size=(4, 32)).astype(np.float32))
    for name, text in (("acting", "Number {} is"), ("resting", "the fox {} runs")):
        (here / f"{name}.txt").write_text("".join(text.format(i) + "\n" for i in range(6)))
    for name in ("a", "b"):
        for split in ("train", "test"):
            asked = [
                {"question": f"{name} {i}?", "choices": ["Rome", "Paris"], "label": i % 2}
                for i in range(4)
            ]
            write_lines(here / "choices" / f"{name}.{split}.jsonl", asked)
    write_lines(here / "tea.jsonl", list(_letters()))
    (here / "panel.yaml").write_text(
        f"mine: {{kind: choices, sources: ['{here}/test.jsonl'], about: x}}\n"
    )
    (here / "recipe.yaml").write_text(
        f"run: fit mean\nout: {here}/place/out\nflags: {{model: {here}/model, "
        f"pairs: 'jsonl:{here}/train.jsonl', device: cpu, dtype: float32}}\n"
    )


def _letters() -> Iterator[dict[str, Any]]:
    for i in range(9):
        first, second = (" (A)", " (B)") if i % 2 else (" (B)", " (A)")
        yield {
            "question": f"Take tea {i}?\n (A) yes {i}\n (B) no {i}",
            "answer_matching_behavior": first,
            "answer_not_matching_behavior": second,
        }


def ready() -> None:
    """In the process that the commands are children of: everything is imported, the check of exports is
    made in the child itself, and nothing is larger than it must be."""
    import subprocess

    import gguf  # noqa: F401
    import optuna  # noqa: F401
    import peft  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    import trimtab.export.run
    import trimtab.studies.anchoring.study
    import trimtab.studies.heads.study
    import trimtab.studies.panel.study
    import trimtab.studies.rewards.study
    import trimtab.studies.screens.study
    import trimtab.studies.steering.study

    def checked(command: list[str], **_: Any) -> Any:
        spec = json.loads(Path(command[-1]).read_text())
        receipt = trimtab.export.check.compare(spec)
        Path(spec["receipt"]).write_text(json.dumps(receipt, indent=2, ensure_ascii=False) + "\n")
        return subprocess.CompletedProcess(command, 0, "", "")

    trimtab.export.run.subprocess = _Subprocess(checked)  # type: ignore[attr-defined]


@dataclasses.dataclass
class _Subprocess:
    run: Any
