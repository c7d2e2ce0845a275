"""`export`: a dial at one alpha in another tool's format, checked there before it is handed over."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

from trimtab import models
from trimtab.dials import Dial
from trimtab.dials.attach import as_alpha
from trimtab.dials.contexts import check_bare
from trimtab.errors import ConfigError, DialError, near
from trimtab.export import check
from trimtab.export.gguf import added_steps, export_gguf
from trimtab.export.gguf_lora import BASE_FILE, SCALES, export_gguf_lora, is_linear, run_lines
from trimtab.export.handing_over import write_note
from trimtab.export.heads import refuse_rewards
from trimtab.export.merged import export_merged
from trimtab.export.peft import export_peft
from trimtab.export.steering_vectors import export_steering_vectors
from trimtab.files import clear_left, sha256, staged
from trimtab.foreign import Malformed, parse_json
from trimtab.holding import holding
from trimtab.models.quiet import quiet_transformers
from trimtab.pairs.neutral import NEUTRAL
from trimtab.progress import SILENT, Progress, warn
from trimtab.provenance import digest

VECTOR_FILE = "control-vector.gguf"
RECEIPT = "receipt.json"
PASSAGES, TOKENS = 4, 24
"""The fixed set: so many neutral passages, cut to so many tokens."""
TOLERANCE = 2e-3
"""Largest difference of a logit, in float32, as a share of the largest change that the dial makes: ggml's
tabulated GELU is up to 1.6e-3 off, a fault 0.1 and more."""
NEAR = 0.02
"""Share of the dial's change by which a quantised base may be off its plain copy without a word."""


@dataclass(frozen=True)
class Format:
    """An export format: what it is, and how it is written (`(dial, model, tokenizer, alpha, path,
    base_gguf)` to what is not carried over)."""

    what: str
    write: Callable[[Dial, Any, Any, float, Path, Any], list[str]]
    file: str = ""
    """The one file that it is; empty where it is a folder."""
    base_gguf: Literal["no", "may", "must"] = "no"
    """Whether a base in GGUF is taken."""


FORMATS: dict[str, Format] = {
    "gguf": Format(
        "llama.cpp's control vector",
        lambda d, m, _, a, p, b=None: export_gguf(d, m, a, p, "llama.cpp"),
        VECTOR_FILE,
        "may",
    ),
    "gguf-lora": Format(
        "llama.cpp's LoRA, for a base in GGUF",
        lambda d, m, _, a, p, b: export_gguf_lora(d, m, a, p, Path(b)),
        base_gguf="must",
    ),
    "repeng": Format(
        "repeng's control vector, a GGUF file that may hold layer 0",
        lambda d, m, _, a, p, b=None: export_gguf(d, m, a, p, "repeng"),
        VECTOR_FILE,
        "may",
    ),
    "peft": Format("a PEFT LoRA folder", lambda d, m, t, a, p, b=None: export_peft(d, m, t, a, p)),
    "merged": Format(
        "a plain checkpoint", lambda d, m, t, a, p, b=None: export_merged(d, m, t, a, p)
    ),
    "steering-vectors": Format(
        "layer activations for the package steering-vectors",
        lambda d, m, _, a, p, b=None: export_steering_vectors(d, m, a, p),
    ),
}
REFUSED = {
    "lm-eval": "lm-evaluation-harness loads steering files with torch.load(weights_only=False), "
    "which runs whatever a file holds: export --to peft or --to merged and evaluate that",
}
"""Formats that are known and not written, with the reason."""


@holding("out")
def export(
    dial: Dial,
    model: Any,
    tokenizer: Any,
    to: str,
    out: str | Path,
    *,
    alpha: float = 1.0,
    base: str | Path | None = None,
    base_gguf: str | Path | None = None,
    python: str | Path = sys.executable,
    tolerance: float = TOLERANCE,
    overwrite: bool = False,
    force: bool = False,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Write a dial at `alpha` for another tool, and have it checked there.

    The check runs in a process that cannot import trimtab: it loads the base model and the export
    with the tool that it is for, compares the logits of a fixed set with the dial's, and writes
    `receipt.json` beside the export. What does not pass is not handed over. Of a quantised base the
    export is made and checked on a plain copy, with the weights that its layers multiply by; the
    receipt says how far that is from the quantised base with the dial.

    Args:
        model: the base model, in float32.
        to: one of `FORMATS`.
        out: a folder; for `gguf` and `repeng` also a file named `….gguf`, the receipt then lies
            beside it as `….gguf.receipt.json`.
        base: folder of the base model (by default the model is saved aside for the check).
        base_gguf: for `gguf` and `repeng`, the base model in F32: the check is then made by llama.cpp.
            For `gguf-lora` the base model in F32, F16 or BF16, for which the adapter is made.
        python: interpreter of the check, where the tool lies in another environment.
        tolerance: largest difference of a logit, as a share of the largest change that the dial makes;
            rounding (1e-5 of the largest logit) comes on top.
        overwrite: replace what lies at `out`, if it is an export.
        force: go on although the dial was made for another base model.

    Returns:
        The receipt.

    Raises:
        ConfigError: an unknown format, an alpha that is no finite number, `out` is taken.
        DialError: the format cannot say what the dial does, or the check did not pass.
    """
    strength = _check(to, alpha, model, base_gguf)
    models.settle(model)
    refuse_rewards(dial)
    if not force:
        dial.check_base(model)
    target, receipt_file = _targets(FORMATS[to], Path(os.path.realpath(Path(out).expanduser())))
    made_of = _made_of(dial, model, to, strength, base_gguf)
    clear_left(target)
    if (done := _found(target, receipt_file, made_of)) is not None:
        progress.say(f"{target} holds this very export already: nothing to do")
        return done
    _check_free(target, receipt_file, overwrite)
    device = next(model.parameters()).device
    cut = [tokenizer(text)["input_ids"][:TOKENS] for text in NEUTRAL[:PASSAGES]]
    rows = [torch.tensor([ids], device=device) for ids in cut]
    quantised, given = models.quantisation_of(model), model
    if quantised:
        model, base = _plain(model), None
    with staged(target) as stage, quiet_transformers():
        made = stage / (target.name if FORMATS[to].file else "export")
        lost = FORMATS[to].write(dial, model, tokenizer, strength, made, base_gguf)
        lora = FORMATS[to].base_gguf == "must"
        if base_gguf is not None and not lora and 0 in added_steps(dial, model, "a control vector"):
            raise DialError(
                "--base-gguf: llama.cpp, which makes the check, takes no control vector at site 0; "
                "leave --base-gguf out for repeng"
            )
        if base is None:
            base = stage / "base"
            model.save_pretrained(base)
        scales = SCALES if lora and is_linear(dial, model, strength) else (1.0,)
        _known(dial, model, rows, strength, scales, stage / "known.safetensors")
        spec = {
            "format": to,
            "export": str(made),
            "base": str(base),
            "base_gguf": str(base_gguf) if base_gguf else "",
            "tensors": str(stage / "known.safetensors"),
            "rows": len(rows),
            "scales": scales,
            "alpha": strength,
            "tolerance": tolerance,
            "threads": torch.get_num_threads(),
            "receipt": str(stage / RECEIPT),
            "not_carried_over": lost,
            "files": _digests(made),
            "dial": {
                "kind": dial.kind,
                "method": dial.info.method,
                "base_model": dial.info.base_model,
                "base_digest": dial.info.base_digest,
            },
        }
        progress.say(f"checking the {to} export in a process without trimtab")
        receipt = _run_check(spec, stage, python)
        if not receipt["within_tolerance"]:
            raise DialError(
                f"the {to} export differs from the dial by {receipt['largest_logit_difference']:.2g} "
                f"in a logit when loaded by {receipt['checked_with']}, of "
                f"{receipt['largest_logit_change_by_the_dial']:.2g} by which the dial moves one "
                f"(tolerance {receipt['bound']:.2g}): not handed over"
            )
        if lora:
            receipt["run"] = run_lines(Path(base_gguf or ""), target, (made / BASE_FILE).is_file())
        if quantised:
            receipt["base_quantisation"] = models.quantisation_name(given)
            far = _apart(dial, given, model, rows, strength)
            receipt["largest_logit_difference_to_the_quantised_base"] = far
            if far > NEAR * receipt["largest_logit_change_by_the_dial"]:
                warn(
                    f"the export is exact on the dequantised weights; the quantised base "
                    f"({receipt['base_quantisation']}) rounds its inputs, too, and with the dial gives "
                    f"logits up to {far:.2g} from it (the dial itself changes them by up to "
                    f"{receipt['largest_logit_change_by_the_dial']:.2g})"
                )
        receipt["made_of"] = made_of
        write_note(stage / RECEIPT, receipt)
        _publish(made, stage / RECEIPT, target, receipt_file)
    return receipt


def _plain(model: nn.Module) -> Any:
    """A plain copy of a quantised model, under its name."""
    copy = models.plain_copy(model)
    copy.config._name_or_path = models.source_of(model).name
    return copy


@torch.no_grad()
def _apart(dial: Dial, one: Any, other: Any, rows: list[Tensor], alpha: float) -> float:
    """The largest difference of a logit between two bases with a dial."""
    logits = []
    for model in (one, other):
        with dial(model, alpha, force=True):
            logits.append([model(input_ids=ids, use_cache=False).logits.float() for ids in rows])
    return max(float((a - b).abs().max()) for a, b in zip(*logits, strict=True))


def _check(to: str, alpha: float, model: nn.Module, base_gguf: str | Path | None) -> float:
    check_format(to, base_gguf)
    strength = as_alpha(alpha)
    if not isinstance(strength, float) or strength == 0:
        raise ConfigError(f"alpha {alpha}: an export is made at one number, and not at 0")
    check_bare(model, "exporting")
    kind = next((p.dtype for p in model.parameters() if models.is_plain(p)), torch.float32)
    if kind != torch.float32:
        raise ConfigError(f"the model is in {kind}: exports are made and checked in float32")
    return strength


def check_format(to: str, base_gguf: str | Path | None) -> None:
    """Raise ConfigError for an unknown format, and where a base in GGUF is given for what llama.cpp does
    not check, or is none."""
    if to in REFUSED:
        raise ConfigError(f"--to {to}: {REFUSED[to]}")
    if to not in FORMATS:
        raise ConfigError(f"--to {to}: no such format{near(to, FORMATS)} ({', '.join(FORMATS)})")
    taken = FORMATS[to].base_gguf
    if base_gguf is None:
        if taken == "must":
            raise ConfigError(
                f"--to {to}: give --base-gguf FILE, the base model in F32, F16 or BF16"
            )
        return
    if taken == "no":
        raise ConfigError(
            f"--to {to} --base-gguf: llama.cpp checks gguf, gguf-lora and repeng; leave it out"
        )
    if not Path(base_gguf).is_file():
        raise ConfigError(f"--base-gguf {base_gguf}: no such file")
    with Path(base_gguf).open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ConfigError(f"--base-gguf {base_gguf}: no GGUF file")


def _targets(kind: Format, out: Path) -> tuple[Path, Path]:
    """Where the export and its receipt go."""
    out = out.expanduser().absolute()
    if not kind.file:
        return out, out / RECEIPT
    if out.suffix == ".gguf":
        return out, out.with_name(f"{out.name}.{RECEIPT}")
    return out / kind.file, out / RECEIPT


def _made_of(dial: Dial, model: Any, to: str, alpha: float, base_gguf: str | Path | None) -> str:
    """A digest of what an export is made of; empty for dials that cannot be saved, of which nobody can say
    that they are the same."""
    try:
        weights = {name: t.detach().cpu().contiguous() for name, t in dial.tensors().items()}
    except NotImplementedError:
        return ""
    return digest(
        {
            "format": to,
            "alpha": alpha,
            "dial": [dial.kind, dial.settings(), hashlib.sha256(save(weights)).hexdigest()],
            "base": models.source_of(model).digest,
            "base_gguf": sha256(Path(base_gguf)) if base_gguf else "",
        }
    )


def _found(target: Path, receipt_file: Path, made_of: str) -> dict[str, Any] | None:
    """The receipt of this very export, if it lies there whole. One whose file was never put beside it is
    cleared away."""
    if not receipt_file.is_file():
        return None
    try:
        receipt = parse_json(receipt_file.read_bytes())
    except (OSError, Malformed):
        return None
    if not isinstance(receipt, dict) or not made_of or receipt.get("made_of") != made_of:
        return None
    if not target.exists():
        receipt_file.unlink()
        return None
    digests = {n: d for n, d in _digests(target).items() if n != RECEIPT}
    return receipt if digests == receipt.get("files") else None


def _check_free(target: Path, receipt: Path, overwrite: bool) -> None:
    """Raise ConfigError where something lies at the target that is not to be replaced."""
    empty = target.is_dir() and not any(target.iterdir())
    if (empty or not target.exists()) and not receipt.exists():
        return
    if not overwrite:
        raise ConfigError(f"{target}: exists; choose another --out, or --overwrite")
    if not receipt.is_file():
        raise ConfigError(f"{target}: exists and is no export (no receipt); choose another --out")


@torch.no_grad()
def _known(
    dial: Dial, model: Any, rows: list[Tensor], alpha: float, scales: Sequence[float], file: Path
) -> None:
    """Write the fixed set with the logits of the bare model and of the dial, at every scale of alpha."""
    tensors = {}
    turned = [(f"dialled_{s:g}", dial(model, s * alpha, force=True)) for s in scales]
    for on, context in (("bare", nullcontext()), *turned):
        with models.reading(model), context:
            for i, ids in enumerate(rows):
                logits = model(input_ids=ids, use_cache=False).logits
                tensors |= {f"ids_{i}": ids.cpu(), f"{on}_{i}": logits.float().cpu().contiguous()}
    save_file(tensors, file)


def _run_check(spec: dict[str, Any], stage: Path, python: str | Path) -> dict[str, Any]:
    file = stage / "spec.json"
    file.write_text(json.dumps(spec))
    command = [str(python), "-I", str(Path(check.__file__)), str(file)]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ConfigError(f"--python {python}: cannot be run ({error})") from error
    if ran.returncode or not (stage / RECEIPT).is_file():
        last = (ran.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise DialError(f"the {spec['format']} export could not be checked: {last}")
    return json.loads((stage / RECEIPT).read_text())


def _digests(path: Path) -> dict[str, str]:
    """sha256 of an export's files."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    top = path.parent if path.is_file() else path
    return {str(file.relative_to(top)): sha256(file) for file in files}


def _publish(made: Path, receipt: Path, target: Path, receipt_file: Path) -> None:
    """Move an export and its receipt to their places."""
    if made.is_file():
        receipt.replace(receipt_file)  # first: without the file beside it, it asks for it again
        made.replace(target)
        return
    receipt.replace(made / RECEIPT)
    if target.exists():
        target.rename(made.parent / "old")
    made.replace(target)
