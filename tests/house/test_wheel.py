"""What is installed from a wheel runs without the tree that it was built from."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str, cwd: Path, path: Path | None = None) -> str:
    own = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    env = {**own, "PYTHONPATH": str(path)} if path else own
    ran = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout


def test_a_wheel_has_all_that_it_needs(tmp_path: Path) -> None:
    """Built without isolation from a copy, installed alone before the packages that are there."""
    tree, site, away = (tmp_path / name for name in ("tree", "site", "away"))
    shutil.copytree(
        ROOT / "src", tree / "src", ignore=shutil.ignore_patterns("*.egg-info", "__py*")
    )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    away.mkdir()
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    build = ("wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(tmp_path), ".")
    run(*pip, *build, cwd=tree)
    (wheel,) = tmp_path.glob("trimtab-*.whl")
    install = ("install", "--no-deps", "--no-index", "--no-compile", "--target", str(site))
    run(*pip, *install, str(wheel), cwd=away)
    code = (
        "import sys, trimtab; from importlib.resources import files; from trimtab.cli import main\n"
        f"assert trimtab.__file__.startswith({str(site)!r}), trimtab.__file__\n"
        "for name in ('serve/page.html', 'report/page.css', 'study/suites/facts.yaml', 'py.typed'):\n"
        "    assert files('trimtab').joinpath(name).read_text() or name == 'py.typed', name\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    for words, said in (
        (["--version"], "0.1.0"),
        (["methods"], "innerdpo"),
        (["fit", "dpo", "-h"], ""),
    ):
        assert said in run(sys.executable, "-c", code, *words, cwd=away, path=site)
    held = {
        p.relative_to(ROOT / "src") for p in (ROOT / "src" / "trimtab").rglob("*") if p.is_file()
    }
    held = {p for p in held if "__pycache__" not in p.parts}
    missing = {p for p in held if not (site / p).is_file()}
    assert not missing, sorted(map(str, missing))[:5]
