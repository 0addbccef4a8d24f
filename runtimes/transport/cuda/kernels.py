"""Kernels: blocks of a paged cache into one buffer with their checksums, back with the checksums compared, or summed
where they are.

A piece holds some blocks with all their parts: rows (paging.py) part by part, each part's in the order of the blocks,
and behind them the rows' checksums: one a segment of 8 KiB, the sum of its words each times an odd weight of its
place, modulo 2**64. One changed word always changes it; two that change places do too. It costs nothing where the
words pass anyway (a CRC would need the bytes on the host), and is meant for faults of software and links, not for an
adversary. To each is added what its place is in this very piece: a seed of the piece plus so many STEPs. So bytes
that lie there with a checksum of their own, because they were written for an older piece or another place, are not
taken for what was to come. Where nothing is gathered, a block has one sum: of its segments' checksums, each times the
weight of its place, in whatever order they are added.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

WORD: Final = 8  # bytes
SEGMENT: Final = 1024  # words that a checksum covers
THREADS: Final = 256
BLOCKS: Final = 512  # of a piece, at most: their ids travel with the launch
STEP: Final = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio: neighbours get weights that are far apart
NAMES: Final = ("gather", "scatter", "sum")


def segments(words: int) -> int:
    return -(-words // SEGMENT)


def checksum(words: list[int]) -> int:
    """Of one segment, as the kernels compute it."""
    return sum(word * (place * STEP | 1) for place, word in enumerate(words)) % (1 << 64)


def seed(ring: bytes, number: int, frame: bytes) -> int:
    """Of one piece, as both sides know it: the word of its ring, how many went through before, and its whole frame.

    `ring`: at most 64 bytes that no other use of this memory has.
    """
    said = hashlib.blake2b(number.to_bytes(8, "little") + frame, digest_size=WORD, key=ring)
    return int.from_bytes(said.digest(), "little")


def expected(words: list[int], seed: int, place: int) -> int:
    """What must lie behind the rows of a piece for a segment; `place`: its number in the piece."""
    return (checksum(words) + seed + place * STEP) % (1 << 64)


def block_sum(rows: Sequence[list[int]]) -> int:
    """Of one block, whose parts are these words."""
    parts = [row[at : at + SEGMENT] for row in rows for at in range(0, len(row), SEGMENT)]
    return checksum([checksum(part) for part in parts])


#: A group of threads a row and segment; words are read and written in pairs.
SOURCE: Final = f"""
typedef unsigned long long word;
struct ids {{ unsigned at[{BLOCKS}]; }};

__device__ word add_up(word sum) {{
  __shared__ word of_warp[{THREADS // 32}];
  for (int step = 16; step; step >>= 1) sum += __shfl_down_sync(0xffffffff, sum, step);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
  __syncthreads();
  word all = 0;
  for (int warp = 0; warp < {THREADS // 32}; warp++) all += of_warp[warp];
  return all;
}}

__device__ word move(const word* from, word* to, unsigned words) {{
  word sum = 0;
  for (unsigned at = 2 * threadIdx.x; at < words; at += 2 * {THREADS}) {{
    ulonglong2 pair = *(const ulonglong2*)(from + at);
    *(ulonglong2*)(to + at) = pair;
    sum += pair.x * (at * {STEP}ull | 1) + pair.y * ((at + 1) * {STEP}ull | 1);
  }}
  return add_up(sum);
}}

__device__ word read(const word* from, unsigned words) {{
  word sum = 0;
  for (unsigned at = 2 * threadIdx.x; at < words; at += 2 * {THREADS}) {{
    ulonglong2 pair = *(const ulonglong2*)(from + at);
    sum += pair.x * (at * {STEP}ull | 1) + pair.y * ((at + 1) * {STEP}ull | 1);
  }}
  return add_up(sum);
}}

/* bases: where block 0 of each part lies, and a block every `stride` words; a group of threads a row and segment */
extern "C" __global__ void gather(const word* bases, word* buffer, word stride, unsigned words, unsigned segments,
    unsigned blocks, const __grid_constant__ ids chosen, word seed) {{
  unsigned start = blockIdx.y * {SEGMENT}, count = min(words - start, {SEGMENT}u);
  word* part = (word*)bases[blockIdx.x / blocks];
  word block = chosen.at[blockIdx.x % blocks];
  word sum = move(part + block * stride + start, buffer + (word)blockIdx.x * words + start, count);
  word place = (word)blockIdx.x * segments + blockIdx.y;
  if (!threadIdx.x) buffer[(word)gridDim.x * words + place] = sum + seed + place * {STEP}ull;
}}

/* broken: a byte a block of the piece */
extern "C" __global__ void scatter(const word* bases, word* buffer, word stride, unsigned words, unsigned segments,
    unsigned blocks, const __grid_constant__ ids chosen, word seed, unsigned char* broken) {{
  unsigned start = blockIdx.y * {SEGMENT}, count = min(words - start, {SEGMENT}u);
  word* part = (word*)bases[blockIdx.x / blocks];
  word block = chosen.at[blockIdx.x % blocks];
  word sum = move(buffer + (word)blockIdx.x * words + start, part + block * stride + start, count);
  word place = (word)blockIdx.x * segments + blockIdx.y;
  if (!threadIdx.x && sum + seed + place * {STEP}ull != buffer[(word)gridDim.x * words + place])
    broken[blockIdx.x % blocks] = 1;
}}

/* sums: a word a block, zero before */
extern "C" __global__ void sum(const word* bases, word* sums, word stride, unsigned words, unsigned segments,
    unsigned blocks, const __grid_constant__ ids chosen) {{
  unsigned start = blockIdx.y * {SEGMENT}, count = min(words - start, {SEGMENT}u);
  word* part = (word*)bases[blockIdx.x / blocks];
  word block = chosen.at[blockIdx.x % blocks];
  word found = read(part + block * stride + start, count);
  word place = (word)(blockIdx.x / blocks) * segments + blockIdx.y;
  if (!threadIdx.x) atomicAdd(sums + blockIdx.x % blocks, found * (place * {STEP}ull | 1));
}}
"""
