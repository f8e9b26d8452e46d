"""Names of files on SSH servers, and back.

Owns: the text `ssh://[USER@]HOST[:PORT]/PATH[?host_key_check=...]`, with `sftp` as
another word for the scheme, and the options of the driver behind it. It opens
nothing.

Source: draft-ietf-secsh-scp-sftp-ssh-uri, and the parameter that QEMU added.
"""

from collections.abc import Mapping
from typing import Final

from vblk.errors import OptionError
from vblk.options.model import Scalar

_CHECK: Final = "host_key_check"
_HASHES: Final = ("md5", "sha1", "sha256")


def parse_ssh_name(text: str) -> dict[str, str]:
    """Return the options behind a name.

    Without a port it is what the user's configuration says. Parameters that are
    not known are passed over, as by QEMU.

    Raises:
        OptionError: The name is malformed.
    """
    from urllib.parse import parse_qsl, unquote, urlsplit  # most names are paths

    try:
        uri = urlsplit(text)
        host, port = uri.netloc.rpartition("@")[2], uri.port
        query = dict(parse_qsl(uri.query, keep_blank_values=True))
    except ValueError as error:
        raise OptionError("No valid URL specified") from error
    host = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if not host:
        raise OptionError("missing hostname in URI")
    if not uri.path:
        raise OptionError("missing remote path in URI")
    if uri.fragment:
        raise OptionError("No valid URL specified")
    if uri.password is not None:
        raise OptionError(
            "a password has no place in a URI: keys are offered by ssh-agent or named in ~/.ssh/config"
        )
    own = {"user": unquote(uri.username)} if uri.username else {}
    own["host"] = unquote(host)
    if port is not None:
        own["port"] = str(port)
    own["path"] = unquote(uri.path)
    if _CHECK in query:
        own[_CHECK] = query[_CHECK]
    return own


def ssh_name(own: Mapping[str, Scalar]) -> str | None:
    """Return the URI that says all of a node's options, if there is one."""
    from urllib.parse import quote

    try:
        options = {name: str(value) for name, value in with_server(own).items() if value is not None}
    except OptionError:
        return None
    host, port = options.pop("server.host", ""), options.pop("server.port", "")
    user, path = options.pop("user", ""), options.pop("path", "")
    check = _check_text(
        {name: options.pop(name) for name in list(options) if name.startswith("host-key-check.")}
    )
    if options or not host or not path.startswith("/") or check is None:
        return None
    name = f"ssh://{quote(user, safe='') + '@' if user else ''}{f'[{host}]' if ':' in host else host}"
    name += f":{port}" if port else ""
    name += quote(path, safe="/:,+=@ ~!$&'()*;")
    return name + (f"?{_CHECK}={check}" if check else "")


def _check_text(check: Mapping[str, str]) -> str | None:
    """Return the one word for how the host's key is checked; None if there is none, empty for the default."""
    mode = check.get("host-key-check.mode", "")
    if mode == "hash":
        kind, value = check.get("host-key-check.type"), check.get("host-key-check.hash")
        return f"{kind}:{value}" if kind in _HASHES and value is not None else None
    return {"": "", "none": "no", "known_hosts": "yes"}.get(mode)


def with_server(own: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return the options with `host`, `port` and `host_key_check` as the structures that they stand for.

    A port that was not given is empty.

    Raises:
        OptionError: They mean nothing.
    """
    options = dict(own)
    host, port, check = (options.pop(name, None) for name in ("host", "port", _CHECK))
    if host is not None:
        options["server.host"] = str(host)
        options["server.port"] = _port_text(port)
    elif port is not None:
        raise OptionError("port may not be used without host")
    for name in ("path", "user", "server.port"):
        if isinstance(options.get(name), int | float) and not isinstance(options[name], bool):
            options[name] = str(options[name])
    return options if check is None else options | _structured(str(check))


def _port_text(port: Scalar) -> str:
    if port is None:
        return ""
    text = str(port)
    if isinstance(port, bool) or not (text.isascii() and text.isdecimal()):
        raise OptionError("Parameter 'port' expects a number")
    return text


def _structured(check: str) -> dict[str, Scalar]:
    """Return the options that a word like `no` or `md5:HASH` stands for."""
    if check in ("no", "yes"):
        return {"host-key-check.mode": "none" if check == "no" else "known_hosts"}
    kind, colon, value = check.partition(":")
    if not colon or kind not in _HASHES:
        raise OptionError(f"unknown host_key_check setting ({check})")
    return {"host-key-check.mode": "hash", "host-key-check.type": kind, "host-key-check.hash": value}
