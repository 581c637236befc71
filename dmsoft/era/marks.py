# SPDX-License-Identifier: GPL-2.0-or-later
"""The inner loops of the reader: marks on their way from verified array blocks into a set, and what a set holds.

Compiled (`_marks.c`) where there was a compiler when dmsoft was installed, else `slow_marks`. Numpy would be as fast,
but to load it takes longer than to read the record of a disk of some TiB.

``take_eras(bits, blocks, first, array, since)`` adds the blocks whose era is at least ``since``. ``array`` has whole
array blocks of 1018 eras, the first of them number ``first`` of the array; eras past the number of ``blocks`` do not
count. Returns the newest era of a block that it added, 0 if there is none.

``take_bits(bits, valid, first, array)`` adds the bits of a writeset below ``valid``, from its array blocks.

``flips(bits, begin, end)``: the numbers (native int64) of the blocks in the 64-bit words ``begin`` .. ``end`` - 1 of a
set that are in it while the one before is not, or the other way round.
"""

try:
    from dmsoft.era._marks import flips, take_bits, take_eras

    COMPILED = True
except ImportError:
    from dmsoft.era.slow_marks import flips, take_bits, take_eras

    COMPILED = False

__all__ = ["COMPILED", "flips", "take_bits", "take_eras"]
