"""A package onto the model hub: one commit with its files, its manifest and a model card, or none.

What a package of the same repository held before and this one does not is removed in the same commit; every other file of
the repository stays. Large files that an earlier, broken attempt brought there are not sent again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.publish import card
from runtime_py.errors import EdgeproofError, MachineError, UsageError
from runtime_py.hub.client import as_quiet_as_asked, network_errors, reason, require_client
from runtime_py.hub.reference import repository
from runtime_py.package import MANIFEST, Package, read, verify

if TYPE_CHECKING:
    from huggingface_hub import HfApi

ALWAYS_THERE = frozenset({".gitattributes", ".gitignore", card.NAME})
"""What the hub puts into a new repository."""

QUOTA = (402, 413, 507)
TOKEN = "set HF_TOKEN to a token with the right to write, or run `hf auth login`"


@dataclass(frozen=True)
class Destination:
    """Where a package goes.

    Attributes:
        repo_id: ``user/name``.
        private: whether nobody else may see it.
    """

    repo_id: str
    private: bool = False


@dataclass(frozen=True)
class Pushed:
    """A package on the hub.

    Attributes:
        revision: the commit that holds it.
        bytes: of its files, manifest and card not counted.
    """

    repo_id: str
    revision: str
    url: str
    files: int
    bytes: int

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "repository": self.repo_id,
            "revision": self.revision,
            "url": self.url,
            "files": self.files,
            "bytes": self.bytes,
        }


def check_destination(to: Destination) -> None:
    """Refuse what could not be pushed to, before any work.

    Raises:
        UsageError: no name of a repository, or one of somebody else, or a token that may only read.
        MachineError: no client, no token, a hub that does not answer.
    """
    repository(to.repo_id)
    require_client(f"{to.repo_id} cannot be pushed to")
    from huggingface_hub import HfApi, get_token

    if not get_token():
        raise MachineError(f"{to.repo_id} cannot be pushed to: there is no token for the hub", "HF_TOKEN", TOKEN)
    with as_quiet_as_asked(), _explained(to.repo_id):
        who = HfApi().whoami()
    owner = to.repo_id.partition("/")[0]
    mine = [str(who.get("name")), *(str(one.get("name")) for one in who.get("orgs") or [])]
    if owner.lower() not in {name.lower() for name in mine}:
        raise UsageError(
            f"this token may not write to {to.repo_id}",
            "a repository of " + ", ".join(mine),
            f"push to {mine[0]}/{to.repo_id.partition('/')[2]}, or {TOKEN}",
        )
    if ((who.get("auth") or {}).get("accessToken") or {}).get("role") == "read":
        raise UsageError(f"this token may read {to.repo_id}, not write to it", "a token with the right to write", TOKEN)


def push(folder: Path, to: Destination, force: bool = False) -> Pushed:
    """Upload a package, after comparing every file with its manifest.

    Args:
        force: push a package whose check did not pass, and into a repository that holds something else.

    Raises:
        UsageError: the package was not verified, the repository holds something else, or may not be written to.
        PackageError: it is no whole package.
        MachineError: no client, no token, no network, no room at the hub.
    """
    package = read(folder)
    _refuse_unverified(package, force)
    _refuse_card_of_its_own(package)
    verify(package)
    check_destination(to)
    with as_quiet_as_asked(), _explained(to.repo_id):
        return _uploaded(package, to, force)


def _refuse_unverified(package: Package, force: bool) -> None:
    found = package.manifest.get("verification", {})
    verdict = found.get("verdict", "not run")
    if verdict != card.PASS and not force:
        first = f", first at {found['first_failure']}" if found.get("first_failure") else ""
        raise UsageError(
            f"{package.folder} is not verified: the verdict of its check is {verdict!r}{first}",
            f"the verdict {card.PASS!r}, so that nobody runs what was not compared with its model",
            "export it with the check; `edgeproof push --force` pushes it all the same, and its card says so",
        )


def _refuse_card_of_its_own(package: Package) -> None:
    if card.NAME in {row.path for row in package.files}:
        raise UsageError(
            f"{package.folder} holds {card.NAME} of its checkpoint under the name of the hub's model card",
            "a package made by this version, which keeps it as checkpoint.README.md",
            "export it again",
        )


def _uploaded(package: Package, to: Destination, force: bool) -> Pushed:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi()
    if to.private:
        url = str(api.create_repo(to.repo_id, private=True, exist_ok=True))
    else:  # as the account's settings have it
        url = str(api.create_repo(to.repo_id, exist_ok=True))
    info = api.model_info(to.repo_id)
    if to.private and not info.private:
        raise UsageError(
            f"--private: {to.repo_id} is there already, and everybody sees it",
            "a private repository, or a name that is free",
            "make it private on its page, or choose another name",
        )
    there = [file.rfilename for file in info.siblings or []]
    names = [row.path for row in package.files]
    stale = [name for name in _held_before(api, to.repo_id, there, force) if name not in {*names, MANIFEST}]
    text = card.card(package, to.repo_id).encode("utf-8")
    commit = api.create_commit(
        to.repo_id,
        [
            *(CommitOperationAdd(name, str(package.file(name).resolve())) for name in names),
            CommitOperationAdd(MANIFEST, str((package.folder / MANIFEST).resolve())),
            CommitOperationAdd(card.NAME, text),
            *(CommitOperationDelete(name) for name in stale),
        ],
        commit_message=f"{package.family} {package.variant} for {package.target} at {package.precision}, by edgeproof",
    )
    return Pushed(to.repo_id, commit.oid, url, len(names) + 2, package.size)


def _held_before(api: HfApi, repo_id: str, there: list[str], force: bool) -> list[str]:
    """The files that a package in the repository brought there.

    Raises:
        UsageError: the repository holds something else, unless forced.
    """
    if MANIFEST in there:
        try:
            earlier = read(Path(api.hf_hub_download(repo_id, MANIFEST)).parent)
            return [row.path for row in earlier.files if row.path in there]
        except EdgeproofError:
            pass  # somebody else's manifest.json: not a package, so the question below
    elif not set(there) - ALWAYS_THERE:
        return []
    if force:
        return []
    raise UsageError(
        f"{repo_id} holds something else: " + ", ".join([name for name in there if name not in ALWAYS_THERE][:5]),
        "an empty repository, or one with a package",
        "choose another name; --force adds the package to what is there",
    )


@contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    """What the hub and the way to it refuse, in three parts."""
    from huggingface_hub import errors

    try:
        yield
    except EdgeproofError:
        raise
    except errors.OfflineModeIsEnabled as error:
        raise _away(repo_id, reason(error), "unset HF_HUB_OFFLINE and push again") from error
    except errors.HfHubHTTPError as error:
        raise _refused(repo_id, error) from error
    except network_errors() as error:
        raise _away(repo_id, reason(error), "push again when the hub can be reached: the package is whole") from error
    except (RuntimeError, ValueError) as error:  # of the client: an upload that failed, a card that the hub refuses
        raise _away(repo_id, reason(error.__cause__ or error), "push again; -vv shows what the client says") from error


def _away(repo_id: str, why: str, what_to_do: str) -> MachineError:
    return MachineError(f"{repo_id} cannot be pushed to: {why}", "the model hub within reach", what_to_do)


def _refused(repo_id: str, error: Any) -> EdgeproofError:
    """An answer of the hub that is no success."""
    code = error.response.status_code
    said = str(getattr(error, "server_message", None) or reason(error))
    words = said.lower()
    if code in QUOTA or ("storage" in words and ("limit" in words or "quota" in words)):
        return MachineError(
            f"{repo_id} has no room at the hub: {said}",
            "storage for the whole package; nothing of it is visible yet",
            "free some space in the account, or push to another one",
        )
    if code == 401:
        return MachineError(
            f"{repo_id} cannot be pushed to: the hub does not know this token", "a token that is valid", TOKEN
        )
    if code in {403, 404}:
        return UsageError(
            f"this token may not write to {repo_id}: {said}", "the right to write there", f"{TOKEN}, or choose another name"
        )
    return _away(repo_id, f"it answers {code}: {said}", "push again later: the package is whole")
