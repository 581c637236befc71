# SPDX-License-Identifier: GPL-2.0-or-later
"""Reader of dm-era metadata: which blocks were written in or after an era.

Format and rules are those of Linux ``drivers/md/dm-era-target.c`` and ``drivers/md/persistent-data``. What has to be
loaded counts as much as the reading: dataclasses, pathlib or numpy take as long to import as a TiB's record to read.
"""

import os

# Nothing here does linear algebra: without this, numpy starts a thread with a buffer for every processor.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
