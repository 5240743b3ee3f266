"""SELinux labels of volumes, on a kernel without a policy: one that is asked for and cannot be had keeps the daemon from starting."""

from __future__ import annotations

from pathlib import Path

import pytest
from modelvold.linux import selinux

from tests.lab.daemon import Daemon
from tests.lab.program import Failed

pytestmark = pytest.mark.system


@pytest.mark.skipif(selinux.is_active(), reason="this kernel has a policy")
def test_a_label_that_cannot_be_is_refused_by_name(folder: Path) -> None:
    daemon = Daemon(folder / "daemon", {"mount": {"selinux": selinux.READ_BY_CONTAINERS}})
    try:
        with pytest.raises(Failed, match="`\\[mount\\] selinux` is 'system_u:object_r:container_ro_file_t:s0'"):
            daemon.start()
    finally:
        daemon.close()
    assert daemon.leftovers == []
