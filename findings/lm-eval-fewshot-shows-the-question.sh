#!/usr/bin/env bash
# lm-eval 0.4.13 (versions pinned below), few-shot on a task that has a test split and names no fewshot_split (a
# local file, as in the guide to new tasks): examples come from the test split and the question itself is not left
# out, so that its own answer can stand in the prompt above it. With `fewshot_split: test` written out it is left out.
#
# Output seen:
#   lm-eval 0.4.13
#   prompts that hold their own question with its answer: 18 of 40
#   the same with fewshot_split: test: 0 of 40
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0
"$dir/venv/bin/pip" install --quiet lm-eval==0.4.13 datasets==5.2.0
cd "$dir"
HF_HUB_OFFLINE=1 HF_DATASETS_CACHE="$dir/cache" "$dir/venv/bin/python" - 2>/dev/null <<'PY'
import json
from importlib.metadata import version

from lm_eval.tasks import TaskManager

print(f"lm-eval {version('lm-eval')}")
with open("docs.jsonl", "w") as file:
    for i in range(40):
        file.write(json.dumps({"question": f"Question {i:02}?", "answer": f"answer-{i:02}"}) + "\n")
task = {
    "task": "local",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "docs.jsonl"}},
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{answer}}",
    "num_fewshot": 20,
    "metric_list": [{"metric": "exact_match"}],
}


def shown(config: dict) -> int:
    found = TaskManager(include_defaults=False).load([config])["tasks"]["local"]
    found.set_fewshot_seed(seed=1234)
    found.build_all_requests(rank=0, world_size=1)
    return sum(r.doc["answer"] in r.args[0] for r in found.instances)


leaked, named = shown(task), shown({**task, "fewshot_split": "test"})
print(f"prompts that hold their own question with its answer: {leaked} of 40")
print(f"the same with fewshot_split: test: {named} of 40")
assert leaked > 10 and named == 0, "the behaviour has changed"
PY
