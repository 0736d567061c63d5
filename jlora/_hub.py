"""Repositories on the Hugging Face hub: ``owner/name`` or ``owner/name@revision``.

Everything goes through huggingface_hub, so that HF_TOKEN, HF_HUB_OFFLINE and HF_HOME hold.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jlora._requires import requires
from jlora._safetensors import Header
from jlora._words import one_line

_ID = re.compile(r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w./-]+))?")


class UnreachableError(ValueError):
    """The hub has no such repository, or it can't be reached."""


class HubId(NamedTuple):
    """A repository, and which state of it."""

    name: str  # owner/name
    revision: str | None  # None: the newest


def parsed(text: str) -> HubId | None:
    """The repository that the text names, or None where it can't be one: a path, above all."""
    found = _ID.fullmatch(text)
    return None if found is None else HubId(found["name"], found["revision"])


def is_id(text: str) -> bool:
    """Whether the text can be a repository's name."""
    return parsed(text) is not None


def snapshot(hub_id: str, patterns: Sequence[str]) -> Path:
    """The local folder with the repository's files of these patterns; fetches what is not there.

    Raises:
        UnreachableError: when it can't be had, with the reason in one line.
        ValueError: when huggingface_hub is not installed.
    """
    hub, found = requires("huggingface_hub"), _required(hub_id)
    try:
        return Path(
            hub.snapshot_download(
                found.name, revision=found.revision, allow_patterns=list(patterns)
            )
        )
    except Exception as error:  # a dozen types, of several libraries
        lines = str(error).splitlines() or [""]
        raise UnreachableError(one_line(f"{type(error).__name__}: {lines[0]}", 300)) from None


def headers(hub_id: str) -> dict[str, Header]:
    """Every tensor of the repository's weights and what its file says of it; none is fetched.

    Raises:
        UnreachableError: when they can't be had, with the reason in one line.
        ValueError: when huggingface_hub is not installed.
    """
    hub, found = requires("huggingface_hub"), _required(hub_id)
    try:
        said = hub.get_safetensors_metadata(found.name, revision=found.revision)
    except Exception as error:  # a dozen types, of several libraries
        raise UnreachableError(one_line(f"{type(error).__name__}: {error}", 300)) from None
    return {
        name: Header(tuple(tensor.shape), tensor.dtype, Path(file))
        for file, content in said.files_metadata.items()
        for name, tensor in content.tensors.items()
    }


def _required(hub_id: str) -> HubId:
    if (found := parsed(hub_id)) is None:
        raise UnreachableError(f"expected owner/name or owner/name@revision, got {hub_id!r}")
    return found
