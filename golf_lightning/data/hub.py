"""Files of a dataset repository on the Hugging Face hub: what there is, and a verified copy of each on this disk."""

import contextlib
import errno
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from golf_lightning.errors import GolfError
from golf_lightning.files import sha256_of

METADATA_TIMEOUT_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Repository:
    """A dataset repository at one revision.

    Attributes:
        name: owner/name.
        revision: branch, tag or commit.
        endpoint: address of the hub; ``None`` for the usual one.
    """

    name: str
    revision: str
    endpoint: str | None = None


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of the repository: where it is, its bytes, and its SHA-256 where the hub states one."""

    path: str
    size: int | None
    sha256: str | None

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name


def list_repository(repository: Repository) -> tuple[str, list[RemoteFile]]:
    """The commit that the revision names, and its files.

    Raises:
        GolfError: no network, or no such repository or revision.
    """
    from huggingface_hub import HfApi

    with _hub_errors(repository):
        info = HfApi(endpoint=repository.endpoint).dataset_info(
            repository.name,
            revision=repository.revision,
            files_metadata=True,
            timeout=METADATA_TIMEOUT_SECONDS,
        )
    files = [RemoteFile(f.rfilename, f.size, f.lfs.sha256 if f.lfs else None) for f in info.siblings or []]
    return info.sha or repository.revision, files


def fetch(repository: Repository, file: RemoteFile, commit: str, target: Path, downloads: Path) -> Path:
    """Where the file is on this disk: at ``target``, or else downloaded, with the size and hash that the hub states.

    Raises:
        GolfError: the download failed or is damaged.
    """
    from huggingface_hub import hf_hub_download

    if file.sha256 and target.is_file() and not _difference(target, file):
        return target
    with _hub_errors(repository):
        path = Path(
            hf_hub_download(
                repository.name,
                file.path,
                repo_type="dataset",
                revision=commit,
                local_dir=downloads,
                endpoint=repository.endpoint,
            )
        )
    if difference := _difference(path, file):
        path.unlink()
        raise GolfError(
            f"The download of {file.path} is damaged ({difference}); it was removed, run the command again."
        )
    return path


def _difference(path: Path, file: RemoteFile) -> str | None:
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        return f"{size} bytes instead of {file.size}"
    if file.sha256 is not None and sha256_of(path) != file.sha256:
        return "its SHA-256 is not the one that the hub states"
    return None


@contextlib.contextmanager
def _hub_errors(repository: Repository) -> Iterator[None]:
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # the bases hold the error class of the HTTP client, which differs between versions of the hub's package
    unreachable: tuple[type[BaseException], ...] = (OSError, *HfHubHTTPError.__bases__)
    try:
        yield
    except HFValidationError:
        raise GolfError(f"{repository.name!r} is not the name of a repository; give owner/name.") from None
    except RepositoryNotFoundError:
        raise GolfError(f"There is no public dataset repository {repository.name}; check --repository.") from None
    except RevisionNotFoundError:
        raise GolfError(f"{repository.name} has no revision {repository.revision!r}; check --revision.") from None
    except unreachable as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise GolfError(
                f"{repository.name} lacks a file that it lists ({reason}); run the command again."
            ) from None
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise GolfError(
                f"The download cannot be written ({reason}); free space or choose another folder."
            ) from None
        raise GolfError(
            f"{repository.name} cannot be reached at {repository.endpoint or 'the Hugging Face hub'} ({reason}); "
            "what was downloaded is kept, run the same command again with a network."
        ) from None
