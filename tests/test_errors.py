import errno

import pytest

from diffux2ct.cli import run_main
from diffux2ct.errors import remedy


def test_only_a_full_disk_calls_for_space(tmp_path):
    assert remedy(OSError(errno.ENOSPC, "No space left on device")).startswith("free space")
    assert remedy(OSError(errno.EDQUOT, "Disk quota exceeded")).startswith("free space")
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as ended:
        run_main(lambda: (tmp_path / "file" / "below").mkdir())
    message = str(ended.value)
    assert (
        message
        == f"error: {tmp_path / 'file' / 'below'}: Not a directory; give a path that can be used, then run again"
    )
