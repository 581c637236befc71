# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``era_invalidate --written-since N -o FILE IMAGE`` does, done by dmsoft's reader: IMAGE N FILE.

Writes the extents to FILE as JSON, and on the last line of FILE how long the set took, without interpreter and output.
"""

import sys
import time

from dmsoft.era.reader import EraReader

if __name__ == "__main__":
    image, since, output = sys.argv[1:]
    with EraReader(image) as reader:
        import dmsoft.era.changes  # noqa: F401 (what is loaded does not count)

        begin = time.perf_counter()
        blocks = reader.written_since(int(since)).blocks
        seconds = time.perf_counter() - begin
    with open(output, "w") as file:
        file.writelines(f"[{first},{count}]\n" for first, count in blocks.runs())
        file.write(f'{{"seconds": {seconds}}}')
