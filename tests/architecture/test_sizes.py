"""Nothing grows past the size at which one thought no longer fits."""

from tests.architecture.sizes import measure, outliers
from tests.architecture.sources import PACKAGES, parse, sources


def test_nothing_is_past_its_limit() -> None:
    assert [str(size) for size in measure(sources(*PACKAGES)) if size.size > size.limit] == []


def test_a_long_function_with_many_parameters_is_seen() -> None:
    text = "def f(a, b, c, d, e, g, h, i, j):\n" + '    """Says so."""\n' + "    a = b\n" * 81
    past = {(size.what, size.size) for size in measure([parse("core/x.py", text)]) if size.size > size.limit}
    assert past == {("lines", 81), ("parameters", 9)}


def test_a_long_file_and_a_full_folder_are_seen() -> None:
    files = [parse(f"core/{i}.py", "x = 1\n" * 501) for i in range(25)]
    past = [size for size in measure(files) if size.size > size.limit]
    assert len(past) == 26 and past[0].where == "core"


def test_the_report_names_the_worst_outlier_first() -> None:
    found = outliers()
    assert [size.size / size.target for size in found] == sorted((s.size / s.target for s in found), reverse=True)
