"""The table of what tests/mutations.py breaks: each line to be broken stands once, and what should notice is there."""

from mutations import COMPILED, MUTATIONS, NOTICES, ROOT, SUITE

from cases import in_one_test


@in_one_test("what, name, source, target", [mutation[:4] for mutation in MUTATIONS])
def test_a_line_to_be_broken_stands_once(what, name, source, target):
    assert source != target
    assert (ROOT / "gluon_kl" / name).read_text(encoding="utf-8").count(source) == 1


def test_each_has_a_description_of_its_own():
    names = [mutation[0] for mutation in MUTATIONS]
    assert len(set(names)) == len(names)


def test_what_should_notice_is_there():
    named = {test for mutation in MUTATIONS for test in mutation[4:]}
    for test in {*SUITE, *COMPILED, *named, *(test for tests in NOTICES.values() for test in tests)}:
        file, _, node = test.partition("::")
        text = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert not node or f"def {node.split('[')[0]}(" in text, test
