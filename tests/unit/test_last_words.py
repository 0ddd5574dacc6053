import os

from selfsup.reports.last_words import last_words


def test_of_a_failed_job_its_own_last_error_is_kept_and_not_what_srun_says_after_it(tmp_path):
    paths = [tmp_path / name for name in ("error", "parser", "plain", "empty", "missing", "older")]
    error, parser, plain, empty, _, older = paths
    error.write_text("epoch 1\nerror: first\nerror: the disk is full\nsrun: error: node1: task 0: Exited\n")
    parser.write_text("usage: pretrain.py\npretrain.py: error: argument --seed: x is no seed\n\n")
    plain.write_bytes("epoch 1\nstopped by Gr\xfc\xdfe: saved\n".encode("iso-8859-1"))
    empty.write_text("\n")
    older.write_text("error: of yesterday")
    os.utime(older, (1, 1))
    assert list(last_words(paths, since=2)) == [
        f"{error}:\nerror: the disk is full",
        f"{parser}:\npretrain.py: error: argument --seed: x is no seed",
        f"{plain}:\nstopped by Gr��e: saved",
    ]
