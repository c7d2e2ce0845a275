"""The command line: starting, helping, flags and files of flags, and each verb on a tiny model."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pytest
import tyro
from rich.console import Console
from tyro.conf import UseAppendAction

import trimtab as package
from helpers_study import at_home, rows, trimtab, write_lines
from trimtab.cli import VERBS, main
from trimtab.cli.parse import parse
from trimtab.dials import Dial
from trimtab.errors import ConfigError
from trimtab.training import METHODS

SCRIPT = Path(sys.executable).with_name("trimtab")


def process(
    *words: str, seconds: float = 60, **options: object
) -> subprocess.CompletedProcess[str]:
    """The installed command in a process of its own."""
    return subprocess.run(
        [str(SCRIPT), *words], capture_output=True, text=True, timeout=seconds, **options
    )  # type: ignore[call-overload]


# ---- starting and helping -----------------------------------------------------------------------


def test_help_is_there_within_half_a_second():
    times = []
    for _ in range(3):  # the best of three: the machine may be busy with other things
        started = time.perf_counter()
        done = process("--help")
        times.append(time.perf_counter() - started)
        assert done.returncode == 0
    assert min(times) < 0.5, times
    for verb, what in VERBS.items():
        assert re.search(rf"^  {verb} +{re.escape(what)}$", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    "words", [["--help"], ["methods"], ["fit", "--help"], ["fit", "hs-ether-rank", "-h"],
              ["compare", "--jobs", "2", "--help"], ["anchor", "run", "--help"]]
)  # fmt: skip
def test_help_imports_no_torch(words):
    code = (
        "import sys; from trimtab.cli import main\n"
        f"try: main({words})\n"
        "except SystemExit as stop: assert not stop.code\n"
        "sys.exit('torch' in sys.modules or 'tyro' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_python_m_and_version():
    for words in (["--version"], ["-V"]):
        done = subprocess.run(
            [sys.executable, "-m", "trimtab", *words], capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stdout) == (0, package.__version__ + "\n")
    assert trimtab().out == trimtab("--help").out


@pytest.mark.parametrize("verb", [*VERBS, "fit dpo", "fit innerdpo", "fit mean", "fit pca"])
def test_every_verb_helps(verb):
    done = trimtab(*verb.split(), "--help")
    assert done.code == 0
    assert done.err == ""
    if verb != "methods":
        assert done.out.startswith(f"usage: trimtab {verb}")
        assert max(map(len, done.out.splitlines())) <= 100
    if verb == "fit dpo":
        flags = ["--objective.beta", "--dial.rank", "--train.pairs-per-step", "--seed", "--pairs"]
        assert all(flag in done.out for flag in flags)
        assert "whatever the microbatches" in " ".join(done.out.split()), (
            "a field's docstring is its help"
        )


def test_the_readme_says_what_every_verb_is_for():
    text = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    named = " ".join(re.findall(r"^\| (`[^|]*`) \| ", text, re.MULTILINE))
    assert [verb for verb in VERBS if f"`{verb}`" not in named] == []


def test_methods_have_a_line_each():
    done = trimtab("methods", "--all")
    assert done.code == 0
    listed = re.findall(r"^  ([\w-]+) +(.+)$", done.out, re.MULTILINE)
    assert sorted(listed) == sorted((m.name, m.what) for m in METHODS.values())
    few = re.findall(r"^  ([\w-]+) ", trimtab("methods", "hs-svd").out, re.MULTILINE)
    assert few == [name for name in METHODS if name.startswith("hs-svd")]
    assert "no name begins with 'hx'" in trimtab("methods", "hx").err


def test_the_grid_of_spaces_and_losses_is_one_line(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for words in (["methods"], ["fit", "--help"]):
        found = trimtab(*words).out
        (line,) = re.findall(r"^  hs-.*$", found, re.MULTILINE)
        for name in METHODS:
            if name.startswith("hs-"):
                assert all(re.search(rf"\b{part}\b", line) for part in name.split("-")), name
            elif not name.startswith("side-"):
                assert re.search(rf"^  {name} ", found, re.MULTILINE), name


@pytest.mark.parametrize("width", [60, 80, 137])
def test_help_is_as_wide_as_the_terminal(monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    for words in (["fit", "dph", "--help"], ["fit", "fisher_steer_cov_reg1", "--help"]):
        widest = max(map(len, trimtab(*words).out.splitlines()))
        assert width - 12 < widest <= width


def test_output_may_be_cut_off():
    """`trimtab methods | head -1` says nothing about broken pipes."""
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [str(SCRIPT), "methods"], stdout=write, stderr=subprocess.PIPE, text=True, timeout=60
        )
    finally:
        os.close(write)
    assert done.stderr == ""


# ---- flags and files of flags -------------------------------------------------------------------


@dataclass(frozen=True)
class Inner:
    """A group of flags."""

    rate: float = 0.1
    """How fast."""
    steps_per_turn: int = 2
    """How many."""
    loud: bool = False
    """Whether."""


@dataclass(frozen=True)
class Flat:
    """Flags without a prefix."""

    rank: int = 4
    """How wide."""
    inner: Inner = field(default_factory=Inner)
    """A group within."""


@dataclass(frozen=True)
class Flags:
    """A little of everything."""

    out: Path
    """Where."""
    alpha: tuple[float, ...] = (1.0,)
    """Several numbers."""
    dial: Annotated[tuple[str, ...], UseAppendAction] = ()
    """Repeats."""
    limit: int | None = None
    """A number or nothing."""
    quiet: bool = False
    """A switch."""
    train: Inner = field(default_factory=Inner)
    """A group."""
    recipe: Annotated[Flat, tyro.conf.arg(name="")] = field(default_factory=Flat)


def flags(*words: str, file: Path | None = None) -> Flags:
    config = [] if file is None else ["--config", str(file)]
    return parse(Flags, [*config, *words], verb="test", about="A test.")


def test_numbers_with_a_minus_are_values():
    assert flags("--out", "x", "--alpha", "-1", "0", "1e-1", "-.5").alpha == (-1.0, 0.0, 0.1, -0.5)
    assert flags("--alpha", "-1", "--out", "x").alpha == (-1.0,)


@pytest.mark.parametrize("flag", ["--train.steps_per_turn", "--train.steps-per-turn"])
def test_underscores_and_hyphens(flag):
    assert flags("--out", "x", flag, "5").train.steps_per_turn == 5
    assert flags("--out", "x", f"{flag}=5").train.steps_per_turn == 5


FILE = """\
out: here
alpha: [-1, 0.5]
dial: [a, b]
limit: 3
quiet: true
rank: 8
train:
  rate: 1e-4
  steps-per-turn: 7
  loud: true
inner.rate: 2
"""


def test_a_file_holds_the_same_keys(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(FILE)
    found = flags(file=file)
    assert found == Flags(
        out=Path("here"),
        alpha=(-1.0, 0.5),
        dial=("a", "b"),
        limit=3,
        quiet=True,
        train=Inner(rate=1e-4, steps_per_turn=7, loud=True),
        recipe=Flat(rank=8, inner=Inner(rate=2.0)),
    )
    assert isinstance(found.out, Path)
    assert flags(f"--config={file}") == found
    assert flags("--config", str(file)) == found


def test_flags_go_before_the_file(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(FILE)
    typed = ["--alpha", "2", "--dial", "c", "--no-quiet", "--train.steps_per_turn=9"]
    found = flags(*typed, "--train.no-loud", "--inner.rate", "3", "--out", "there", file=file)
    assert found == Flags(
        out=Path("there"),
        alpha=(2.0,),
        dial=("c",),
        limit=3,
        quiet=False,
        train=Inner(rate=1e-4, steps_per_turn=9, loud=False),
        recipe=Flat(rank=8, inner=Inner(rate=3.0)),
    )


def test_an_empty_file_and_empty_values(tmp_path):
    file = tmp_path / "a.yaml"
    for text in ("", "limit:\n", "# nothing\n"):
        file.write_text(text)
        assert flags("--out", "x", file=file) == Flags(out=Path("x"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sede: 1", "a.yaml: unknown key 'sede'"),
        ("limits: 1", "unknown key 'limits'; did you mean 'limit'"),
        ("train: {rat: 1}", "unknown key 'train.rat'; did you mean 'train.rate'"),
        ("train: 3", "unknown key 'train'; it has train.rate"),
        ("limit: {a: 1}", "unknown key 'limit.a'"),
        ("limit: abc", "--limit: invalid literal"),
        ("alpha: [[1]]", "alpha: expected a value or a list"),
        ("- a", "expected keys and values"),
        ("a: [", "not YAML"),
    ],
)
def test_a_file_that_is_wrong(tmp_path, text, message):
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        flags("--out", "x", file=file)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"none.yaml: No such file"):
        flags(file=tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="expected a YAML file"):
        flags("--out", "x", "--config")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Missing from trimtab test: --out PATH"),
        (["--out", "x", "--limit", "abc"], "Error parsing --limit: invalid literal for int() with"),
        (["--out", "x", "--lamit", "2"], "Unrecognized options: --lamit, 2; did you mean --limit?"),
        (["--out"], "Missing value for argument '--out'"),
        (["--out", "x", "y"], "Unrecognized options: y"),
    ],
)
def test_a_wrong_command_line_is_one_line(words, message):
    with pytest.raises(ConfigError) as caught:
        flags(*words)
    assert str(caught.value).startswith(message)
    assert str(caught.value).endswith("(see trimtab test --help)")
    assert "\n" not in str(caught.value)


def test_a_wrong_command_line_is_one_line_where_no_box_can_be_drawn():
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "80"}
    done = process("demo", "--quik", env=env)
    assert done.stderr == (
        "error: Unrecognized options: --quik; did you mean --quick? (see trimtab demo --help)\n"
    )


def test_help_is_not_an_error(capsys):
    with pytest.raises(SystemExit) as stopped:
        flags("--help")
    assert not stopped.value.code
    assert "How fast." in capsys.readouterr().out


# ---- the verbs on a tiny model ------------------------------------------------------------------


@pytest.fixture(scope="module")
def here(tmp_path_factory, tiny, tokenizer) -> Iterator[Path]:
    """A folder with a tiny model, pairs, and this module's cache; the terminal is 100 wide."""
    folder = tmp_path_factory.mktemp("cli")
    with at_home(folder, tiny("llama"), tokenizer) as patch:
        patch.setenv("COLUMNS", "100")
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield folder


@pytest.fixture(scope="module")
def fitted(here) -> tuple[Path, str]:
    """A dial made by `trimtab fit dpo`, and what was said."""
    done = trimtab(
        *("fit", "dpo", "--model", here / "model", "--pairs", f"jsonl:{here}/train.jsonl"),
        *("--out", here / "dpo", "--train.pairs_per_step", 4, "--train.epochs", 1, "--limit", 8),
    )
    assert done.code == 0, done.err
    return here / "dpo", done.out + done.err


def test_fit(here, fitted):
    out, said = fitted
    dial = Dial.from_pretrained(out)
    assert dial.info.method == "dpo"
    assert dial.info.config["train"]["pairs_per_step"] == 4
    assert dial.info.config["limit"] == 8
    assert len((out / "training.jsonl").read_text().splitlines()) == 2
    assert f"saved: {out} (adapter dial, " in said
    assert (
        f'trimtab generate --model {here}/model --dial {out} --alpha -1 0 1 --prompt "..."' in said
    )
    assert "Warning" not in said
    assert "it/s" not in said, "no bars of others"


@pytest.mark.parametrize(
    ("method", "steps"),
    [
        *(("dpo", 2), ("hs-ortho-mse", 2), ("projgrad", 2), ("rotation", 2), ("genarm", 2)),
        *(("iav", 2), ("dph", 2), ("mean", 0), ("fisher", 0)),
    ],
)
def test_a_dry_run_of_fit_says_what_it_takes_and_writes_nothing(here, fitted, method, steps):
    train = ["--train.pairs_per_step", 4, "--train.epochs", 1] if steps else []

    def there() -> set[Path]:  # notes of the digests of a model's files may be made on loading
        return {path for path in here.rglob("*") if "digests" not in path.parts}

    before = there()
    done = trimtab(
        *("fit", method, "--model", here / "model", "--pairs", f"jsonl:{here}/train.jsonl"),
        *("--out", here / "dry" / method, "--limit", 8, *train, "--dry-run", "--quiet"),
    )
    assert done.code == 0, done.err
    assert there() == before
    said = re.fullmatch(
        rf"{method}: (\d+ steps|no training steps, one pass) over (\d+) pairs, (\S+) .*\n"
        r"  minutes +about (\S+) .*\n  memory +about (\S+) GiB.*\n  disk +at most (\S+) MiB.*\n",
        done.out,
    )
    assert said, done.out
    assert said[1] == (f"{steps} steps" if steps else "no training steps, one pass")
    assert all(0 < float(number) < 60 for number in said.groups()[3:])
    if method == "dpo":  # as it was then
        parameters = sum(t.numel() for t in Dial.from_pretrained(fitted[0]).tensors().values())
        assert (said[1], said[3]) == ("2 steps", f"{parameters:,}")


def test_fit_again_does_nothing(here, fitted, monkeypatch):
    done = trimtab(
        *("fit", "dpo", "--model", here / "model", "--pairs", f"jsonl:{here}/train.jsonl"),
        *("--out", here / "dpo", "--train.pairs-per-step", 4, "--train.epochs", 1, "--limit", 8),
    )
    assert done.code == 0
    assert "nothing to do" in done.err


def test_a_dial_is_called_by_the_method_that_was_asked_for(here, tmp_path):
    """Also where two names stand for equal recipes; the same command again finds it."""
    words = ["fit", "hs-none-innerdpo", "--model", here / "model", "--out", tmp_path / "dial"]
    words += ["--pairs", f"jsonl:{here}/train.jsonl", "--train.max-steps", 1]
    assert trimtab(*words).code == 0
    assert Dial.from_pretrained(tmp_path / "dial").info.method == "hs-none-innerdpo"
    again = trimtab(*words)
    assert again.code == 0, again.err
    assert "nothing to do" in again.err


def test_fit_from_a_file(here, tmp_path):
    file = tmp_path / "fit.yaml"
    pairs = f"jsonl:{here}/train.jsonl"
    file.write_text(
        f"model: {here}/model\npairs: {pairs}\nout: {tmp_path}/dial\nseed: 3\nquiet: true\n"
        "objective: {beta: 0.5}\ndial:\n  rank: 2\ntrain.epochs: 1\n"
    )
    done = trimtab("fit", "dpo", "--config", file, "--seed", 4)
    assert done.code == 0, done.err
    assert done.err == "", "quiet"
    info = Dial.from_pretrained(tmp_path / "dial").info
    assert (info.seed, info.config["objective"]["beta"]) == (4, 0.5)
    assert (info.config["dial"]["rank"], info.config["train"]["epochs"]) == (2, 1.0)


def test_generate(here, fitted):
    words = ["generate", "--model", here / "model", "--dial", fitted[0], "--max-new-tokens", 4]
    done = trimtab(*words, "--alpha", "-1", "0", "1", "--prompt", "The sky is", "--prompt", "Two")
    told = "prompts go in as plain text, as the dial dpo was fitted (--prompt-style to change)\n"
    told += f"loading {here}/model\n"
    assert (done.code, done.err) == (0, told)
    assert re.findall(r"^alpha (\S+):", done.out, re.MULTILINE) == ["-1", "0", "1"] * 2
    lines = [line for line in done.out.splitlines() if line in ("The sky is", "Two")]
    assert lines == ["The sky is", "Two"]
    file = write_lines(here / "prompts.txt", [])
    file.write_text("The sky is\n\nTwo\n")
    assert trimtab(*words, "--alpha", "-1", "0", "1", "--prompts", file).out == done.out
    bare = trimtab("generate", "--model", here / "model", "--max-new-tokens", 4, "--prompt", "Two")
    assert bare.out in done.out + bare.out
    assert re.findall(r"alpha (\S+):", bare.out) == ["0"]


def test_generate_with_several_dials(here, fitted):
    words = ["generate", "--model", here / "model", "--prompt", "Two", "--max-new-tokens", 4]
    once, twice = (
        trimtab(*words, *["--dial", fitted[0]] * n, "--alpha", a) for n, a in ((1, 50), (2, 25))
    )
    assert once.code == twice.code == 0
    assert once.out.partition(": ")[2] == twice.out.partition(": ")[2]


@pytest.fixture(scope="module")
def evaluated(here, fitted) -> tuple[Path, str, str]:
    """A run of `trimtab evaluate`."""
    done = trimtab(
        *("evaluate", "--model", here / "model", "--dial", fitted[0], "--dial", fitted[0]),
        *("--suite", here / "suite.yaml", "--pairs", f"more=jsonl:{here}/oos.jsonl"),
        *("--alpha", -1, 0, 1, "--limit", 4, "--out", here / "evaluated"),
    )
    assert done.code == 0, done.err
    return here / "evaluated", done.out, done.err


def test_evaluate(evaluated):
    run, out, err = evaluated
    study = json.loads((run / "study.json").read_text())
    assert list(study["methods"]) == ["dpo", "dpo-2"]
    assert study["command"].startswith("trimtab evaluate --model ")
    assert {name: s["items"] for name, s in study["splits"].items()} == {
        "test": 4,
        "oos": 4,
        "more": 4,
    }
    by_alpha, _, _ = out.partition("Percent, dials at α = 1, with 95 % intervals.")
    assert by_alpha != out
    assert re.findall(r"^ dpo-2 +(\S+) ", by_alpha, re.MULTILINE) == ["-1", "1"]
    assert out.rstrip().endswith(f"page: {run}/report.html")
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= 100
    assert "Warning" not in err


def test_report(evaluated):
    run, out, _ = evaluated
    (run / "report.html").unlink()
    done = trimtab("report", run)
    assert (done.code, done.err) == (0, "")
    assert out.endswith(done.out)
    assert (run / "report.html").is_file()


def test_pages_of_a_folder_of_runs(here, evaluated, tmp_path):
    for name in ("first", "v0.2"):
        (tmp_path / name).mkdir()
        for file in ("study.json", "results.jsonl", "verdicts.jsonl"):
            (tmp_path / name / file).write_bytes((evaluated[0] / file).read_bytes())
    done = trimtab("report", tmp_path)
    assert done.out.split() == [f"{tmp_path}/first.md", f"{tmp_path}/v0.2.md"]
    assert (tmp_path / "v0.2.md").read_text().startswith("# ")


@pytest.mark.parametrize("width", [80, 100])
def test_inspect_a_dial(fitted, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    done = trimtab("inspect", fitted[0])
    assert (done.code, done.err) == (0, "")
    assert max(map(len, done.out.splitlines())) <= width
    assert "…" not in done.out
    for text in (
        "dpo (adapter, ",
        "base model",
        "seed",
        "objective.beta 0.1",
        "dial.rank 16",
        "torch",
    ):
        assert text in done.out


@pytest.mark.parametrize("width", [80, 100])
def test_inspect_pairs(here, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    done = trimtab(
        *("inspect", f"jsonl:{here}/train.jsonl", "--model", here / "model"),
        *("--other", f"jsonl:{here}/test.jsonl"),
    )
    assert (done.code, done.err) == (0, "")
    assert "10 in 10 items" in done.out
    assert max(map(len, done.out.splitlines())) <= width


def test_pairs_left_out_are_told(here, tmp_path, monkeypatch):
    """A published data set with an empty answer: told by fit and by evaluate, in one line."""
    folder = tmp_path / "genies" / "distributions" / "odd"
    folder.mkdir(parents=True)
    items = [
        {"prompt": row["prompt"], "responses": {row["chosen"]: 1.0, row["rejected"]: 0.0}}
        for row in rows(5, "odd")
    ]
    items[2]["responses"] = {" fine.": 1.0, "": 0.0}
    (folder / "train.json").write_text(json.dumps(items))
    spec, told = "genies:odd/train", "genies:odd/train: 1 pairs with an empty answer left out"
    data = ["--data-root", tmp_path, "--model", here / "model"]
    done = trimtab("fit", "mean", "--pairs", spec, "--out", tmp_path / "dial", *data)
    assert done.err.splitlines().count(told) == 1, done.err
    done = trimtab("evaluate", "--pairs", f"odd={spec}", "--out", tmp_path / "run", *data)
    assert done.err.splitlines().count(told) == 1, done.err


def test_progress_is_silent_when_quiet_and_plain_elsewhere(capsys, monkeypatch):
    from trimtab import progress

    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    for quiet in (True, False):
        loud = progress.Progress(quiet)
        loud.say("news")
        with loud.bar("reading", 4, "rows") as update:
            update(2, 4)
        said = capsys.readouterr()
        assert said.out == ""
        wanted = "" if quiet else "news\nreading: 2/4 rows, 0 s left\n"
        assert said.err == wanted


def test_progress_is_a_bar_on_a_terminal(monkeypatch, capsys):
    from trimtab import progress

    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr(
        "rich.console.Console", lambda stderr: Console(stderr=True, force_terminal=True, width=100)
    )
    with progress.Progress().bar("reading", 4, "rows") as update:
        update(2, 4)
        time.sleep(0.15)
    said = capsys.readouterr().err
    assert "reading" in said
    assert "2/4" in said


def test_main_returns_to_the_shell():
    """The verbs run in this process in these tests; once through the installed command."""
    words = ["anchor", "list"]
    done = process(*words, env={**os.environ, "COLUMNS": "100"})
    assert done.returncode == 0
    assert done.stdout.split() == trimtab(*words).out.split()
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 0
