"""A region that a thread is telling another instance of: whoever is rid of it meanwhile waits for nobody."""

from aioblk._libblkio.loans import Loans


def test_what_is_not_lent_goes_at_once() -> None:
    gone: list[str] = []
    loans = Loans()
    loans.once_given_back("region", lambda: gone.append("region"))
    assert gone == ["region"]


def test_what_is_lent_goes_when_it_is_given_back() -> None:
    gone: list[str] = []
    loans = Loans()
    give_back = loans.lend(["region", "other"])
    loans.once_given_back("region", lambda: gone.append("its descriptor"))
    loans.once_given_back("region", lambda: gone.append("its pages"))
    assert gone == []
    give_back()
    assert gone == ["its descriptor", "its pages"]
    loans.once_given_back("other", lambda: gone.append("other"))
    assert gone[-1] == "other"


def test_what_is_lent_twice_goes_when_both_have_given_it_back() -> None:
    gone: list[str] = []
    loans = Loans()
    first, second = loans.lend(["region"]), loans.lend(["region"])
    loans.once_given_back("region", lambda: gone.append("region"))
    first()
    first()
    assert gone == []
    second()
    assert gone == ["region"]
