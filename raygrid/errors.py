"""Every error that raygrid raises on purpose.

    RaygridError                 what went wrong, what was found, what to do
    |-- UserError                bad input, found before anything is trained or paid for: exit code 2
    |   |-- StudyError           the study file or an override: key, value, allowed values
    |   |-- DataError            data that is missing, damaged, or not what the study pins
    |   |   `-- Unfetched        data that nobody here can fetch: the default study then gives way to another
    |   `-- EnvironmentError_    a cluster, device or tool that the user asked for is not there
    |-- StoreError               object storage refused, permanently: exit code 3
    |   |-- IntegrityError       bytes read do not have the sha256 that was written
    |   `-- AlreadyExists        create-if-absent found the object: not a failure, an answer
    |-- CellFailed               one cell could not be trained; its mates go on: exit code 1
    |-- Interrupted              (`train`) a cell stopped because it was told to, its progress saved; never shown
    `-- TrackError               (`track`) MLflow cannot be written; training goes on: exit code 1 of its own command
        |-- Away                 the server does not answer
        |-- Refused              it answers, and refuses
        |-- Gone                 the run was deleted
        `-- Rejected             it refuses this one write

Those whose names begin with `_` are caught, or told as what they are a kind of, by the module that raises them.

Exit codes of every command: 0 all is well; 1 the grid ended but some planned cell has no record with status ok;
2 the user's input is wrong; 3 the store is unusable; 130 interrupted (run the same command again to go on).
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable
from pathlib import Path


class RaygridError(Exception):
    """Base of all errors raised on purpose; `str(error)` is one clear message for a person."""

    exit_code = 1


class UserError(RaygridError, ValueError):
    """The input is wrong."""

    exit_code = 2


class StudyError(UserError):
    """The study file, or an override of it, is wrong."""


class DataError(UserError):
    """A data set is missing, damaged, or not the one that was pinned."""


class Unfetched(DataError):
    """No source gives a data set that is fetched."""


class EnvironmentError_(UserError):
    """Something that the command needs around it (a cluster, a GPU, a program) is not there."""


class StoreError(RaygridError):
    """The object storage failed in a way that trying again does not mend."""

    exit_code = 3


class IntegrityError(StoreError):
    """Bytes in the store are not the bytes that were written there."""


class AlreadyExists(StoreError):
    """Create-if-absent found that the object exists."""


class CellFailed(RaygridError):
    """One cell could not be trained."""


def ended_by(error: BaseException, again: str = "run the same command again to go on") -> int:
    """Say in one line what ended a command early; returns its exit code. For RaygridError, OSError (a full disk, a
    folder that may not be written) and KeyboardInterrupt."""
    if isinstance(error, KeyboardInterrupt):
        print(f"\nraygrid: interrupted; {again}", file=sys.stderr)
        return 130
    if isinstance(error, RaygridError):
        print(f"raygrid: {error}", file=sys.stderr)
        return error.exit_code
    where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
    print(f"raygrid: {where}{getattr(error, 'strerror', None) or error}; {again}", file=sys.stderr)
    return StoreError.exit_code


def expanded(path: str | Path) -> Path:
    """A path with `~` written out. Raises UserError where `~name` is nobody here."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{path}: there is no such home folder on this machine; write the path out") from None


def first_line(error: BaseException) -> str:
    """What an error of a library says, in short; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def closest(word: object, allowed: Iterable[str]) -> str:
    """The tail of an error message: ` (did you mean 'selffer'? allowed: ...)`."""
    names = [str(name) for name in allowed]
    near = difflib.get_close_matches(str(word), names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near and near[0] != word else ""
    return f" ({hint}allowed: {', '.join(names)})"
