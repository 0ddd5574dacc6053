"""`make ranks` in short: the same claims, on two nodes with a rank each. Both machines are this one."""

import pytest

from thirty_two_ranks import METHODS, Cluster, check


@pytest.mark.long
def test_the_claims_on_thirty_two_ranks_hold_on_two(tmp_path, starter, capsys):
    check(Cluster(2, 1, tmp_path, steps_per_epoch=6, python=starter), seed=7, methods=METHODS[:1])
    told = capsys.readouterr().out
    for claim in ("first step", "then the same bits", "1 ranks went on from 2", "5 ranks were refused", "collectives"):
        assert claim in told, told
