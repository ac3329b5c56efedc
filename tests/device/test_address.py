import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoprune.device.address import Address, split_address
from autoprune.device.connect import make_target
from autoprune.device.target import check_target
from autoprune.errors import UsageError


@pytest.mark.parametrize(
    ("name", "kind", "address"),
    [
        ("ort-cpu", "ort-cpu", None),
        ("ssh://board", "ort-cpu", Address(login="board")),
        ("ssh://board/", "ort-cpu", Address(login="board")),
        ("ssh://me@board:2222", "ort-cpu", Address(login="me@board", port=2222)),
        ("ssh://me@board/ort-openvino", "ort-openvino", Address(login="me@board")),
        ("ssh://me@board?python=/opt/x/bin/python", "ort-cpu", Address(login="me@board", python="/opt/x/bin/python")),
        ("ssh://me@board:22/ort-cuda?python=/p", "ort-cuda", Address(login="me@board", port=22, python="/p")),
        ("ssh://board?python=/opt/c++/p", "ort-cpu", Address(login="board", python="/opt/c++/p")),
        ("ssh://board?python=/a%20b%2Bc", "ort-cpu", Address(login="board", python="/a b+c")),
        ("ssh://board?python=~/venv/bin/python", "ort-cpu", Address(login="board", python="~/venv/bin/python")),
        ("ssh://board?python=python3.12", "ort-cpu", Address(login="board", python="python3.12")),
        ("ssh://board?python=/a#b", "ort-cpu", Address(login="board", python="/a#b")),
        ("ssh://Me@MyBoard:1", "ort-cpu", Address(login="Me@MyBoard", port=1)),
        ("ssh://me@192.168.0.7:65535", "ort-cpu", Address(login="me@192.168.0.7", port=65535)),
        ("ssh://user@[::1]:2222", "ort-cpu", Address(login="user@::1", port=2222)),
        ("ssh://[2001:db8::7]", "ort-cpu", Address(login="2001:db8::7")),
        ("ssh://me@[fe80::1%eth0]:22/ort-cuda", "ort-cuda", Address(login="me@fe80::1%eth0", port=22)),
    ],
)
def test_addresses_are_split_from_the_kind(name, kind, address):
    assert split_address(name) == (kind, address)


def test_an_address_is_written_as_it_was_given_and_as_a_command():
    plain = Address(login="me@board")
    assert (str(plain), plain.command, plain.ports) == ("me@board", "ssh me@board", ())
    port = Address(login="me@board", port=2222, python="/p")
    assert (str(port), port.command, port.ports) == ("me@board:2222", "ssh -p 2222 me@board", ("-p", "2222"))
    six = Address(login="me@::1", port=2222)
    assert (str(six), six.command) == ("me@[::1]:2222", "ssh -p 2222 me@::1")
    assert str(Address(login="::1")) == "[::1]"


_hosts = st.text(string.ascii_letters + string.digits + ".", min_size=1) | st.ip_addresses().map(str)
_users = st.text(string.ascii_letters, min_size=1).map("{}@".format) | st.just("")


@given(_users, _hosts, st.none() | st.integers(1, 65_535))
def test_a_written_address_is_read_back(user, host, port):
    address = Address(login=user + host, port=port)
    assert split_address(f"ssh://{address}") == ("ort-cpu", address)


@pytest.mark.parametrize(
    "port", ["", "http", "0", "-1", "65536", "9" * 30, "2222a", "22:22", "2_2", "\u0662", " 22", "+22"]
)
@pytest.mark.parametrize("host", ["board", "me@board", "me@[::1]"])
@pytest.mark.parametrize("rest", ["", "/ort-cpu", "?python=/p"])
def test_a_port_that_is_none_is_refused(port, host, rest):
    name = f"ssh://{host}:{port}{rest}"
    with pytest.raises(UsageError, match="port of a remote target is a number from 1 to 65535") as caught:
        check_target(name)
    assert repr(name) in str(caught.value)
    assert "Write ssh://user@host:2222" in str(caught.value)


@pytest.mark.parametrize("name", ["ssh://::1", "ssh://me@fe80::1:22", "ssh://me@2001:db8::7"])
def test_an_ipv6_address_without_brackets_is_told_to_have_them(name):
    with pytest.raises(UsageError, match=r"in brackets: ssh://user@\[::1\]:2222"):
        check_target(name)


@pytest.mark.parametrize(
    "host", ["[::1", "::1]", "me@[::1]22", "x[::1]", "[]", "[::1]]", "me@[[::1]]:22", "bo]ard", "[::1]@", "@board"]
)
def test_malformed_hosts_are_refused(host):
    with pytest.raises(UsageError, match=r"a remote target") as caught:
        check_target(f"ssh://{host}")
    assert repr(f"ssh://{host}") in str(caught.value)


@pytest.mark.parametrize(
    "name", ["ssh://", "ssh:///ort-cpu", "ssh://-oProxyCommand=evil", "ssh://?python=x", "ssh://me@", "ssh://:22"]
)
def test_an_address_without_a_host_is_refused(name):
    with pytest.raises(UsageError, match="ssh://user@host"):
        make_target(name)


@pytest.mark.parametrize("query", ["?port=3", "?python", "?python=", "?python=x&more=y", "?python=x&python=y"])
def test_an_address_with_unknown_options_is_refused(query):
    with pytest.raises(UsageError, match="may name its `python`") as caught:
        split_address(f"ssh://me@board{query}")
    assert query in str(caught.value)


@pytest.mark.parametrize("path", ["venv/bin/python", "./python", "../python", "~other/bin/python"])
def test_a_python_relative_to_some_folder_is_refused(path):
    with pytest.raises(UsageError, match="is an absolute path") as caught:
        split_address(f"ssh://me@board?python={path}")
    assert repr(path) in str(caught.value)


def test_the_home_is_left_to_the_shell_and_all_else_is_quoted():
    interpreters = [Address(login="b", python=path).interpreter for path in ("python3", "/a b", "~/a b;c", "$HOME/x")]
    assert interpreters == ["python3", "'/a b'", "~/'a b;c'", "'$HOME/x'"]


@pytest.mark.parametrize(
    "name", ["ssh://me:secret@host", "ssh://me:se@cret@host", "ssh://me:se/cret@host", "ssh://:x@h"]
)
def test_a_password_is_refused_and_not_repeated(name: str) -> None:
    with pytest.raises(UsageError, match="a remote target holds no password") as raised:
        split_address(name)
    assert "cret" not in str(raised.value)
