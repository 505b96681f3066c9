import pytest

from cryobench.orchestrator.formatting import masked


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://user:secret@host:5000", "http://user:***@host:5000"),
        ("https://user:s%40cr%2Fet@host/path", "https://user:***@host/path"),
        ("http://user:se@cr/et@host:5000/path", "http://user:***@host:5000/path"),
        ("http://:secret@host", "http://:***@host"),
        ("postgresql+psycopg2://user:secret@host:5432/db", "postgresql+psycopg2://user:***@host:5432/db"),
        ("postgresql://host/db?user=me&password=secret&x=1", "postgresql://host/db?user=me&password=***&x=1"),
        ("mssql+pyodbc:///?odbc_connect=PWD%3Dsecret", "mssql+pyodbc:///?odbc_connect=***"),
        ("http://host:5000", "http://host:5000"),
        ("http://host:5000/a", "http://host:5000/a"),
        ("http://user@host:5000", "http://user@host:5000"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
        ("sqlite:///C:/a@b.db", "sqlite:///C:/a@b.db"),
    ],
)
def test_a_password_in_a_uri_is_never_shown(uri: str, shown: str) -> None:
    assert masked(uri) == shown
    assert masked(f"GET {uri} failed, then {uri} too") == f"GET {shown} failed, then {shown} too"


def test_a_password_is_not_shown_where_a_library_decoded_it() -> None:
    uri = "postgresql://user:s%40cr%2Fet@host/db"
    assert masked("no entry for s@cr/et, s%40cr%2Fet", uri) == "no entry for ***, ***"
