# SPDX-License-Identifier: GPL-2.0-or-later

import pytest

pytest.register_assert_rewrite("tests.vm.rig", "tests.vm.monitor_bed")
