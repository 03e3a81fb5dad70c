"""What the verifier refuses about a platform's network."""

from __future__ import annotations

import pytest
from xdsl.utils.exceptions import VerifyException

PLATFORM = """
takt.platform @p {{accelerator = "a", accelerators = 8 : i64, memory = 1 : i64, bandwidth = 1 : i64,
  launch = 0 : i64, peak = {{}}, compute_efficiency = 1.0 : f64, memory_efficiency = 1.0 : f64,
  saturation = 0 : i64, links = [#takt.link<"node" 4, latency 1, bandwidth 1>,
  #takt.link<"all" 8, latency 1, bandwidth 1{link}>]{more}}}
"""
TABLE = "#takt.measured<all_reduce on {group} [1, 2] time [1, {last}]>"


@pytest.mark.parametrize(
    ("link", "tables", "message"),
    [
        (", torus [2, 2]", [], "a torus of sides [2, 2] does not have the 2 members of its level"),
        ("", [(9, 2)], "a collective is measured on more than the 8 accelerators there are"),
        ("", [(8, 2), (8, 3)], "a collective is measured once for each number of accelerators"),
        (", torus [2, 1]", [(8, 2), (4, 3)], None),
    ],
)
def test_a_network_that_cannot_be(link: str, tables: list[tuple[int, int]], message: str | None, text):
    measured = ", ".join(TABLE.format(group=group, last=last) for group, last in tables)
    more = f", measured = [{measured}]" if measured else ""
    module = text.parse(PLATFORM.format(link=link, more=more))
    if message is None:
        module.verify()
        return
    with pytest.raises(VerifyException) as error:
        module.verify()
    assert message in str(error.value)
