"""`python -m audit`: known vulnerabilities and the licences of what `constraints.txt` pins.

pip-audit runs in a virtual environment of its own, which is thrown away. A package that its database does not
have, or that cannot be asked, was not audited: that is said, and is no pass. Licences are those that the
installed packages state themselves. The exit status is 0 where everything was looked at and nothing found, 1
where something was found, 3 where something could not be looked at.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from importlib.metadata import PackageMetadata, PackageNotFoundError, metadata
from pathlib import Path

PINNED = Path(__file__).resolve().parents[1] / "constraints.txt"
PERMISSIVE = re.compile(
    r"MIT|BSD|Apache|ISC\b|Python Software Foundation|PSF|Python-2|MPL|Mozilla Public|Unlicense|Zlib|"
    r"CC0|HPND|0BSD|Public Domain",
    re.IGNORECASE,
)
KNOWN = {
    "chardet": "LGPL, of lm-eval's (extra eval), as a library of its own",
    "dominate": "LGPL, of lm-eval's (extra eval), as a library of its own",
    "torchao": "BSD-3-Clause by its LICENSE file; its metadata has no word of it",
}
"""Packages whose licence was read and is fine for what they are used for, and why."""


def pinned() -> dict[str, str]:
    """Versions by name."""
    lines = (line.partition("#")[0].strip() for line in PINNED.read_text().splitlines())
    return dict(line.split("==") for line in lines if "==" in line)


def licence(found: PackageMetadata) -> str:
    """What a package says its licence is: the expression, else classifiers, else a line of its own."""
    expression = found.get("License-Expression")
    classes = [c.rpartition(" :: ")[2] for c in found.get_all("Classifier") or () if "License" in c]
    own = (found.get("License") or "").strip().partition("\n")[0][:80]
    return str(expression or " or ".join(c for c in classes if c != "OSI Approved") or own)


def licences() -> Iterator[tuple[str, str]]:
    """Packages with a licence that is not known to be permissive; empty text for those without one."""
    for name in pinned():
        try:
            said = licence(metadata(name))
        except PackageNotFoundError:
            continue
        if name not in KNOWN and not PERMISSIVE.search(said):
            yield name, said


def vulnerabilities() -> tuple[list[str], list[str]]:
    """What is known of the pinned versions, a line each, and why others could not be looked at."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = f"{folder}/bin/python"
        install = [python, "-m", "pip", "install", "--quiet", "pip-audit"]
        if subprocess.run(install, check=False).returncode:
            return [], ["pip-audit cannot be installed here"]
        command = [python, "-m", "pip_audit", "--requirement", str(PINNED), "--no-deps"]
        command += ["--disable-pip", "--progress-spinner", "off", "--format", "json"]
        ran = subprocess.run(command, check=False, capture_output=True, text=True)
    try:
        told = json.loads(ran.stdout)["dependencies"]
    except (ValueError, KeyError):
        last = (ran.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return [], [f"pip-audit could not look: {last[:300]}"]
    found = [
        f"{one['name']} {one['version']}: {v['id']}, mended in {', '.join(v['fix_versions']) or 'none'}"
        for one in told
        for v in one.get("vulns", ())
    ]
    return found, [f"{one['name']}: {one['skip_reason']}" for one in told if "skip_reason" in one]


def main() -> int:
    """Say what was found."""
    strange = list(licences())
    for name, said in strange:
        print(f"licence of {name}: {said or 'none is stated'}")
    found, skipped = vulnerabilities()
    print(*found, sep="\n") if found else None
    count = len(pinned())
    print(
        f"{count} packages pinned: {len(strange)} licences to look at, {len(found)} vulnerabilities"
    )
    if skipped:
        print(f"NOT AUDITED: {len(skipped)} of {count}, for example {skipped[0]}")
    return 1 if strange or found else 3 if skipped else 0


if __name__ == "__main__":
    sys.exit(main())
