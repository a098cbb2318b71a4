"""Where commands write: pipes, homes that are not there, and paths that are no UTF-8."""

import os
import subprocess
import sys

import pytest

from glimodern.cli.outputs import check_not_read, check_output_file, check_output_folder


@pytest.mark.skipif(not os.path.exists("/dev/stdout"), reason="needs /dev/stdout")
def test_a_pipe_is_none_of_the_files_that_are_read():
    code = "import sys; from glimodern.cli.outputs import check_output_file as f; print(f('', '/dev/stdout', sys.argv))"
    done = subprocess.run([sys.executable, "-c", code, __file__], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("/dev/stdout\n", "")


def test_a_home_that_is_not_there_is_a_name_like_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert check_output_file("--json", "~no-such-user/scores.json").parent.is_dir()
    check_not_read("output_dir", [tmp_path], {"train_data": ("~no-such-user/other.jsonl",)})


def test_an_output_folder_is_in_utf8():
    with pytest.raises(ValueError, match=r"output_dir: expected a path in UTF-8, got 'a\\udcff'"):
        check_output_folder("output_dir", "a\udcff")
