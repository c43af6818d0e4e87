"""X-Override: the headers that it replaces, its limits, and several lines that a WSGI server has joined into one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.overrides import pairs, split
from unit import TOKEN, Unit, request

GOOD = f"Authorization: Bearer {TOKEN}"
BAD = "Authorization: Bearer wrong"
READY = "ready"
NONE, SCHEME, TOKEN_BAD, LACKING, HEADER = (
    "PR401-AU-0001",
    "PR401-AU-0003",
    "PR401-AU-0006",
    "PR403-AU-0002",
    "PR400-OD-0041",
)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([f"X-Override: {GOOD}"], READY),
        ([f"x-override: authorization : Bearer {TOKEN} "], READY),
        ([f"X-Override:  AUTHORIZATION:Bearer {TOKEN}"], READY),
        ([BAD, f"X-Override: {GOOD}"], READY),
        ([GOOD, BAD, f"X-Override: {GOOD}"], READY),
        ([GOOD, f"X-Override: {BAD}"], TOKEN_BAD),
        ([GOOD, "X-Override: Authorization:"], SCHEME),
        # Several X-Override lines, and several pairs in one line. The last pair for a header wins.
        (["X-Override: Accept: a/b", f"X-Override: {GOOD}"], READY),
        ([f"X-Override: Accept: a/b, {GOOD}"], READY),
        ([f"X-Override: {BAD}", f"X-Override: {GOOD}"], READY),
        ([f"X-Override: {GOOD}", f"X-Override: {BAD}"], TOKEN_BAD),
        ([f"X-Override: Accept: a/b,c/d;q=0.5,{GOOD}"], READY),
        ([GOOD, "X-Override: Authorization: Bearer a,Bearer b"], TOKEN_BAD),
        # Pairs that are ignored, because they lack a colon or a name, or name X-Override itself.
        ([GOOD, "X-Override:"], READY),
        ([GOOD, "X-Override: :"], READY),
        ([GOOD, "X-Override: :v"], READY),
        ([GOOD, "X-Override: Authorization"], READY),
        ([GOOD, "X-Override:  : "], READY),
        ([GOOD, "X-Override: " + ":" * 5000], READY),
        ([GOOD, "X-Override: X-Override: Authorization: Bearer wrong"], READY),
        ([f"X-Override: X-Override: {GOOD}"], NONE),
        # Headers that X-Override never changes.
        ([GOOD, "X-Override: Host: evil.example"], READY),
        ([GOOD, "X-Override: Content-Length: 5"], READY),
        ([GOOD, "X-Override: Transfer-Encoding: chunked"], READY),
        ([GOOD, "X-Override: Connection: close"], READY),
        ([GOOD, "X-Override: Upgrade: websocket"], READY),
        ([GOOD, "X-Override: Origin: https://evil.example"], READY),
        ([GOOD, "X-Override: X-Forwarded-For: 127.0.0.1"], READY),
        ([GOOD, "X-Override: Forwarded: for=127.0.0.1"], READY),
        ([GOOD, "X-Override: X-HTTP-Method-Override: DELETE"], READY),
        ([GOOD, "X-Override: X-Personium-RequestKey: bad key"], READY),
        # The headers, besides Authorization, that X-Override may set.
        ([GOOD, "X-Override: X-Personium-Unit-User: https://unit1.example/a/#b"], LACKING),
        ([GOOD, "X-Personium-Unit-User: x", "X-Override: X-Personium-Unit-User:"], READY),
        # At the limits (16 pairs, 8,192 bytes) and above them. Ignored pairs count too.
        ([GOOD, "X-Override: " + ",".join(["Accept: a"] * 16)], READY),
        ([GOOD, "X-Override: " + ",".join(["Accept: a"] * 17)], HEADER),
        ([GOOD, *["X-Override: b: c"] * 17], HEADER),
        ([GOOD, "X-Override: Accept: " + "a" * (8192 - 8)], READY),
        ([GOOD, "X-Override: Accept: " + "a" * (8192 - 7)], HEADER),
        # The HTTP server Granian converts underscores in a header's name to dashes. This header can do no more than
        # X-Override.
        ([f"X_Override: {GOOD}"], READY),
    ],
)
def test_each_rule(shared_unit: Unit, headers: list[str], expected: str) -> None:
    answer = shared_unit.raw(request("GET /demo/__export", *headers))
    body = answer.json()
    assert body.get("status", body.get("code")) == expected
    assert "evil" not in str(answer.headers)
    if expected == HEADER:
        assert b"Accept" not in answer.body


def test_the_cookie_may_be_overridden(shared_unit: Unit) -> None:
    override = "X-Override: Cookie: p_cookie=x"
    assert shared_unit.raw(request("GET /demo/__export?p_cookie_peer=a", override)).code == "PR401-AU-0009"


def test_it_can_be_turned_off(unit: Unit) -> None:
    unit.start_server()
    unit.start_gateway(CELLEXPORT_X_OVERRIDE="off")
    assert unit.raw(request("GET /demo/__export", f"X-Override: {GOOD}")).code == NONE
    too_much = "X-Override: " + ",".join(["a:b"] * 17)
    assert unit.raw(request("GET /demo/__export", GOOD, too_much)).status == 200


names = st.from_regex(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,20}", fullmatch=True)
# Values have no colons here, because a comma in a value survives unless the text after it looks like another pair.
values = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=":"), max_size=40)
joints = st.sampled_from([",", ", ", " ,\t"])


@given(st.lists(st.tuples(names, values), min_size=1, max_size=20), joints)
def test_any_pairs_joined_come_apart_again(given_pairs: list[tuple[str, str]], joint: str) -> None:
    joined = joint.join(f"{name}: {value}" for name, value in given_pairs)
    assert list(pairs(split(joined))) == [(name, value.strip(" \t")) for name, value in given_pairs]


@given(st.text(max_size=200))
def test_any_text_is_split_without_loss(text: str) -> None:
    assert ",".join(split(text)) == text


@given(values)
def test_a_value_with_commas_survives(value: str) -> None:
    assert list(pairs(split(f"Accept: {value},{value}"))) == [("Accept", f"{value},{value}".strip())]
