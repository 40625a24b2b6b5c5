"""The tables of the report."""

from lvd.flows.accounts import SHARED_DOMAINS, domain_shares
from lvd.tasks.tallies import Profile


def test_domains_that_were_let_go_are_among_all_others() -> None:
    profile = Profile()
    for number in range(SHARED_DOMAINS + 2):
        profile.fetched["domain"][f"d{number:02d}"] = 100 - number
    profile.kept["domain"]["d00"] = 7
    profile.with_domain = {"fetched": 5000, "kept": 9}  # most were of domains that are rarer still
    lines = domain_shares(profile)
    assert [line.name for line in lines] == [*(f"d{number:02d}" for number in range(SHARED_DOMAINS)), "all others"]
    assert (sum(line.before for line in lines), sum(line.after for line in lines)) == (5000, 9)
    assert domain_shares(Profile()) == ()
