"""What a request is, and what the replies and events look like."""

import pytest

from vblk.wire.qmp import ErrorClass, QmpError, QmpSession, Request

VERSION = {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "p"}


def session(**options: bool) -> QmpSession:
    return QmpSession(VERSION, **options)


def only(data: bytes, *, oob: bool = False) -> Request:
    """Return the one request that some bytes are."""
    speaking = session()
    if oob:
        speaking.negotiate(["oob"])
    (request,) = speaking.receive(data)
    return request


def test_the_greeting_offers_execution_out_of_band() -> None:
    assert session().greeting() == (
        b'{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "p"},'
        b' "capabilities": ["oob"]}}\r\n'
    )


def test_a_request_has_its_arguments_and_its_id() -> None:
    speaking = session()
    (request,) = speaking.receive(b'{"execute": "x", "arguments": {"a": 1}, "id": {"n": [2]}}')
    assert (request.command, request.arguments, request.out_of_band) == ("x", {"a": 1}, False)
    assert speaking.result(request, {}) == b'{"return": {}, "id": {"n": [2]}}\r\n'


def test_a_null_is_an_id_too_and_no_id_is_none() -> None:
    speaking = session()
    with_null, without = speaking.receive(b'{"execute": "x", "id": null}{"execute": "x"}')
    assert speaking.result(with_null, 1) == b'{"return": 1, "id": null}\r\n'
    assert speaking.result(without, 1) == b'{"return": 1}\r\n'


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b"[1]", "QMP input must be a JSON object"),
        (b'"abc"', "QMP input must be a JSON object"),
        (b'{"execute":1}', "QMP input member 'execute' must be a string"),
        (b'{"foo":1}', "QMP input member 'foo' is unexpected"),
        (b'{"id":1}', "QMP input lacks member 'execute'"),
        (b'{"execute":"x","arguments":1}', "QMP input member 'arguments' must be an object"),
        (b'{"execute":"x","arguments":null}', "QMP input member 'arguments' must be an object"),
        (b'{"exec-oob":"x"}', "QMP input member 'exec-oob' is unexpected"),
        (b"nonsense\n", "JSON parse error, invalid keyword 'nonsense'"),
    ],
)
def test_what_is_no_request_is_refused_with_a_reason(text: bytes, fault: str) -> None:
    request = only(text)
    assert request.fault == fault
    with pytest.raises(QmpError, match="^" + fault.replace("(", r"\(") + "$"):
        session().admit(request)


def test_out_of_band_requests_are_known_once_that_was_negotiated() -> None:
    assert only(b'{"exec-oob":"x"}', oob=True).out_of_band
    both = only(b'{"exec-oob":"x","execute":"y"}', oob=True)
    assert both.fault == "QMP input member 'execute' clashes with 'exec-oob'"


def test_nothing_but_the_negotiation_is_admitted_before_it_and_only_once() -> None:
    speaking = session()
    with pytest.raises(QmpError, match="Expecting capabilities negotiation with 'qmp_capabilities'") as early:
        speaking.admit(Request("query-version", {}))
    assert early.value.kind is ErrorClass.COMMAND_NOT_FOUND
    speaking.admit(Request("qmp_capabilities", {}))
    speaking.negotiate([])
    speaking.admit(Request("query-version", {}))
    with pytest.raises(QmpError, match="already complete, command ignored") as late:
        speaking.admit(Request("qmp_capabilities", {}))
    assert late.value.kind is ErrorClass.COMMAND_NOT_FOUND


def test_a_capability_that_was_not_offered_is_refused() -> None:
    speaking = session(oob=False)
    with pytest.raises(QmpError, match="Capability oob not available"):
        speaking.negotiate(["oob"])
    assert not speaking.negotiated


def test_a_failure_has_its_class_and_no_hint() -> None:
    error = QmpError("the sentence\na hint", ErrorClass.DEVICE_NOT_FOUND)
    assert session().failure(Request("x", {}, id=7), error) == (
        b'{"id": 7, "error": {"class": "DeviceNotFound", "desc": "the sentence"}}\r\n'
    )


def test_an_event_has_the_time_to_the_microsecond() -> None:
    speaking = session()
    assert speaking.event("STOP", {}, 1_700_000_000_123_456_789) == (
        b'{"timestamp": {"seconds": 1700000000, "microseconds": 123456}, "event": "STOP"}\r\n'
    )
    assert speaking.event("E", {"id": "a"}, 0).endswith(b', "event": "E", "data": {"id": "a"}}\r\n')


def test_pretty_texts_have_the_line_ends_of_the_others() -> None:
    assert session(pretty=True).result(Request("x", {}), {"name": "a"}) == (
        b'{\r\n    "return": {\r\n        "name": "a"\r\n    }\r\n}\r\n'
    )
