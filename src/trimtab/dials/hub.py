"""A dial as a model repository of the Hugging Face Hub."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab import models
from trimtab.dials.card import HUB, KNOWN, Known, card, without_places
from trimtab.errors import DialError

if TYPE_CHECKING:
    from trimtab.dials.dial import Dial


def check(repo_id: str, base: str, token: str | None = None) -> None:
    """What can be known before anything is sent.

    Raises:
        DialError: no Hub id, no token, no network wanted, or a base that nobody else has.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise DialError(f"{repo_id!r}: no Hub id, expected OWNER/NAME ({error})") from error
    if models.on_hub(base) is None:
        raise DialError(
            f"the dial's base model is {base or 'unnamed'!r}, which nobody else can load: name the same "
            "weights on the Hub (--base OWNER/NAME, base=)"
        )
    if constants.HF_HUB_OFFLINE:
        raise DialError("HF_HUB_OFFLINE is set: nothing can be uploaded")
    if not (token or get_token()):
        raise DialError("no token of the Hub: `hf auth login`, or set HF_TOKEN")


def push(
    dial: Dial,
    repo_id: str,
    *,
    private: bool | None = None,
    base: str = "",
    licence: str = "",
    verdicts: str = "",
    token: str | None = None,
    **how: Any,
) -> Any:
    """Upload a dial, with a full card, to a repository that is made where there is none. Folders of this
    machine are taken out of what is uploaded.

    Args:
        repo_id: OWNER/NAME.
        private: whether a new repository is; None: as its owner's are by default.
        base: the base model on the Hub, where the dial was made on a folder here.
        licence: the dial's, by the Hub's name of it.
        verdicts: a section of the card on comparisons.
        token: of the Hub; by default the one that was logged in with.
        how: goes to `HfApi.upload_folder` (`revision`, `create_pr`, `commit_message`).

    Raises:
        DialError: as `check`, or the Hub refuses.
    """
    from huggingface_hub import HfApi

    check(repo_id, base or dial.info.base_model, token)
    api, mine = HfApi(token=token), copy.copy(dial)
    note = dataclasses.replace(dial.info, base_model=base or dial.info.base_model)
    mine.info = type(note)(**without_places(dataclasses.asdict(note)))
    known = {
        spec: _of_hub(api, found[1])
        for spec in mine.info.data
        if (found := HUB.match(spec)) and spec.partition(":")[0] not in KNOWN
    }

    def upload() -> Any:
        place = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as temporary:
            text = card(mine, place, licence, verdicts, known)
            folder = mine.save_pretrained(Path(temporary) / "dial", {"README.md": text})
            return api.upload_folder(repo_id=place, folder_path=folder, **how)

    return _asked(upload, repo_id)


def _of_hub(api: Any, name: str) -> Known:
    """Licence and languages that the Hub's card of a data set gives."""
    try:
        said = api.dataset_info(name).card_data
    except Exception:  # private, gone, or not to be reached: then nothing is known
        return "", ()
    licence, tags = (getattr(said, key, None) or () for key in ("license", "language"))
    plain = licence if isinstance(licence, str) else ", ".join(licence)
    return plain, (tags,) if isinstance(tags, str) else tuple(tags)


def _asked(what: Callable[[], Any], repo_id: str) -> Any:
    try:
        return what()
    except DialError:
        raise
    except Exception as error:  # the Hub's errors are many; each means that it did not take it
        said = " ".join(str(error).split())
        raise DialError(f"{repo_id}: the Hub did not take it: {said[:400]}") from error
