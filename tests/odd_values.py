"""JSON values that strangers send where a number or a text is expected, for the fuzz tests."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

HUGE = int("9" * 400)  # larger than any float
#: Written as JSON, because Python cannot write some of them.
LITERALS = (
    *(
        str(HUGE),
        f"-{HUGE}",
        f"{HUGE}.5",
        "1" + "0" * 4000,
        "1e999",
        "-1e999",
        "1e308",
        "5e-324",
        "-0.0",
        "-0",
    ),
    *("9223372036854775807", "9223372036854775808", "18446744073709551616", "4.5", "20.0", "true", "null"),
    *('"NaN"', '"Infinity"', '"20"', '"20.0"', '"²"', '"٣"', '""', '" "', '"\\u0000"', f'"{"9" * 400}"'),
    *(f'"{"x" * 9000}"', "[]", "{}", "[[[[[[1]]]]]]", '{"a": {"b": [1e999]}}', '{"": []}', "[1e999]"),
)

numbers = (
    st.integers()
    | st.floats(allow_nan=False)
    | st.sampled_from([HUGE, -HUGE, 10**4000, 2**63, 2**63 - 1, 2**64, 20.0, 4.5, -0.0, True, False])
)
texts = st.text(max_size=20) | st.sampled_from(["NaN", "1e999", "20", "²", "\0", "x" * 9000, "9" * 400])
odd: st.SearchStrategy[Any] = st.recursive(
    st.none() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
