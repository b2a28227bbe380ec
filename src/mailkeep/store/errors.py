"""What the store raises, and the one seam where the driver's errors become ours.

StoreError
├── StoreUnavailableError   PostgreSQL is away, restarting, full, read-only or too slow; nothing was lost
│   └── .in_doubt           True: the statement may have been committed; ask by id before repeating it
└── StoreRefusedError       PostgreSQL refused the data itself; repeating it cannot help
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import asyncpg


class StoreError(Exception):
    """Something is wrong with the store."""


class StoreUnavailableError(StoreError):
    """PostgreSQL can't answer now. With `in_doubt` the last statement may have been committed all the same."""

    def __init__(self, message: str, *, in_doubt: bool) -> None:
        super().__init__(message)
        self.in_doubt = in_doubt


class StoreRefusedError(StoreError):
    """PostgreSQL refused the data."""


ROLLED_BACK: Final = (
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.LockNotAvailableError,
)
"""PostgreSQL did nothing of the statement because another stood in its way: run again, it may do all of it."""
_REFUSED = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)
_SURELY_NOT_COMMITTED = (
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.InvalidAuthorizationSpecificationError,  # a password that is being changed
    asyncpg.InsufficientPrivilegeError,  # a right that is not granted yet
    asyncpg.InvalidCatalogNameError,  # a database that is being made or renamed
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InsufficientResourcesError,  # disk full, out of memory
    asyncpg.TransactionRollbackError,  # serialization failure, deadlock
    asyncpg.LockNotAvailableError,
    asyncpg.QueryCanceledError,
    asyncpg.ObjectNotInPrerequisiteStateError,
)
_IN_DOUBT = (
    TimeoutError,
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.PostgresSystemError,  # the server's disk
    asyncpg.InternalServerError,  # of the server, or of a pooler before it
    asyncpg.InternalClientError,
    asyncpg.InterfaceError,
)


@contextmanager
def translated(*, sent: bool = True) -> Iterator[None]:
    """Turn the driver's exceptions into `StoreError`s; programming faults pass through untouched.

    Before a statement was `sent` (no connection could be had) nothing is in doubt.
    """
    try:
        yield
    except _REFUSED as fault:
        raise StoreRefusedError(type(fault).__name__) from fault
    except asyncpg.StatementCompletionUnknownError as fault:  # to the driver a kind of rollback
        raise _unavailable(fault, in_doubt=True) from fault
    except _SURELY_NOT_COMMITTED as fault:
        raise _unavailable(fault, in_doubt=False) from fault
    except _IN_DOUBT as fault:
        raise _unavailable(fault, in_doubt=sent) from fault


def _unavailable(fault: Exception, *, in_doubt: bool) -> StoreUnavailableError:
    words = str(fault)
    if isinstance(fault, ConnectionError) and fault.errno is not None:
        words = os.strerror(fault.errno).lower()  # asyncio tells of it with a tuple that is its address
    return StoreUnavailableError(f"PostgreSQL: {words or type(fault).__name__}", in_doubt=in_doubt)
