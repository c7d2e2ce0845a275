#!/usr/bin/env bash
# hidden-directions 0.1.6 (version pinned below) makes "matched-norm random directions" as the control of its
# damage measurements. Seed 0 is turned into seed 1, so that the default control and that of seed 1 are the
# same direction: two of three "independent" controls at seeds 0, 1, 2 are one.
#
# Output seen:
#   hidden-directions 0.1.6
#   cosine of the controls of seeds 0 and 1: 1.000
#   cosine of the controls of seeds 1 and 2: 0.042
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet torch==2.13.0
"$dir/venv/bin/pip" install --quiet hidden-directions==0.1.6
"$dir/venv/bin/python" - <<'PY'
from importlib.metadata import version

import torch
from hidden_directions.import_vector import random_control_matrix

print(f"hidden-directions {version('hidden-directions')}")
vector = torch.ones(4, 512)


def cosine(a: int, b: int) -> float:
    one, other = (torch.tensor(random_control_matrix(vector, seed=s)).flatten() for s in (a, b))
    return torch.cosine_similarity(one, other, dim=0).item()


for a, b in ((0, 1), (1, 2)):
    print(f"cosine of the controls of seeds {a} and {b}: {cosine(a, b):.3f}")
assert cosine(0, 1) > 0.999999 and abs(cosine(1, 2)) < 0.2, "the behaviour has changed"
PY
