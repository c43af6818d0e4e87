"""Personium's local tokens and cookies: those that a unit issues are accepted, and no others."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from werkzeug.test import Client

from cellexport.environment import Environment
from cellexport.program.unit_urls import UnitUrls
from gateway import create_app
from gateway.settings import Settings as GatewaySettings
from server.auth import Judge
from server.auth.credentials import Credentials
from server.auth.opening import build_judge
from server.auth.rights import Privilege
from server.auth.settings import TokenSettings
from server.cells import Cell
from server.refusals import Refused
from server.settings import Settings
from server.wiring import serving
from thoroughness import examples, property_test
from tokens import (
    ACCESS_FILE,
    CELL_URL,
    PEER,
    SECRET,
    b64,
    cookie,
    cookie_verdict,
    decoded,
    encrypt,
    expired,
    fields,
    local,
    now,
    of_2017,
    older,
    resident,
    today,
    verdict,
    visitor,
)
from unit import OWNER, TOKEN, UNIT_URL, Unit, eventually, request

MISSING, EXPIRED, INVALID, REFRESH = "PR401-AU-0001", "PR401-AU-0002", "PR401-AU-0006", "PR401-AU-0007"
COOKIE, LACKING, SCOPE = "PR401-AU-0009", "PR403-AU-0002", "PR403-AU-0007"
ROLE = f"{CELL_URL}__role/"
ADMIN = f"{ROLE}__/admin"


@pytest.fixture(scope="module")
def unit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Unit]:
    with Unit(tmp_path_factory.mktemp("tokens") / "unit") as unit:
        for cell in ("demo", "other", "open"):
            unit.add_cell(cell)
        (unit.directory / "cells/demo/cell.toml").write_text(ACCESS_FILE)
        (unit.directory / "cells/open/cell.toml").write_text(
            f'owner = "{OWNER}"\n[accounts]\nme = []\n[acl]\nall = ["root"]'
        )
        unit.start_server(CELLEXPORT_UNIT_SECRET=SECRET)
        unit.start_gateway()
        yield unit


# Tokens and a cookie that the library of a real unit made, and the time at which it issued them, in milliseconds since
# 1970.
VECTOR_TIME = 1486976400000
AR = "AR~mwPbTOh8--T-qM9pj9zT3ASv6uGwLtoAJ6Rmktng044rUnrVeLUFm8Zba4CilfzRoJCJzjIySGHkiQlKIEeJ4w"
AR_WITHOUT_SCOPE = "AR~mwPbTOh8--T-qM9pj9zT3Ami10sNsU8uJbt-avoOzhcDZr4afT-wIEAOefTIl8hTEhui4xDhpArCSaaTyiuhjA"
AV = (
    "AV~FkhaG0CHViR-fPCF_RDFug0AsX9TrNUdDVeX5sLVFcgrPij7fXzLUXOUOEYmcoXbyffJbM3WWi-NCknMcQ4ATYcAkldA8oaL9u7D0IBlpRnUd"
    "GnZG1CnnfGJW69CtT45"
)
RR = "RR~aS9eyCywwUcH9gz5fLNPiSJ4sMzCJlzkFmvrYsQVoEUhN0rinlZDGHLLbMfvKuWseqTUrYQLVaiMFjLKCqO0Mw"
VECTOR_COOKIE = (
    "RbInrB-MgeHmGSxa-DDTQDexmOfLlcgWiMpZzvm3__pO619uYuf9HJVrcEDtmD8HrpUpPv8sFCPvbTYn1Sr90-P7REGszDw4pPxZhpgkopPSbcx2"
    "SyJ42rG3esBHGP-F0G2g57SjQ9j4sKAlJdQxDOh8cEM0k-Sb9C-d3OfioV4"
)
LAST = VECTOR_TIME + 3_600_000
VECTORS = [
    (AR, VECTOR_TIME, "200"),
    (AR, VECTOR_TIME - 60_000, "200"),
    (AR, VECTOR_TIME - 60_001, INVALID),
    (AR, LAST, "200"),
    (AR, LAST + 1, EXPIRED),
    (AR_WITHOUT_SCOPE, VECTOR_TIME, SCOPE),
    (AR_WITHOUT_SCOPE, LAST + 1, EXPIRED),
    (AV, VECTOR_TIME, LACKING),
    (AV, LAST + 1, EXPIRED),
    (RR, VECTOR_TIME, REFRESH),
    (RR, LAST * 2, REFRESH),
    ("cookie", VECTOR_TIME, "200"),
    ("cookie", LAST + 1, EXPIRED),
]


@pytest.mark.parametrize(("token", "at", "expected"), VECTORS)
def test_tokens_of_a_real_unit_are_judged_right_at_their_time(
    tmp_path: Path, token: str, at: int, expected: str
) -> None:
    with Unit(tmp_path / "unit") as unit:
        unit.add_cell("cell1")
        text = f'owner = "{OWNER}"\n[accounts]\nme = ["admin"]\n[acl]\nadmin = ["root"]\n'
        (unit.directory / "cells/cell1/cell.toml").write_text(text)
        variables = unit.variables(
            CELLEXPORT_UNIT_URL="http://localhost:8080/",
            CELLEXPORT_CELL_URL="https://{cell}.unit1.example/",
            CELLEXPORT_UNIT_SECRET=SECRET,
        )

        async def main() -> str:
            async with serving(Settings.read(variables), clock=lambda: at):
                get = Client(create_app(GatewaySettings.read(variables)), use_cookies=False).get
                by_cookie = token == "cookie"
                headers = {"Cookie": f"p_cookie={VECTOR_COOKIE}"} if by_cookie else {"Authorization": f"Bearer {token}"}
                query = {"p_cookie_peer": PEER} if by_cookie else {}
                answer = await asyncio.to_thread(get, "/cell1/__export", headers=headers, query_string=query)
                if answer.status_code == 401:
                    assert 'realm="https://cell1.unit1.example/"' in answer.headers["WWW-Authenticate"]
                return "200" if answer.status_code == 200 else str(answer.get_json()["code"])

        assert asyncio.run(main()) == expected


def unit_user(**changed: str) -> str:
    return local("AU~", fields("6", issuer=UNIT_URL, **changed), issuer=UNIT_URL)


def of(cell_url: str) -> str:
    return local("AR~", fields("0", issuer=cell_url), issuer=cell_url)


def today_as(prefix: str) -> str:
    return prefix + encrypt("\t".join(fields("0")).encode(), today(CELL_URL))


def unit_user_of_2017() -> str:
    return "AU~" + encrypt(f"{str(now())[::-1]}\t9999\tx\t\t{UNIT_URL}".encode(), of_2017(UNIT_URL))


TABLE: dict[str, tuple[Callable[[], str], str]] = {
    "account with a role": (lambda: resident("admin"), "200"),
    "account with a box's role": (lambda: resident("boxed"), "200"),
    "account whose role may do less": (lambda: resident("staff"), LACKING),
    "account without roles": (lambda: resident("nobody"), LACKING),
    "account that is gone": (lambda: resident("gone"), MISSING),
    "account without a name": (lambda: resident(""), MISSING),
    "no scope": (lambda: resident(scope=""), SCOPE),
    "another scope": (lambda: resident(scope="rooty ROOT root2"), SCOPE),
    "root among scopes": (lambda: resident(scope="openid root"), "200"),
    "no role, and no scope: the role is reported": (lambda: resident("staff", scope=""), LACKING),
    "expired, and account gone": (lambda: resident("gone", issued=expired()), EXPIRED),
    "expired a moment ago": (lambda: resident(issued=expired(3_600_500)), EXPIRED),
    "expires in a moment": (lambda: resident(issued=expired(3_590_000)), "200"),
    "a year long": (lambda: resident(lifespan=str(366 * 86_400_000)), "200"),
    "longer than a year": (lambda: resident(lifespan=str(366 * 86_400_000 + 1)), INVALID),
    "no lifespan": (lambda: resident(lifespan="0"), INVALID),
    "negative lifespan": (lambda: resident(lifespan="-1"), INVALID),
    "a lifespan with a sign": (lambda: resident(lifespan="+3600000"), INVALID),
    "an absurd lifespan": (lambda: resident(lifespan="9" * 300), INVALID),
    "issued in a minute": (lambda: resident(issued=expired(-50_000)), "200"),
    "issued later": (lambda: resident(issued=expired(-70_000)), INVALID),
    "issued at no number": (lambda: resident(issued="x" * 13), INVALID),
    "issued at nothing": (lambda: resident(issued=""), INVALID),
    "issued before 1970": (lambda: resident(issued="1-"), INVALID),
    "another cell's": (lambda: of(f"{UNIT_URL}other/"), INVALID),
    "another cell's, by this one's vector": (lambda: resident(issuer=f"{UNIT_URL}other/"), INVALID),
    "another unit's": (lambda: local("AR~", fields("0"), secret="another-16-bytes"), INVALID),
    "no slash after the cell": (lambda: resident(issuer=CELL_URL[:-1]), INVALID),
    "a type that disagrees": (lambda: local("AR~", fields("1")), INVALID),
    "no type": (lambda: local("AR~", fields("")), INVALID),
    "a field too many": (lambda: local("AR~", fields("0", "x")), INVALID),
    "a field too few": (lambda: local("AR~", fields("0")[:-1]), INVALID),
    "one field": (lambda: local("AR~", ["x"]), INVALID),
    "nothing": (lambda: local("AR~", [""]), INVALID),
    "a control character": (lambda: resident("ad\x01min"), INVALID),
    "a letter that is not ASCII": (lambda: resident("admin", schema="\xe9"), INVALID),
    "a line break": (lambda: resident("admin\n"), INVALID),
    "visitor without roles": (lambda: visitor(), LACKING),
    "visitor with a role": (lambda: visitor(ADMIN), "200"),
    "visitor with a box's role": (lambda: visitor(f"{ROLE}box1/keeper"), "200"),
    "visitor with several": (lambda: visitor(f"{ROLE}__/staff", ADMIN), "200"),
    "visitor with the role of another box": (lambda: visitor(f"{ROLE}box1/admin"), LACKING),
    "visitor with a box's role, as if of the main box": (lambda: visitor(f"{ROLE}__/box1/keeper"), LACKING),
    "visitor with another cell's role": (lambda: visitor(f"{UNIT_URL}other/__role/__/admin"), LACKING),
    "visitor with a role that only begins so": (lambda: visitor(f"x{ADMIN}"), LACKING),
    "visitor with a role's name alone": (lambda: visitor("admin"), LACKING),
    "visitor, no scope": (lambda: visitor(ADMIN, scope=""), SCOPE),
    "visitor, expired": (lambda: visitor(ADMIN, issued=expired()), EXPIRED),
    "visitor without the field of roles": (lambda: local("AV~", fields("1")), INVALID),
    "no list gives everything else": (lambda: visitor(f"{ROLE}__/exporter"), LACKING),
    "unit user": (unit_user, LACKING),
    "unit user, expired": (lambda: unit_user(issued=expired()), EXPIRED),
    "unit user by the cell": (lambda: local("AU~", fields("6")), INVALID),
    "password change": (lambda: local("AP~", fields("7")), LACKING),
    "password change, expired": (lambda: local("AP~", fields("7", issued=expired())), EXPIRED),
    "refresh": (lambda: local("RR~", fields("3")), REFRESH),
    "refresh, expired": (lambda: local("RR~", fields("3", issued=expired())), REFRESH),
    "refresh of a visitor": (lambda: local("RV~", fields("4", "id", "https://unit1.example/b/", "")), REFRESH),
    "refresh, another cell's": (lambda: local("RR~", fields("3", issuer="https://unit1.example/b/")), INVALID),
    "refresh that doesn't open": (lambda: "RR~" + "A" * 86, INVALID),
    "grant code": (lambda: local("GC~", fields("5")), INVALID),
    "2017: account": (lambda: older("AA~"), "200"),
    "2017: account that may do less": (lambda: older("AA~", account="staff"), LACKING),
    "2017: account that is gone": (lambda: older("AA~", account="gone"), MISSING),
    "2017: expired": (lambda: older("AA~", issued=now() - 3_601_000), EXPIRED),
    "2017: lives too long": (lambda: older("AA~", lifespan="99999999999"), INVALID),
    "2017: visitor": (lambda: older("AL~", ADMIN), "200"),
    "2017: visitor without roles": (lambda: older("AL~", ""), LACKING),
    "2017: visitor without the field": (lambda: older("AL~"), INVALID),
    "2017: refresh": (lambda: older("RA~"), REFRESH),
    "2017: refresh of a visitor": (lambda: older("RT~", "x", "y"), REFRESH),
    "2017: unit user": (unit_user_of_2017, LACKING),
    "2017's prefix, today's layout": (lambda: today_as("AA~"), INVALID),
    "no prefix": (lambda: resident()[3:], INVALID),
    "an unknown prefix": (lambda: "AX~" + resident()[3:], INVALID),
    "a prefix alone": (lambda: "AR~", INVALID),
    "lower case": (lambda: "ar~" + resident()[3:], INVALID),
    "padded": (lambda: resident() + "==", INVALID),
    "standard base64": (lambda: "AR~" + "+" * 64, INVALID),
    "foreign characters between": (lambda: resident()[:20] + "!" + resident()[20:], INVALID),
    "dots between": (lambda: resident()[:20] + "." + resident()[20:], INVALID),
    "bytes left over": (lambda: "AR~" + "A" * 30, INVALID),
    "padding of 0": (lambda: "AR~" + encrypt(b"x" * 16, today(CELL_URL), padding=bytes(16)), INVALID),
    "padding of 17": (lambda: "AR~" + encrypt(b"x" * 16, today(CELL_URL), padding=b"\x11" * 16), INVALID),
    "padding that differs": (lambda: "AR~" + encrypt(b"x" * 13, today(CELL_URL), padding=b"\x03\x02\x03"), INVALID),
    "no padding": (lambda: "AR~" + encrypt(b"x" * 16, today(CELL_URL), padding=b""), INVALID),
    "much": (lambda: "AR~" + "A" * 5000, INVALID),
    "very much": (lambda: "AR~" + "A" * 14_000, INVALID),
    "like a JWT": (lambda: "a.b.c", INVALID),
    "the master token": (lambda: TOKEN, "200"),
}  # fmt: skip


@pytest.mark.parametrize("row", TABLE)
def test_local_tokens(unit: Unit, row: str) -> None:
    make, expected = TABLE[row]
    assert verdict(unit, make()) == expected


def test_the_role_all_means_every_accepted_caller(unit: Unit) -> None:
    url = f"{UNIT_URL}open/"
    account = local("AR~", fields("0", subject="me", issuer=url), issuer=url)

    assert verdict(unit, account, cell="open") == "200"
    assert verdict(unit, local("AV~", fields("1", "", issuer=url), issuer=url), cell="open") == "200"
    assert verdict(unit, local("AP~", fields("7", issuer=url), issuer=url), cell="open") == LACKING
    assert (
        verdict(unit, local("AR~", fields("0", subject="me", scope="", issuer=url), issuer=url), cell="open") == SCOPE
    )
    assert verdict(unit, None, cell="open") == MISSING
    assert verdict(unit, "x", cell="open") == INVALID
    assert verdict(unit, account) == INVALID


def test_the_unit_user_header_demotes_the_master_token_and_nothing_else(unit: Unit) -> None:
    header = {"x-personium-unit-user": "https://unit1.example/admin/#me"}
    assert verdict(unit, TOKEN, **header) == LACKING
    assert verdict(unit, resident(), **header) == "200"
    assert verdict(unit, TOKEN, **{"x-personium-unit-user": ""}) == "200"
    override = "X-Override: X-Personium-Unit-User: https://unit1.example/admin/#me"
    assert unit.raw(request("GET /demo/__export", f"Authorization: Bearer {TOKEN}", override)).code == LACKING


def good() -> str:
    return cookie(resident())


COOKIES: dict[str, tuple[Callable[[], str], str]] = {
    "good": (good, "200"),
    "of 2017": (lambda: cookie(resident(), vector=of_2017), "200"),
    "with the master token": (lambda: cookie(TOKEN), "200"),
    "its token has expired": (lambda: cookie(resident(issued=expired())), EXPIRED),
    "its token is another cell's": (lambda: cookie(resident(issuer=f"{UNIT_URL}other/")), INVALID),
    "its token is for refreshing": (lambda: cookie(local("RR~", fields("3"))), REFRESH),
    "its token lacks the privilege": (lambda: cookie(resident("staff")), LACKING),
    "its token is nothing": (lambda: cookie("x"), INVALID),
    "without a token": (lambda: cookie(""), COOKIE),
    "without a TAB": (lambda: encrypt(PEER.encode(), today("#n#t1.#x#mpl#")), COOKIE),
    "another peer's": (lambda: cookie(resident(), peer="another"), COOKIE),
    "another host's": (lambda: cookie(resident(), host="localhost"), COOKIE),
    "empty": (lambda: "", COOKIE),
    "broken": (lambda: "x", COOKIE),
    "cut short": (lambda: good()[:-1], COOKIE),
    "cut by a block": (lambda: good()[:-64], COOKIE),
    "padded": (lambda: good() + "=", COOKIE),
    "much": (lambda: "A" * 8000, COOKIE),
    "its token is longer than a Bearer token can be": (
        lambda: cookie(visitor(ADMIN, *[f"{ADMIN}{'x' * 90}"] * 26)),
        INVALID,
    ),
    "longer than 8 KiB": (lambda: cookie(visitor(ADMIN, *[f"{ADMIN}{'x' * 90}"] * 60)), COOKIE),
    "its token is changed": (lambda: cookie(resident()[:-1]), INVALID),
    "a byte that no cookie holds": (lambda: encrypt(f"{PEER}\tAR~\x01".encode(), today("#n#t1.#x#mpl#")), COOKIE),
}


@pytest.mark.parametrize("row", COOKIES)
def test_cookies(unit: Unit, row: str) -> None:
    make, expected = COOKIES[row]
    assert cookie_verdict(unit, make()) == expected


def test_a_cookie_needs_its_peer_once(unit: Unit) -> None:
    assert cookie_verdict(unit, good(), peers=()) == MISSING
    assert cookie_verdict(unit, good(), peers=("",)) == MISSING
    assert cookie_verdict(unit, good(), peers=(PEER, PEER)) == COOKIE
    assert cookie_verdict(unit, good(), peers=(PEER[:-1],)) == COOKIE
    assert cookie_verdict(unit, good(), peers=("a" * 1000,)) == COOKIE
    assert cookie_verdict(unit, good(), good()) == COOKIE
    assert cookie_verdict(unit, good(), "A" * 8200) == COOKIE
    assert cookie_verdict(unit, cookie(resident(), peer="p" * 1500), peers=("p" * 1500,)) == COOKIE
    assert cookie_verdict(unit) == COOKIE


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (f"p_cookie_peer[]={PEER}", MISSING),
        (f"P_COOKIE_PEER={PEER}", MISSING),
        (f"p_cookie_peer={PEER}&x=1", "200"),
        (f"p_cookie_peer=%30{PEER[1:]}", "200"),
        ("p_cookie_peer=%ff%fe", COOKIE),
        ("p_cookie_peer=%00", COOKIE),
        ("p_cookie_peer=" + "a" * 3000, COOKIE),
        (f"p_cookie_peer=&p_cookie_peer={PEER}", COOKIE),
        (f"access_token={TOKEN}", MISSING),
    ],
)
def test_peers_as_they_come(unit: Unit, query: str, expected: str) -> None:
    answer = unit.raw(request(f"GET /demo/__export?{query}", f"Cookie: a=b; p_cookie={good()}"))
    assert ("200" if answer.status == 200 else answer.code) == expected


def test_authorization_disables_the_cookie(unit: Unit) -> None:
    for authorization, code in (("Bearer x", INVALID), ("", "PR401-AU-0003"), ("Basic eDp5", MISSING)):
        lines = [f"Authorization: {authorization}", f"Cookie: p_cookie={good()}"]
        assert unit.raw(request(f"GET /demo/__export?p_cookie_peer={PEER}", *lines)).code == code


def test_a_cookie_and_a_token_come_through_x_override_too(unit: Unit) -> None:
    target = f"GET /demo/__export?p_cookie_peer={PEER}"
    assert unit.raw(request(target, f"X-Override: Cookie: p_cookie={good()}")).status == 200
    assert unit.raw(request(target, "Cookie: p_cookie=x", f"X-Override: Cookie: p_cookie={good()}")).status == 200
    assert unit.raw(request(target, f"Cookie: p_cookie={good()}", "X-Override: Cookie: p_cookie=x")).code == COOKIE
    assert unit.raw(request("GET /demo/__export", f"X-Override: Authorization: Bearer {resident()}")).status == 200
    # An `Authorization` header counts even if it is empty, so the gateway ignores the cookie.
    assert unit.raw(request(target, f"Cookie: p_cookie={good()}", "X-Override: Authorization:")).code == "PR401-AU-0003"


def test_the_access_file_is_read_for_every_request(unit: Unit) -> None:
    file, token = unit.directory / "cells/demo/cell.toml", resident()
    try:
        for _ in range(3):
            assert verdict(unit, token) == "200"
            # The rewritten access file keeps its inode, its size, and nearly its time of modification. The server must
            # notice the change although these don't show it.
            file.write_text(ACCESS_FILE.replace('admin = ["root"]', 'admin = ["read"]'))
            assert verdict(unit, token) == LACKING
            file.write_text(ACCESS_FILE.replace('admin = ["admin"]', 'nimda = ["admin"]'))
            assert verdict(unit, token) == MISSING
            file.write_text(ACCESS_FILE)
    finally:
        file.write_text(ACCESS_FILE)


@pytest.mark.parametrize(
    "text",
    [
        "[accounts]\nadmin = 'admin'",
        "[accounts]\nadmin = [1]",
        "accounts = 1",
        "[acl]\nadmin = 'root'",
        "acl = ['root']",
        "[acl]\nadmin = ['root']\nadmin = []",
        "[acl]\n" + "#" * 1024 * 1024,
    ],
)
def test_an_access_file_that_is_not_understood_gives_nobody_anything(unit: Unit, text: str) -> None:
    file = unit.directory / "cells/other/cell.toml"
    file.write_text(f'owner = "{OWNER}"\n{text}')
    for token in (TOKEN, of(f"{UNIT_URL}other/")):
        assert verdict(unit, token, cell="other") == "PR500-SV-0002"


def test_all_invalid_tokens_are_refused_with_the_same_body_and_headers(unit: Unit) -> None:
    flawed = [make for make, expected in TABLE.values() if expected == INVALID]
    answers = set()
    for make in flawed:
        answer = unit.http(token=make())
        varying = {"date", "x-personium-requestkey"}
        answers.add((answer.status, answer.body, *(item for item in answer.headers.items() if item[0] not in varying)))
    assert len(answers) == 1


@pytest.fixture(scope="module")
def judge() -> Judge:
    environment = Environment({"CELLEXPORT_UNIT_SECRET": SECRET, "CELLEXPORT_UNIT_URL": UNIT_URL})
    return build_judge(TokenSettings.read(environment), UnitUrls.read(environment), now)


def code(judge: Judge, **credentials: object) -> str:
    everybody = frozenset({"root"})
    cell = Cell(name="demo", accounts={"admin": frozenset()}, acl={"all": everybody})
    try:
        judge.judge(Credentials(**credentials), cell, Privilege.ROOT)  # type: ignore[arg-type]
    except Refused as refused:
        return refused.refusal.value.personium_code
    return "200"


def changed(text: str, data: st.DataObject) -> str:
    """Return the text with one random change: a bit flipped, a piece cut out or inserted, or two characters swapped."""
    at = data.draw(st.integers(0, len(text) - 1))
    how = data.draw(st.sampled_from(["bit", "cut", "insert", "swap"]))
    if how == "bit":
        return text[:at] + chr(ord(text[at]) ^ 1 << data.draw(st.integers(0, 6))) + text[at + 1 :]
    if how == "cut":
        return text[:at] + text[at + data.draw(st.integers(1, 40)) :]
    if how == "insert":
        return text[:at] + data.draw(st.text(st.characters(max_codepoint=0x7E), min_size=1, max_size=40)) + text[at:]
    to = data.draw(st.integers(0, len(text) - 1))
    return text[:at] + text[to] + text[at + 1 : to] + text[at] + text[to + 1 :] if at < to else text[: at + 1]


@property_test
@settings(max_examples=examples(400, 3000), deadline=None)
@given(st.data())
def test_a_token_that_was_changed_anywhere_is_refused_in_one_way(judge: Judge, data: st.DataObject) -> None:
    token = data.draw(st.sampled_from([resident(), visitor(ADMIN), older("AA~"), local("AP~", fields("7"))]))
    mutant = changed(token, data)
    # If the change has made the prefix of the token that of a refresh token, the refusal may name a refresh token.
    expected = {INVALID, REFRESH} if mutant[:3] in ("RR~", "RV~", "RA~", "RT~") else {INVALID}
    if mutant != token:
        assert code(judge, authorization=f"Bearer {mutant}") in expected


@property_test
@settings(max_examples=examples(400, 3000), deadline=None)
@given(st.data())
def test_a_cookie_that_was_changed_anywhere_is_refused_in_one_way(judge: Judge, data: st.DataObject) -> None:
    original = good()
    mutant = changed(original, data)
    assert code(judge, cookies=(original,), peers=(PEER,)) == "200"
    if mutant != original:
        assert code(judge, cookies=(mutant,), peers=(PEER,)) == COOKIE


@property_test
@settings(max_examples=examples(400, 2000), deadline=None)
@given(st.text(max_size=300), st.sampled_from(["AR~", "AV~", "RR~", "AU~", "AA~", "RT~", ""]))
@example("", "RV~")
def test_garbage_is_refused_in_one_way(judge: Judge, text: str, prefix: str) -> None:
    assert code(judge, authorization=f"Bearer {prefix}{text}") == INVALID
    assert code(judge, cookies=(prefix + text,), peers=(PEER,)) == COOKIE


@property_test
@settings(max_examples=examples(200, 500), deadline=None)
@given(
    st.binary(min_size=16, max_size=16), st.sampled_from(["RR~", "AV~"]), st.sampled_from([b"\x10" * 16, b"\x10" * 15])
)
def test_no_response_reveals_whether_padding_was_right(
    judge: Judge, garbage: bytes, prefix: str, padding: bytes
) -> None:
    """Refuse a token or cookie alike, whether the padding of its last block is right or wrong.

    Different refusals would allow anybody to forge tokens (a padding oracle).
    """
    ending = decoded(encrypt(b"", garbage, padding=padding.ljust(16, b"x")))
    values = "\t".join(fields("1", "x" * 40)).encode()
    token = decoded(encrypt(values.ljust(len(values) // 16 * 16 + 16, b"x"), today(CELL_URL), padding=b""))
    assert code(judge, authorization=f"Bearer {prefix}{b64(token + garbage + ending)}") == INVALID
    wrapped = decoded(good())[:-16]
    assert code(judge, cookies=(b64(wrapped + garbage + ending),), peers=(PEER,)) == COOKIE


@pytest.mark.process
def test_secrets_of_24_and_32_bytes_are_keys_too(tmp_path: Path) -> None:
    for size in (24, 32):
        with Unit(tmp_path / str(size)) as unit:
            unit.add_cell("demo")
            (unit.directory / "cells/demo/cell.toml").write_text(ACCESS_FILE)
            file = tmp_path / "secret"
            file.write_text("s" * size + "\n")
            unit.start_server(CELLEXPORT_UNIT_SECRET_FILE=str(file))
            assert unit.get(token=local("AR~", fields("0"), secret="s" * size)).cell == "demo"


@pytest.mark.process
def test_without_the_secret_tokens_and_cookies_are_off(tmp_path: Path) -> None:
    with Unit(tmp_path / "unit") as unit:
        unit.add_cell("demo")
        (unit.directory / "cells/demo/cell.toml").write_text(ACCESS_FILE)
        unit.start_server()
        unit.start_gateway()
        assert verdict(unit, resident()) == INVALID
        assert verdict(unit, local("RR~", fields("3"))) == INVALID
        assert cookie_verdict(unit, good()) == COOKIE


def test_the_event_log_names_the_caller(unit: Unit) -> None:
    key = {"x-personium-requestkey": "who-is-it"}
    assert verdict(unit, resident("admin", schema="https://app.example/"), **key) == "200"
    assert verdict(unit, visitor(ADMIN), **key) == "200"

    def lines() -> list[str] | None:
        text = (unit.directory / "log/event.log").read_text()
        found = [line for line in text.splitlines() if "who-is-it" in line]
        return found if len(found) == 4 else None

    account, _, guest, _ = eventually(lines)
    assert f'"https://app.example/","{CELL_URL}#admin","cell.export.status"' in account
    assert 'null,"https://unit1.example/b/#you","cell.export.status"' in guest
