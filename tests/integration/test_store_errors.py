"""The seam to the driver: each of its errors means one of three things to the rooms above, and none passes by."""

import asyncpg
import pytest
from asyncpg import exceptions as driver

from mailkeep.store.errors import StoreError, StoreRefusedError, StoreUnavailableError, translated

IN_DOUBT = [
    TimeoutError(),
    ConnectionResetError(),
    OSError("network is unreachable"),
    driver.ConnectionDoesNotExistError("closed in the middle of operation"),
    driver.ConnectionFailureError("08006"),
    driver.AdminShutdownError("57P01"),
    driver.CrashShutdownError("57P02"),
    driver.InterfaceError("pool is closing"),
    driver.InternalClientError("unexpected message"),
    driver.StatementCompletionUnknownError("40003"),
    driver.PostgresIOError("58030"),
    driver.InternalServerError("XX000"),
]
"""The statement may have been committed."""
NOT_COMMITTED = [
    driver.CannotConnectNowError("57P03"),
    driver.TooManyConnectionsError("53300"),
    driver.DiskFullError("53100"),
    driver.OutOfMemoryError("53200"),
    driver.ReadOnlySQLTransactionError("25006"),
    driver.SerializationError("40001"),
    driver.DeadlockDetectedError("40P01"),
    driver.LockNotAvailableError("55P03"),
    driver.QueryCanceledError("57014"),
    driver.InvalidPasswordError("28P01"),
    driver.InvalidAuthorizationSpecificationError("28000"),
    driver.InvalidCatalogNameError("3D000"),
]
"""Nothing was written, and it may work later: a failover, a lock, a full disk, a password that is being changed."""
REFUSED = [
    driver.UniqueViolationError("23505"),
    driver.CheckViolationError("23514"),
    driver.NotNullViolationError("23502"),
    driver.NumericValueOutOfRangeError("22003"),
    driver.CharacterNotInRepertoireError("22021"),
    driver.UntranslatableCharacterError("22P05"),
]
"""The data itself can't be stored."""


def _name(fault):
    return type(fault).__name__


@pytest.mark.parametrize("fault", IN_DOUBT, ids=_name)
def test_a_lost_answer_is_in_doubt(fault):
    """Where the answer was lost the commit may have happened: whoever repeats it has to ask first."""
    with pytest.raises(StoreUnavailableError) as caught, translated():
        raise fault
    assert caught.value.in_doubt


@pytest.mark.parametrize("fault", NOT_COMMITTED, ids=_name)
def test_a_refusal_of_the_server_is_sure(fault):
    """Where the server itself said no, nothing was written, and the same call may be repeated."""
    with pytest.raises(StoreUnavailableError) as caught, translated():
        raise fault
    assert not caught.value.in_doubt


@pytest.mark.parametrize("fault", REFUSED, ids=_name)
def test_bad_data_is_not_an_outage(fault):
    """What the server refuses as data must not be repeated for ever; its text may hold an address and is left out."""
    with pytest.raises(StoreRefusedError) as caught, translated():
        raise fault
    assert str(fault) not in str(caught.value)


@pytest.mark.parametrize("fault", [driver.UndefinedTableError("42P01"), ZeroDivisionError("ours")], ids=_name)
def test_our_own_faults_pass_through(fault):
    """A statement that does not fit the schema is a fault of ours and is seen as one."""
    with pytest.raises(type(fault)), translated():
        raise fault


def test_every_error_has_one_root():
    """Who guards against the store guards against one class."""
    assert issubclass(StoreUnavailableError, StoreError)
    assert issubclass(StoreRefusedError, StoreError)
    assert not issubclass(StoreError, asyncpg.PostgresError)
