/* The same kernels are compiled once for each level of instructions; a caller names one that the processor has. */

#ifndef BLOOMERY_LEVEL_H
#define BLOOMERY_LEVEL_H

/* In the order of `LEVELS` in __init__.py. AVX512: F, BW, DQ, VL and VNNI; AVX512_BF16: that and BF16. */
enum { PORTABLE, AVX2, AVX512, AVX512_BF16, LEVELS };

#if defined(__x86_64__) && defined(__GNUC__)
#define HAS_X86 1
#endif

#endif
