// SPDX-License-Identifier: GPL-2.0-or-later
// The inner loops of the reader; `marks.py` says what each of them does, `slow_marks.py` does the same without a compiler.
//
// Whoever calls has verified the array blocks. Here only memory is protected: no argument makes these functions touch a
// byte outside the buffers they got.

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#include <endian.h>
#include <stdint.h>
#include <string.h>

enum { BLOCK = 4096, HEADER = 24, ERAS = (BLOCK - HEADER) / 4, WORDS = (BLOCK - HEADER) / 8 };

static uint64_t get_word(const uint8_t *at)
{
	uint64_t word;

	memcpy(&word, at, sizeof(word));
	return le64toh(word);
}

static void add_word(uint8_t *bits, uint64_t index, uint64_t word)
{
	word = htole64(get_word(bits + 8 * index) | word);
	memcpy(bits + 8 * index, &word, sizeof(word));
}

static int any_recent(const uint32_t *eras, uint64_t count, uint32_t since)
{
	uint32_t found = 0;

	for (uint64_t i = 0; i < count; i++)
		found |= le32toh(eras[i]) >= since;
	return found != 0;
}

static uint32_t newest_of(const uint32_t *eras, uint64_t count)
{
	uint32_t newest = 0;

	for (uint64_t i = 0; i < count; i++)
		newest = le32toh(eras[i]) > newest ? le32toh(eras[i]) : newest;
	return newest;
}

// One byte a block first, which compilers do for many blocks at once, then eight of them to a byte of the set.
static void mark_recent(uint8_t *bits, uint64_t block, const uint32_t *eras, uint64_t count, uint32_t since)
{
	uint8_t recent[ERAS + 16] = {0}, *at = recent + block % 8;

	for (uint64_t i = 0; i < count; i++)
		at[i] = le32toh(eras[i]) >= since;
	for (uint64_t i = 0; i < (block % 8 + count + 7) / 8; i++)
		bits[block / 8 + i] |= get_word(recent + 8 * i) * UINT64_C(0x0102040810204080) >> 56;
}

static uint32_t eras_of_blocks(uint8_t *bits, uint64_t blocks, uint64_t first, const uint8_t *array, uint64_t count,
			       uint32_t since)
{
	uint32_t eras[ERAS], newest = 0;

	for (uint64_t i = 0; i < count && (first + i) * ERAS < blocks; i++) {
		uint64_t begin = (first + i) * ERAS, left = blocks - begin, valid = left < ERAS ? left : ERAS;

		memcpy(eras, array + i * BLOCK + HEADER, sizeof(eras));
		if (any_recent(eras, valid, since)) {
			uint32_t here = newest_of(eras, valid);

			newest = here > newest ? here : newest;
			mark_recent(bits, begin, eras, valid, since);
		}
	}
	return newest;
}

static void bits_of_blocks(uint8_t *bits, uint64_t valid, uint64_t first, const uint8_t *array, uint64_t count)
{
	for (uint64_t i = 0; i < count; i++) {
		for (uint64_t j = 0; j < WORDS; j++) {
			uint64_t index = (first + i) * WORDS + j, word = get_word(array + i * BLOCK + HEADER + 8 * j);

			if (index >= valid / 64) {
				if (index > valid / 64 || !(valid % 64))
					return;
				word &= (UINT64_C(1) << (valid % 64)) - 1;
			}
			add_word(bits, index, word);
		}
	}
}

// Whether blocks are within a set, its bytes whole words, the array blocks whole, and no product overflows.
static int fits(const Py_buffer *bits, unsigned long long blocks, unsigned long long first, const Py_buffer *array)
{
	if (bits->len % 8 == 0 && blocks <= 8 * (unsigned long long)bits->len && array->len % BLOCK == 0 &&
	    first <= UINT32_MAX)
		return 1;
	PyErr_SetString(PyExc_ValueError, "the array blocks do not go with the set");
	return 0;
}

static PyObject *take_eras(PyObject *self, PyObject *args)
{
	unsigned long long blocks, first;
	unsigned int since;
	Py_buffer bits, array;
	PyObject *newest = NULL;

	if (!PyArg_ParseTuple(args, "w*KKy*I", &bits, &blocks, &first, &array, &since))
		return NULL;
	if (fits(&bits, blocks, first, &array))
		newest = PyLong_FromUnsignedLong(
			eras_of_blocks(bits.buf, blocks, first, array.buf, array.len / BLOCK, since));
	PyBuffer_Release(&bits);
	PyBuffer_Release(&array);
	return newest;
}

static PyObject *take_bits(PyObject *self, PyObject *args)
{
	unsigned long long valid, first;
	Py_buffer bits, array;
	int good;

	if (!PyArg_ParseTuple(args, "w*KKy*", &bits, &valid, &first, &array))
		return NULL;
	good = fits(&bits, valid, first, &array);
	if (good)
		bits_of_blocks(bits.buf, valid, first, array.buf, array.len / BLOCK);
	PyBuffer_Release(&bits);
	PyBuffer_Release(&array);
	if (!good)
		return NULL;
	Py_RETURN_NONE;
}

// The numbers of bits that differ from the bit before, `last` before the first; returns how many, stored if there is room.
static size_t flips_of(const uint8_t *bits, uint64_t begin, uint64_t end, uint64_t last, int64_t *found)
{
	size_t count = 0;

	for (uint64_t index = begin; index < end; index++) {
		uint64_t word = get_word(bits + 8 * index), flips = word ^ (word << 1 | last);

		last = word >> 63;
		if (!found)
			count += __builtin_popcountll(flips);
		else
			for (; flips; flips &= flips - 1)
				found[count++] = 64 * index + __builtin_ctzll(flips);
	}
	return count;
}

static PyObject *flips(PyObject *self, PyObject *args)
{
	unsigned long long begin, end;
	Py_buffer bits;
	PyObject *found = NULL;

	if (!PyArg_ParseTuple(args, "y*KK", &bits, &begin, &end))
		return NULL;
	if (bits.len % 8 || begin > end || end > (unsigned long long)bits.len / 8) {
		PyErr_SetString(PyExc_ValueError, "the words are not all in the set");
	} else {
		uint64_t last = begin ? get_word((const uint8_t *)bits.buf + 8 * (begin - 1)) >> 63 : 0;
		size_t count = flips_of(bits.buf, begin, end, last, NULL);

		found = PyBytes_FromStringAndSize(NULL, count * sizeof(int64_t));
		if (found)
			flips_of(bits.buf, begin, end, last, (int64_t *)PyBytes_AsString(found));
	}
	PyBuffer_Release(&bits);
	return found;
}

static PyMethodDef methods[] = {
	{"take_eras", take_eras, METH_VARARGS, NULL},
	{"take_bits", take_bits, METH_VARARGS, NULL},
	{"flips", flips, METH_VARARGS, NULL},
	{NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_marks", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__marks(void)
{
	return PyModule_Create(&module);
}
