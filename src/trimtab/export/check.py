"""Checks an export with the tool it is for, in a process of its own that cannot import trimtab.

Run as a script: `python -I check.py SPEC.json`. It loads the base model and the export, runs the
fixed set, compares logits with those that the dial gave, and writes the receipt.
"""

from __future__ import annotations

import contextlib
import json
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


class _NoTrimtab:
    """Whoever imports trimtab in this process is refused."""

    def find_spec(self, name: str, *_: Any) -> None:
        if name.partition(".")[0] == "trimtab":
            raise ImportError("trimtab is out of bounds here")


def main(spec: dict[str, Any]) -> None:
    """Check one export and write its receipt, out of trimtab's reach."""
    sys.meta_path.insert(0, _NoTrimtab())  # type: ignore[arg-type]
    import torch

    torch.set_num_threads(spec["threads"])
    receipt = compare(spec)
    Path(spec["receipt"]).write_text(json.dumps(receipt, indent=2, ensure_ascii=False) + "\n")


def compare(spec: dict[str, Any]) -> dict[str, Any]:
    """The receipt of an export: its logits, by the tool that it is for, beside the dial's."""
    import torch
    from safetensors.torch import load_file

    known = load_file(spec["tensors"])
    rows = [known[f"ids_{i}"] for i in range(spec["rows"])]
    tool, versions, run = CHECKS[spec["format"]](spec, known)
    change = largest = 0.0
    by_scale = {}
    with torch.no_grad():
        for i, ids in enumerate(rows):
            for scale in spec["scales"]:
                there = known[f"dialled_{scale:g}_{i}"]
                logits = run(i, ids, scale)
                far = (logits - there).abs().max().item()
                by_scale[f"{scale:g}"] = max(by_scale.get(f"{scale:g}", 0.0), far)
                change = max(change, (there - known[f"bare_{i}"]).abs().max().item())
                largest = max(largest, there.abs().max().item())
    difference = max(by_scale.values())
    bound = spec["tolerance"] * change + ROUNDING * largest
    return {
        "format": spec["format"],
        "alpha": spec["alpha"],
        "dial": spec["dial"],
        "files": spec["files"],
        "checked_with": tool,
        "checked": _checked(spec["format"], tool, versions),
        "versions": {**versions, "python": sys.version.split()[0]},
        "trimtab_importable": _importable(),
        "sequences": len(rows),
        "tokens": sum(ids.shape[1] for ids in rows),
        "largest_logit_difference": difference,
        "largest_logit_change_by_the_dial": change,
        **({"largest_logit_difference_by_scale": by_scale} if len(by_scale) > 1 else {}),
        "tolerance": spec["tolerance"],
        "bound": bound,
        "within_tolerance": difference <= bound,
        "not_carried_over": spec["not_carried_over"],
    }


ROUNDING = 1e-5
"""Of the largest logit: what may differ in float32 whatever the dial does."""
MEANT_FOR = {
    "gguf": "llama.cpp",
    "gguf-lora": "llama.cpp",
    "repeng": "repeng",
    "peft": "peft",
    "merged": "transformers",
    "steering-vectors": "steering-vectors",
}


def _checked(format_: str, tool: str, versions: dict[str, str]) -> str:
    """Whether the tool that an export is for has been asked, and which one was."""
    meant = MEANT_FOR[format_]
    of_llama = (f"({n} {v})" for n, v in versions.items() if "llama" in n)
    shown = next(of_llama, "") if tool == meant == "llama.cpp" else versions.get(tool, "")
    named = f"{tool} {shown}".strip()
    if tool == meant:
        return f"checked in {named}"
    return f"not checked in {meant}: the file's numbers were, with {named}"


def _importable() -> bool:
    try:
        import trimtab  # noqa: F401
    except ImportError:
        return False
    return True


def _versions(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _model(folder: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def _logits(model: Any) -> Any:
    """How a tool gives the logits of the i-th row of the fixed set, at a scale where it has one."""
    return lambda _, ids, __: model(input_ids=ids, use_cache=False).logits.float()


Known = dict[str, Any]
"""The fixed set: ids and logits by name."""


def _layers(model: Any) -> Any:
    """The decoder layers: the heaviest list as long as the config says."""
    import torch

    count = model.config.get_text_config(decoder=True).num_hidden_layers
    lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == count]
    return max(lists, key=lambda m: sum(p.numel() for p in m.parameters()))


def _with_steps(model: Any, steps: dict[int, Any]) -> Any:
    """The model's logits with a vector added after blocks, by plain hooks."""

    def adding(v: Any) -> Any:
        return lambda _, __, out: (out[0] + v, *out[1:]) if isinstance(out, tuple) else out + v

    for k, v in steps.items():
        _layers(model)[k].register_forward_hook(adding(v))
    return _logits(model)


def _gguf(spec: dict[str, Any], known: Known) -> tuple[str, dict[str, str], Any]:
    if spec["base_gguf"]:
        return _llama_cpp(spec, known)
    try:
        from repeng import ControlModel, ControlVector  # pyright: ignore[reportMissingImports]
    except ImportError:
        import gguf
        import torch

        reader = gguf.GGUFReader(spec["export"])
        steps = {int(t.name.split(".")[1]): torch.from_numpy(t.data.copy()) for t in reader.tensors}
        run = _with_steps(_model(spec["base"]), steps)
        return "gguf and plain hooks", _versions("gguf", "transformers", "torch"), run
    vector = ControlVector.import_gguf(spec["export"])
    model = ControlModel(_model(spec["base"]), list(vector.directions))
    model.set_control(vector, 1.0)
    return "repeng", _versions("repeng", "gguf", "transformers", "torch"), _logits(model)


def _llama_cpp(spec: dict[str, Any], known: Known) -> tuple[str, dict[str, str], Any]:
    """llama.cpp's own logits differ from torch's by rounding; what the vector changes is added to
    those that the bare model gave."""
    import ctypes

    import llama_cpp  # pyright: ignore[reportMissingImports]
    import numpy as np
    import torch
    from gguf import GGUFReader

    # llama.cpp keeps keys and values in float16 unless told otherwise
    llama = llama_cpp.Llama(
        spec["base_gguf"],
        n_ctx=256,
        logits_all=True,
        verbose=False,
        n_threads=spec["threads"],
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
    )
    tensors = {int(t.name.split(".")[1]): t.data for t in GGUFReader(spec["export"]).tensors}
    width = len(next(iter(tensors.values())))
    if 0 in tensors:
        raise SystemExit("llama.cpp takes no control vector for its layer 0")
    # llama.cpp's buffer: layer 1 first, to the last layer, as deeper ones of earlier vectors stay
    deepest = max(max(tensors), llama_cpp.llama_model_n_layer(llama._model.model) - 1)
    buffer = np.zeros((deepest, width), dtype=np.float32)
    for k, data in tensors.items():
        buffer[k - 1] = data
    flat = np.ascontiguousarray(buffer.reshape(-1))
    pointer = flat.ctypes.data_as(ctypes.POINTER(ctypes.c_float))

    def evaluate(ids: Any, on: bool) -> Any:
        new = getattr(llama_cpp, "llama_set_adapter_cvec", None)
        given = (pointer, flat.size, width, 1, len(buffer)) if on else (None, 0, 0, 0, 0)
        (new or llama_cpp.llama_apply_adapter_cvec)(llama._ctx.ctx, *given)
        llama.reset()
        llama.eval(ids[0].tolist())
        return torch.tensor(np.array(llama.scores[: ids.shape[1]]))[None]

    def run(i: int, ids: Any, _: float) -> Any:
        return known[f"bare_{i}"] + evaluate(ids, True) - evaluate(ids, False)

    return "llama.cpp", _versions("llama_cpp_python", "gguf"), run


def _gguf_lora(spec: dict[str, Any], known: Known) -> tuple[str, dict[str, str], Any]:
    """llama.cpp's own server, the adapter's scale in the request. It tells log-probs: what the adapter
    changes of them is held against what the dial does, after a third, two thirds and all of a text."""
    import torch

    llama: Any = import_module("xllamacpp")
    folder = Path(spec["export"])
    own = folder / "base.gguf"
    params = llama.CommonParams()
    params.model.path = str(own if own.is_file() else spec["base_gguf"])
    params.lora_adapters = [llama.CommonAdapterLoraInfo(str(folder / "adapter.gguf"), 1.0)]
    params.cache_type_k = params.cache_type_v = llama.ggml_type.GGML_TYPE_F32
    params.n_ctx, params.n_parallel, params.n_gpu_layers = 256, 1, 0
    params.warmup, params.verbosity = False, -1
    params.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = spec["threads"]
    server = llama.Server(params)

    def told(ids: list[int], scale: float, vocabulary: int) -> Any:
        asked = {
            "prompt": ids,
            "max_tokens": 1,
            "temperature": 0.0,
            "logprobs": vocabulary,
            "cache_prompt": False,
            "lora": [{"id": 0, "scale": scale}],
        }
        answer = server.handle_completions(asked)
        logprobs = torch.full((vocabulary,), float("nan"))
        for entry in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
            logprobs[entry["id"]] = entry["logprob"]
        return logprobs

    def run(i: int, ids: Any, scale: float) -> Any:
        logits = known[f"dialled_{scale:g}_{i}"].clone()
        length = ids.shape[1]
        for end in sorted({-(-length // 3), -(-2 * length // 3), length}):
            at = end - 1
            here, bare = logits[0, at].clone(), known[f"bare_{i}"][0, at]
            words = ids[0, :end].tolist()
            moved = told(words, scale, len(bare)) - told(words, 0.0, len(bare))
            logits[0, at] += moved - (here.log_softmax(-1) - bare.log_softmax(-1))
        return logits

    return "llama.cpp", _versions("xllamacpp", "gguf"), run


def _peft(spec: dict[str, Any], _: Known) -> tuple[str, dict[str, str], Any]:
    from peft import PeftModel

    untied = Path(spec["export"]) / "base"
    base = _model(str(untied) if untied.is_dir() else spec["base"])
    model = PeftModel.from_pretrained(base, spec["export"]).eval()
    return "peft", _versions("peft", "transformers", "torch"), _logits(model)


def _merged(spec: dict[str, Any], _: Known) -> tuple[str, dict[str, str], Any]:
    return "transformers", _versions("transformers", "torch"), _logits(_model(spec["export"]))


def _steering_vectors(spec: dict[str, Any], _: Known) -> tuple[str, dict[str, str], Any]:
    from safetensors.torch import load_file

    layers = load_file(Path(spec["export"]) / "layer_activations.safetensors")
    steps = {int(k): v for k, v in layers.items()}
    model = _model(spec["base"])
    try:
        from steering_vectors import SteeringVector  # pyright: ignore
    except ImportError:
        return "plain hooks", _versions("transformers", "torch"), _with_steps(model, steps)
    SteeringVector(steps).patch_activations(model)
    found = _versions("steering-vectors", "transformers", "torch")
    return "steering-vectors", found, _logits(model)


CHECKS = {
    "gguf": _gguf,
    "gguf-lora": _gguf_lora,
    "repeng": _gguf,
    "peft": _peft,
    "merged": _merged,
    "steering-vectors": _steering_vectors,
}

if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
