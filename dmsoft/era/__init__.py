# SPDX-License-Identifier: GPL-2.0-or-later
"""Reader of dm-era metadata: which blocks were written in or after an era.

Format and rules are those of Linux ``drivers/md/dm-era-target.c`` and ``drivers/md/persistent-data``. Modules that
need no numpy (``device``, ``superblock``, ``reader`` until the first walk) stay free of it: ``status`` starts fast.
"""

import os

# Nothing here does linear algebra: without this, numpy starts a thread with a buffer for every processor.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
