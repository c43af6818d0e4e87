"""The tables in docs/errors.md, compared with the errors in the code."""

import re

from gateway import errors as rest
from server.refusals import Refusal
from server.rpc.refusal_table import STATUS
from unit import ROOT

TEXT = (ROOT / "docs" / "errors.md").read_text()


def test_every_reason_is_in_the_table_with_its_status_code_and_whether_to_retry() -> None:
    documented = re.findall(r"^\| `(\w+)` \| (\w+) \| (\S+) \| (\w*) ?\|", TEXT, re.MULTILINE)
    assert documented == [
        (reason.name, STATUS[reason].name, reason.value.personium_code, "yes" if reason.value.retry else "")
        for reason in Refusal
    ]


def test_every_error_of_the_gateways_own_is_in_the_other_table() -> None:
    documented = {code: int(status) for status, code in re.findall(r"^\| (\d+) \| (\S+) \|", TEXT, re.MULTILINE)}
    problems = {value for value in vars(rest).values() if isinstance(value, rest.Problem)}
    codes = {reason.value.personium_code for reason in Refusal}
    assert documented == {problem.code: problem.status for problem in problems if problem.code not in codes}
