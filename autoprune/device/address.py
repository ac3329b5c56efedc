"""How another host is reached: `ssh://` targets, split into the kind of target and the OpenSSH client's arguments."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from urllib.parse import SplitResult, parse_qsl, urlsplit

from autoprune.errors import UsageError

_PLACE = re.compile(r"(?:\[(?P<ipv6>[^\[\]]+)\]|(?P<name>[^\[\]:]*))(?::.*)?")


@dataclass(frozen=True, kw_only=True)
class Address:
    """A host as the OpenSSH client takes it: `login` is `[user@]host`, an IPv6 address in it without brackets.

    Without a `port` the client's own configuration decides. `python` is the interpreter that measures there: an
    absolute path, one that begins with `~/`, or a command.
    """

    login: str
    port: int | None = None
    python: str = "python3"

    def __str__(self) -> str:
        user, at, host = self.login.rpartition("@")
        host = f"[{host}]" if ":" in host else host
        return f"{user}{at}{host}" + ("" if self.port is None else f":{self.port}")

    @property
    def ports(self) -> tuple[str, ...]:
        """The client's arguments for the port; none when none was given."""
        return () if self.port is None else ("-p", str(self.port))

    @property
    def interpreter(self) -> str:
        """`python` as a shell on the host takes it, which puts the home of the user in the place of `~`."""
        in_home = self.python.startswith("~/")
        return "~/" + shlex.quote(self.python.removeprefix("~/")) if in_home else shlex.quote(self.python)

    @property
    def command(self) -> str:
        """The command that shows whether the host answers: `ssh -p 2222 me@board`."""
        return shlex.join(("ssh", *self.ports, self.login))


def split_address(name: str) -> tuple[str, Address | None]:
    """`ssh://user@host[:port][/TARGET][?python=PATH]` to the kind of target and the address; others have none.

    Raises `UsageError` for an address without a host, a port that is none, options other than `python`, and a
    `python` that is a path relative to some folder.
    """
    if not name.startswith("ssh://"):
        return name, None
    before = name.removeprefix("ssh://").partition("?")[0].rpartition("@")[0]
    if (":" in before and not before.startswith("[")) or "\0" in name:
        # The message must not repeat what may be a password.
        raise UsageError(
            "a remote target holds no password: ssh takes a key, or what ~/.ssh/config says. Write ssh://user@host"
        )
    try:
        parts = urlsplit(name, allow_fragments=False)
    except ValueError as error:
        raise _malformed(name, str(error)) from error
    user, at, place = parts.netloc.rpartition("@")
    location = _PLACE.fullmatch(place)
    if location is None or (at and not user):
        raise _malformed(name)
    port = _port(parts, name)
    # Not `parts.hostname`: it is in lower case, and names in the client's configuration are not.
    login = user + at + (location["ipv6"] or location["name"])
    if login.endswith("@") or login.startswith("-") or not login:
        raise _malformed(name)
    return parts.path.removeprefix("/") or "ort-cpu", Address(login=login, port=port, python=_python(parts.query, name))


def _port(parts: SplitResult, name: str) -> int | None:
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0 or parts.netloc.endswith(":"):
        raise UsageError(
            f"the port of a remote target is a number from 1 to 65535; got {name!r}. "
            "Write ssh://user@host:2222, and an IPv6 address in brackets: ssh://user@[::1]:2222."
        )
    return port


def _python(query: str, name: str) -> str:
    given = parse_qsl(query.replace("+", "%2B"), keep_blank_values=True)  # a path is no form, where + is a space
    if not given:
        return Address.python
    if len(given) > 1 or given[0][0] != "python" or not given[0][1]:
        raise UsageError(
            f"a remote target may name its `python`, once, and nothing else; got {query!r} in {name!r}. "
            "Write ssh://user@host?python=PATH."
        )
    path = given[0][1]
    if "/" in path and not path.startswith(("/", "~/")):
        raise UsageError(
            f"the `python` of a remote target is an absolute path, one in its home (~/venv/bin/python), or a command "
            f"without a folder; got {path!r} in {name!r}"
        )
    return path


def _malformed(name: str, reason: str = "") -> UsageError:
    return UsageError(
        "a remote target is written ssh://user@host[:port][/ort-cpu][?python=PATH], an IPv6 address in brackets; "
        f"got {name!r}" + (f" ({reason})" if reason else "")
    )
